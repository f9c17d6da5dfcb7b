"""Asks a service for its metrics, over TCP, TLS or a unix socket."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from mosec_asgi.cli.faults import UsageError
from mosec_asgi.observing.scraped import ScrapeError, read
from mosec_asgi.observing.statistics import ServiceReport

# Seconds for an answer.
PATIENCE = 5.0
# Bytes of an answer; beyond them it is none of a service.
MOST_BYTES = 16 * 1024 * 1024


class SourceError(Exception):
    """There is no answer that can be shown; the text says why."""


class Source:
    """The metrics of one service.

    Attributes:
        name: of the service, to be shown.
    """

    def __init__(
        self, url: str, *, uds: Path | None = None, key: str = "", namespace: str = "", insecure: bool = False
    ) -> None:
        """Read the address; nothing is asked.

        Args:
            url: of the service, or of its metrics.
            uds: its unix socket, if it is to be asked there.
            key: an API key.
            namespace: of its metrics; empty for the first that is found.
            insecure: take any certificate.

        Raises:
            UsageError: the address is none.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UsageError(f"{url} is no address of a service; write one such as http://127.0.0.1:8000")
        if not (key.isascii() and key.isprintable()):
            raise UsageError("an API key is printable ASCII text")
        self._host, self._port = parts.hostname, port
        self._tls = parts.scheme == "https"
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/metrics") else f"{path}/metrics"
        self._uds = uds
        self._headers = {"x-api-key": key} if key else {}
        self._namespace = namespace
        self._insecure = insecure
        self.name = str(uds) if uds is not None else f"{parts.scheme}://{parts.netloc}{path.removesuffix('/metrics')}"

    def report(self) -> ServiceReport:
        """Ask the service how it stands.

        Raises:
            SourceError: it does not answer, or with something else.
        """
        connection = self._connection()
        try:
            connection.request("GET", self._path, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES + 1)
        except TimeoutError:
            raise SourceError(f"no answer within {PATIENCE:g} s") from None
        except OSError as error:
            raise SourceError(error.strerror or str(error)) from None
        except http.client.HTTPException as error:
            raise SourceError(f"what answers there speaks no HTTP: {error!r}") from None
        finally:
            connection.close()
        if answer.status in (401, 403):
            raise SourceError(f"it wants an API key that may read its metrics ({answer.status}): pass --api-key")
        if answer.status != 200:
            raise SourceError(f"{self._path} is answered {answer.status}")
        if len(body) > MOST_BYTES:
            raise SourceError(f"its metrics are longer than {MOST_BYTES} bytes")
        try:
            return read(body.decode(errors="replace"), self._namespace)
        except ScrapeError as error:
            raise SourceError(str(error)) from None

    def _connection(self) -> http.client.HTTPConnection:
        if self._uds is not None:
            return _UnixConnection(self._uds)
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE)
        context = ssl.create_default_context()
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self._host, self._port, timeout=PATIENCE, context=context)


class _UnixConnection(http.client.HTTPConnection):
    """A connection through a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
