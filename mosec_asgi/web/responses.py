"""Outcome -> status, headers, body: the only place where an answer gets its HTTP form."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import Message, Send

from mosec_asgi.errors import Failure
from mosec_asgi.streaming import Event, encode_event

TEXT = (b"content-type", b"text/plain; charset=utf-8")

Header = tuple[bytes, bytes]

NOT_STARTED = Failure(HTTPStatus.SERVICE_UNAVAILABLE, "the service could not be started", retry_after=5)

# The names of RFC 9110, which Python's `HTTPStatus` has only from 3.13 on.
_REASONS = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def reason(code: int) -> str:
    """Return what a status is called; an unknown one is called as the x00 of its class (RFC 9110, section 15)."""
    try:
        return _REASONS.get(code) or HTTPStatus(code).phrase
    except ValueError:
        return HTTPStatus(code // 100 * 100).phrase


def success_headers(size: int, content_type: Header, common: list[Header]) -> list[Header]:
    """Return the headers of a result of `size` bytes.

    `common` are those that every response has, and those of its encoding.
    """
    return [content_type, (b"content-length", b"%d" % size), *common]


def failure_headers(failure: Failure, common: list[Header]) -> list[Header]:
    """Return the headers of a failure's response; `common` are those that every response has."""
    headers = [(b"content-length", b"%d" % len(failure.text.encode())), TEXT, *common]
    if failure.retry_after is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after))
    return headers


def success(body: bytes, content_type: Header, common: list[Header]) -> tuple[Message, Message]:
    """Return the messages of a result; for `common` see `success_headers`."""
    return (
        {"type": "http.response.start", "status": 200, "headers": success_headers(len(body), content_type, common)},
        {"type": "http.response.body", "body": body},
    )


async def send_failure(send: Send, failure: Failure, common: list[Header]) -> None:
    """Send what went wrong: its status, and its text for a person to read."""
    await send({"type": "http.response.start", "status": failure.code, "headers": failure_headers(failure, common)})
    await send({"type": "http.response.body", "body": failure.text.encode()})


def error_event(failure: Failure) -> bytes:
    """Return what went wrong as an event of a stream, in mosec's form."""
    text = f"SSE inference error: {int(failure.code)}: {reason(failure.code)}: {failure.text}"
    return encode_event(Event(text, event="error"))
