"""Whether a certificate and its key can be used, before anything is started."""

from __future__ import annotations

import ssl

from mosec_asgi.config import Settings
from mosec_asgi.errors import StartupError

_CERTIFICATE = "the certificate (--ssl-certfile, MOSEC_SSL_CERTFILE)"
_KEY = "the key (--ssl-keyfile, MOSEC_SSL_KEYFILE)"


def check(settings: Settings) -> None:
    """Check the files that the settings name.

    Raises:
        StartupError: they cannot be used; the text says what to change.
    """
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if not certificate:
        if key:
            raise StartupError(f"{_KEY} {key} is given without its certificate; name that, too, with --ssl-certfile")
        return
    for what, file in ((_CERTIFICATE, certificate), (_KEY, key or certificate)):
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise StartupError(f"{what} {file} cannot be read: {error.strerror}") from error
    try:
        # OpenSSL would ask the terminal for a password.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key or None, lambda: "")
    except ssl.SSLError as error:
        raise StartupError(_problem(error, certificate, key)) from error


def _problem(error: ssl.SSLError, certificate: str, key: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"{_KEY} {key or certificate} is not that of the certificate {certificate}; name the two that belong "
            "together"
        )
    if key:
        return (
            f"the certificate {certificate} and the key {key} cannot be used ({error.reason or error}): both must be "
            "PEM files, the certificate with those above it in order, and the key without a password"
        )
    return (
        f"{_CERTIFICATE} {certificate} cannot be used ({error.reason or error}): it must be a PEM file, with the key "
        "in it, or the key in a file of its own, --ssl-keyfile"
    )
