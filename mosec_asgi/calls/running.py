"""The service that a call goes to: the one that runs on this event loop, or an error that says what to do."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from mosec_asgi.errors import CallError

if TYPE_CHECKING:
    from mosec_asgi.service import Service

NOT_RUNNING = (
    "the server is not running: it has not been started, or has been stopped. Call it inside of `async with server:`, "
    "or in an app whose lifespan runs it (`FastAPI(lifespan=server.lifespan)`); from code without an event loop, "
    "inside of `with server.engine() as engine:`"
)
ELSEWHERE = (
    "the server runs on another event loop than the one that calls it: call it by `with server.engine() as engine: "
    "engine.infer(...)`, which works from any thread, or from a coroutine on the server's own loop"
)


def running_here(running: Service | None) -> Service:
    """Return a service that runs on this event loop.

    Args:
        running: the service that the server has, if any.

    Raises:
        CallError: there is none, or it runs on another loop; the text says what to do.
    """
    if running is None:
        raise CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE)
    if asyncio._get_running_loop() is not running.loop:
        if running.loop.is_closed():
            raise CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE)
        raise CallError(ELSEWHERE)
    return running
