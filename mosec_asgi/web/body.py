"""Reading a request's body within limits."""

from __future__ import annotations

from starlette.types import Message, Receive

from mosec_asgi.errors import Failure, too_large


class ClientLeft(Exception):
    """The client went away before its body was complete; there is nobody to answer."""


async def read_body(receive: Receive, declared: bytes | None, limit: int) -> bytes | Failure:
    """Read a request's body.

    Args:
        receive: the request's messages.
        declared: the Content-Length header's value, or None. A body that is declared too large is not read at all.
        limit: the most bytes to accept; never much more is held in memory.

    Returns:
        the body, or what is wrong with it.

    Raises:
        ClientLeft: the client went away.
    """
    if declared is not None and declared.isdigit() and float(declared) > limit:
        return too_large(limit)
    message = await receive()
    # Nearly every body comes whole, in one message.
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
    else:
        chunks, size = await _read_chunks(receive, message, limit)
        if size > limit:
            return too_large(limit)
        body = b"".join(chunks)
    if len(body) > limit:
        return too_large(limit)
    return body


async def _read_chunks(receive: Receive, message: Message, limit: int) -> tuple[list[bytes], int]:
    """Return the chunks of a body and their size, no further than just over `limit`."""
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            return [], size
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks, size
        message = await receive()
