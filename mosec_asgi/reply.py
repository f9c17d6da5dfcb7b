"""A result that sets the status and the headers of its response: `Reply`, and its form on the way to the server."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

from mosec_asgi.errors import ServerError

# The status, and the length of the headers' lines, which come before the result.
_HEAD = struct.Struct("<HI")
# A token of RFC 9110, section 5.6.2.
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# What a value must not hold: it would end the header, or what reads it.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length")
)
# What each response has of the service itself.
OWN = frozenset(("x-request-id", "server", "date"))


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """A result together with the status and headers of its response, returned by `forward` in a result's place.

        return Reply({"id": 7}, status=201, headers={"location": "/items/7"})

    Only the last stage of a route can return it; with batching, at the place of each item that needs one. `infer`
    returns it as it is. In a stream there is none: its status and headers are sent before its first event.

    Attributes:
        value: the result; it is encoded as any other. With a status of 204, 205 or 304 it is not sent: those have no
            body.
        status: of HTTP, from 200 to 599.
        headers: their values by name, or pairs of both, where one is to be there several times; a `content-type` takes
            the place of the worker's `resp_mime_type`. Headers that the server sets itself, and those about the
            connection, cannot be set: the item is then answered 500.
    """

    value: Any
    status: int = 200
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = field(default_factory=dict)


class ReplyHead(NamedTuple):
    """What a reply sets.

    Attributes:
        status: of HTTP.
        headers: their names, in lower case, and values.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]


def packed_head(reply: Reply) -> bytes:
    """Return what a reply sets in its form on the way to the server; what is encoded of its value comes behind it.

    Raises:
        ServerError: the status or a header is none that can be sent; the text says which.
    """
    status, lines = reply.status, []
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status < 600:
        raise ServerError(f"the status of a Reply is a whole number from 200 to 599, not {status!r}")
    try:
        headers = reply.headers
        pairs = [(name, value) for name, value in (headers.items() if isinstance(headers, Mapping) else headers)]
    except (TypeError, ValueError) as error:
        raise ServerError(
            f"the headers of a Reply are a dictionary, or pairs of a name and a value: {error}"
        ) from error
    for name, value in pairs:
        _check(name, value)
        lines.append(f"{name.lower()}:{value.strip()}\n".encode("latin-1"))
    text = b"".join(lines)
    return _HEAD.pack(status, len(text)) + text


def _check(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ServerError(f"a header's name in a Reply is a word of letters, digits and hyphens, not {name!r}")
    if name.lower() in HOP_BY_HOP or name.lower() in OWN:
        raise ServerError(f"a Reply cannot set the header {name}: the server does; leave it out")
    if not isinstance(value, str):
        raise ServerError(f"the value of the header {name} of a Reply is text, not {type(value).__name__}")
    if _CONTROL.search(value):
        raise ServerError(f"the value of the header {name} of a Reply holds a line break or a control character")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ServerError(
            f"the value of the header {name} of a Reply holds characters beyond Latin-1; encode it, by "
            "urllib.parse.quote for example"
        ) from error


def cut(payload: bytes) -> tuple[bytes, bytes]:
    """Return the head and the result of what has come from a worker.

    Raises:
        ValueError: it is no reply.
    """
    if len(payload) < _HEAD.size:
        raise ValueError("too short for a reply")
    end = _HEAD.size + _HEAD.unpack_from(payload)[1]
    if end > len(payload):
        raise ValueError("shorter than it says")
    return payload[:end], payload[end:]


def unpacked_head(head: bytes) -> ReplyHead:
    """Return what a reply sets."""
    status, _ = _HEAD.unpack_from(head)
    lines = head[_HEAD.size :].split(b"\n")[:-1]
    pairs = [line.partition(b":") for line in lines]
    return ReplyHead(status, [(name, value) for name, _, value in pairs])
