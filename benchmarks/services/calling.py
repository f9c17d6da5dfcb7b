"""What has a service call itself, for the benchmarks of `infer`: `POST /calls {"callers": 64, "seconds": 5}`.

The callers are coroutines of the server's own program that each make their next call when the last one is answered. So
all that a call costs is processor time of the server's process, and that of whoever calls is among it.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mosec_asgi import Server

PATH = "/calls"


class Calling:
    """Middleware that answers `POST /calls`; all else goes on to the server."""

    def __init__(self, app: ASGIApp, server: list[Server], item: Any, check: Callable[[Any], bool]) -> None:
        """Wrap the server, which is in a list because it is made with this middleware."""
        self._app = app
        self._server = server
        self._item = item
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        wanted = json.loads((await receive())["body"])
        body = json.dumps(await self._call(wanted["callers"], wanted["seconds"])).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _call(self, callers: int, seconds: float) -> dict[str, float]:
        infer, item, check = self._server[0].infer, self._item, self._check
        until = time.perf_counter() + seconds
        durations: list[float] = []

        async def caller() -> None:
            began = time.perf_counter()
            while began < until:
                result = await infer(item)
                now = time.perf_counter()
                durations.append(now - began)
                began = now
            assert check(result), result

        began = time.perf_counter()
        await asyncio.gather(*[caller() for _ in range(callers)])
        passed = time.perf_counter() - began
        p50, p99 = (statistics.quantiles(durations, n=100)[place] * 1000 for place in (49, 98))
        return {"per_second": len(durations) / passed, "done": len(durations), "p50_ms": p50, "p99_ms": p99}


def calling(item: Any, check: Callable[[Any], bool], **settings: Any) -> Server:
    """Return a server that calls itself with an item when it is asked to; the last result must pass a check."""
    itself: list[Server] = []
    itself.append(Server(middleware=[Middleware(Calling, server=itself, item=item, check=check)], **settings))
    return itself[0]
