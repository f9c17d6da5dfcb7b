"""The ceiling: an ASGI app that does nothing but echo, under uvicorn as `Server.run()` sets it up.

It goes through `serving.run`, so that the HTTP protocol (with the gathering of writes), the event loop, the garbage
collector's settings and all else are the ones that the real service has, now and after the next change. What is missing
is the app: routes, tasks, metrics, the way to a worker process and back, JSON.
"""

from collections.abc import Callable

# Makes sure of the checkout that is to be measured, before anything of it is imported.
import package  # noqa: F401
from starlette.types import Receive, Scope, Send

from mosec_asgi import config
from mosec_asgi.host import run as serving


class Bare:
    """What `serving.run` needs of a server, and no more; see `serving.Server`."""

    def __init__(self) -> None:
        self.on_daemon_exit: Callable[[str, int], None] | None = None
        self.on_answering: Callable[[], None] | None = None

    def announce_end(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def direct_routes(self) -> None:
        """Return none: all requests go through ASGI."""

    async def restart(self) -> None:
        """Do nothing: there are no workers."""

    def why_not_direct(self) -> str:
        """Return why there are none."""
        return "this app has no models"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
    raise SystemExit(serving.run(Bare(), config.from_command_line({})))
