"""What a call asks of the order in which it is run: its priority, its key, its tenant. Pure.

All three may come from a client, so each has a bound.
"""

from __future__ import annotations

from mosec_asgi.errors import CallError, ClientError, MosecError
from mosec_asgi.labels import checked_key

# From the least to the most: a wider range would let a call wait behind others for longer than any timeout.
MOST_PRIORITY = 10


def checked(priority: int, key: str, tenant: str) -> tuple[int, str, str]:
    """Refuse what a program must not ask for; return the rest as plain data, where it is a member of an `Enum`.

    Raises:
        CallError: it is no priority, no key, or no tenant; the text says what is.
    """
    if isinstance(priority, bool) or not isinstance(priority, int) or not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
        raise CallError(
            f"priority is a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}, not {priority!r}; the higher comes "
            "first, and 0 is what others have"
        )
    return int(priority), _checked_text(key, "key"), _checked_text(tenant, "tenant")


def _checked_text(text: str, name: str) -> str:
    if not isinstance(text, str):
        raise CallError(f"{name} is a text, not {text!r}; use str() for a number")
    try:
        return checked_key(text, f"the argument {name}")
    except MosecError as error:
        raise CallError(str(error)) from error


def read_text(header: bytes, name: str) -> str:
    """Return a header's value as a key.

    Raises:
        ClientError: it is too long, or not printable ASCII.
    """
    text = header.decode("latin-1").strip()
    if not (text.isascii() and (text.isprintable() or not text)):
        raise ClientError(f"the header {name} must be printable ASCII")
    return checked_key(text, f"the header {name}")


def read_priority(header: bytes) -> int:
    """Return the priority in the header `x-priority`.

    Raises:
        ClientError: it is none.
    """
    text = header.strip()
    # A number of more digits is out of range anyway, and is not converted.
    if text.removeprefix(b"-").isdigit() and len(text) <= 3 and abs(priority := int(text)) <= MOST_PRIORITY:
        return priority
    raise ClientError(f"the header x-priority must be a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}")
