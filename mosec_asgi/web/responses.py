"""An answer as data, for every transport, and its form in HTTP/1.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]
# A request's headers by name, in lower case; the last value of a header that is there twice.
Headers: TypeAlias = Mapping[bytes, bytes]

# Statuses whose answers have neither a body nor a length (RFC 9110, section 8.6).
WITHOUT_LENGTH = frozenset((204, 304))
# The names in RFC 9110, which Python's `HTTPStatus` has only since 3.13.
_REASONS = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class Response(NamedTuple):
    """A whole answer.

    Attributes:
        status: of HTTP.
        headers: those that describe the body; the length, the request's id and the server's name are added where the
            answer is sent. Answers that share this object also share the bytes that are made from it.
        body: may be empty.
    """

    status: int
    headers: Sequence[Header]
    body: bytes


def reason(code: int) -> str:
    """Return the name of a status; an unknown one has the name of its class's x00 (RFC 9110, section 15)."""
    try:
        return _REASONS.get(code) or HTTPStatus(code).phrase
    except ValueError:
        return HTTPStatus(code // 100 * 100).phrase


def headers_of(response: Response, common: Sequence[Header]) -> list[Header]:
    """Return all headers of an answer; `common` are those that every answer has."""
    if response.status in WITHOUT_LENGTH:
        return [*response.headers, *common]
    return [*response.headers, (b"content-length", b"%d" % len(response.body)), *common]


def head_of(code: int, headers: Sequence[Header]) -> bytes:
    """Return the head of an answer in HTTP/1.1."""
    lines = [b"HTTP/1.1 %d %b" % (code, reason(code).encode()), *(b"%b: %b" % header for header in headers)]
    return b"\r\n".join([*lines, b"", b""])
