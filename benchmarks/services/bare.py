"""The ceiling: an ASGI app that does nothing but echo, under uvicorn as `Server.run()` sets it up.

It goes through `serving.run`, so that the HTTP protocol (with the gathering of writes), the event loop, the garbage
collector's settings and all else are the ones that the real service has, now and after the next change. What is missing
is the app: routes, tasks, metrics, the way to a worker process and back, JSON.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from package import Server

from mosec_asgi import config
from mosec_asgi.host import run as serving

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Bare:
    """What `serving.run` needs of a server, and no more."""

    on_daemon_exit: Callable[[str, int], None] | None = None
    direct_routes = None

    def close(self) -> None:
        """Do nothing."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer the body of a POST with itself, and anything else with 200."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    raise SystemExit(serving.run(cast(Server, Bare()), config.from_command_line({})))
