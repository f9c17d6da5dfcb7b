"""An answer that is given before its request has been read reaches the client, under servers that are not `run()`'s.

A socket that is closed with something unread in it tells the client's kernel to throw away what has arrived, the answer
too; and servers close where the client, or a proxy, has asked for it. So the answer goes out whole, but for its end,
then what the client still sends is read and dropped, and then comes the end. ASGI has no more for it, and needs no
more. The protocols of `run()` do the same beneath it (`uvicorn.http1`), and HTTP/2 ends a stream without its socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosec_asgi.web.limits import LINGER_SECONDS, LINGER_SILENCE_SECONDS
from mosec_asgi.within import within

_ENDED = {"type": "http.response.body", "body": b""}
# In the scope of a request to an endpoint that reads bodies: it sees to its early answers itself.
OWN = "mosec_asgi.lingers"


class Lingering:
    """Middleware of an app of which hardly an endpoint reads bodies: lets whatever is answered 400 and above arrive."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, of which the app reads nothing, unless an endpoint sets `OWN`."""
        lingering = lingering_send(scope, receive, send)

        async def send_or_linger(message: Message) -> None:
            await (send if OWN in scope else lingering)(message)

        await self._app(scope, receive, send_or_linger)


def lingering_send(scope: Scope, receive: Receive, send: Send) -> Send:
    """Return a `send` for a request with unread body, which is read and dropped before the end of an error's answer."""
    if scope["type"] != "http" or not scope["http_version"].startswith("1") or not _has_body(scope["headers"]):
        return send
    failed = False

    async def send_and_linger(message: Message) -> None:
        nonlocal failed
        if message["type"] == "http.response.start":
            failed = message["status"] >= 400
        if failed and message["type"] == "http.response.body" and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await _drop_the_rest(receive)
            message = _ENDED
        await send(message)

    return send_and_linger


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


async def _drop_the_rest(receive: Receive) -> None:
    """Read until the body has ended, the client has left, or it pauses or sends for too long."""
    loop = asyncio.get_running_loop()
    until = loop.time() + LINGER_SECONDS
    while (left := until - loop.time()) > 0:
        try:
            message = await within(min(left, LINGER_SILENCE_SECONDS), receive())
        except asyncio.TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
