"""Checks of a server's own: of what it is given, and of where it is run."""

from __future__ import annotations

import inspect
import multiprocessing.process
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mosec_asgi.errors import DefinitionError

if TYPE_CHECKING:
    from starlette.middleware import Middleware

    from mosec_asgi.config import Settings
    from mosec_asgi.request import Request


def checked_middleware(given: Any) -> list[Middleware]:
    """Return what `Server(middleware=...)` was given, if it is a list of middleware."""
    if given == () or given == []:
        # Without starlette, which no worker needs.
        return []
    from starlette.middleware import Middleware

    remedy = "pass a list such as middleware=[Middleware(CORSMiddleware, allow_origins=['*'])], of starlette.middleware"
    if isinstance(given, Middleware) or not isinstance(given, Sequence):
        raise DefinitionError(f"middleware must be a list of Middleware objects, not {given!r}; {remedy}")
    for each in given:
        if not isinstance(each, Middleware):
            raise DefinitionError(f"{each!r} in middleware is no Middleware object; {remedy}")
    return list(given)


def checked_tenant(given: Any) -> Callable[[Request], str] | None:
    """Return what `Server(tenant=...)` was given, if it is a function of a request."""
    if given is None:
        return None
    remedy = "write `def tenant(request): return request.query.get('user', '')`, and pass the function"
    if not callable(given) or inspect.iscoroutinefunction(given):
        raise DefinitionError(f"tenant must be a plain function that returns a text, not {given!r}; {remedy}")
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):
        # Written in C, and says nothing.
        return given  # type: ignore[no-any-return]
    try:
        signature.bind(None)
    except TypeError as error:
        raise DefinitionError(f"tenant is called with a request, and takes {signature}: {error}; {remedy}") from None
    return given  # type: ignore[no-any-return]


def check_main_guard(what: str) -> None:
    """Refuse what a worker process would do while it imports the program that has started it."""
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{what} while a worker process imported this module. "
            'Put the call under `if __name__ == "__main__":`, so that only the program itself runs it'
        )
    from mosec_asgi.pool.process import group

    if group.is_worker():
        raise RuntimeError(
            f"{what} in a worker process, whose workers could start servers in turn. Let workers do one thing each: "
            "append them as stages of one route, or have the program that runs the server call one after the other. "
            "A worker with executor='thread' can call other routes of its server by `server.engine()`"
        )


def check_no_loop() -> None:
    """Refuse a running event loop: `run()` needs its own."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "server.run() was called within a running event loop, as in a notebook or a coroutine, but needs its own loop. "
        "Start the workers there with `async with server.lifespan():` and serve the app `server` by any ASGI server, "
        "as in `await uvicorn.Server(uvicorn.Config(server)).serve()`; or call run() in a program of its own"
    )


def check_own_engine(settings: Settings) -> None:
    """Refuse to start several web processes for the engine of another program."""
    if settings.engine:
        raise DefinitionError(
            f"http_processes={settings.http_processes} starts web processes with an engine of their own, and "
            f"engine={settings.engine!r} says that another program has it; leave one of them out, or start the web "
            "processes by an ASGI server: `uvicorn app:server --workers 4`"
        )
