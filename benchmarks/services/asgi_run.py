"""JSON in, the same JSON out, through ASGI under `Server.run()`: middleware has to see each request."""

from typing import Any

from echo import Echo
from package import Server
from starlette.middleware import Middleware


class Passing:
    """Middleware that changes nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        await self.app(scope, receive, send)


if __name__ == "__main__":
    server = Server(middleware=[Middleware(Passing)])
    server.append_worker(Echo)
    server.run()
