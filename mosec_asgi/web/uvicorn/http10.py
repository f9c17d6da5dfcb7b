"""Answers of unknown length to clients of HTTP/1.0."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class UntilClose:
    """An app whose answers of unknown length end with their connection, as in HTTP/1.0, which has no chunks."""

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        """Put it around `app`, for the one request that `cycle` is."""
        self._app = app
        self._cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        cycle, endless = self._cycle, False

        async def without_chunks(message: Message) -> None:
            nonlocal endless
            if message["type"] == "http.response.start":
                endless = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if endless:
                    cycle.chunked_encoding = False
            elif endless:
                # The number of bytes that uvicorn expects: this piece, and one byte more if there is more to come.
                more = 1 if message.get("more_body", False) else 0
                cycle.expected_content_length = len(message.get("body", b"")) + more
            await send(message)

        await self._app(scope, receive, without_chunks)
