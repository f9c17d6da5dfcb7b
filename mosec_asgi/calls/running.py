"""What is wrong where a call finds no service on its event loop, and what to do about it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from mosec_asgi.errors import CallError

if TYPE_CHECKING:
    from mosec_asgi.lifetime import Running

NOT_RUNNING = (
    "the server is not running: it has not been started, or has been stopped. Call it inside of `async with server:`, "
    "or in an app whose lifespan runs it (`FastAPI(lifespan=server.lifespan)`); from code without an event loop, "
    "inside of `with server.engine() as engine:`"
)
ELSEWHERE = (
    "the server runs on another event loop than the one that calls it: call it by `with server.engine() as engine: "
    "engine.infer(...)`, which works from any thread, or from a coroutine on the server's own loop"
)


def not_here(running: Running | None) -> CallError:
    """Return the error of a call on an event loop on which no service runs.

    Args:
        running: the service that the server has on another loop, if any.
    """
    if running is None or running.loop.is_closed():
        return CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE)
    return CallError(ELSEWHERE)
