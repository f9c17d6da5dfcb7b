"""The time in which a server's service runs: started once for all that need it, on one event loop, and stopped once.

Who needs it either enters a block (`enter`, `leave`: the lifespan of an app, `async with server`), or is a request that
came to an app whose lifespan nobody runs (`start_late`). The first starts the service, the others wait for the same
start. The last block to end stops the service, also one that a request has started.

A start ends early in two ways: the program was told to end (`close`), or nobody waits for it any more, as after
`asyncio.timeout`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from mosec_asgi import log
from mosec_asgi.errors import DefinitionError, EventLoopError, StartupError

# Not asyncio, which workers need not load: see `server`.
if TYPE_CHECKING:
    import asyncio
    import subprocess
    from multiprocessing.process import BaseProcess
    from types import TracebackType

    from starlette.types import ASGIApp

    from mosec_asgi.batching.engine import Statistics
    from mosec_asgi.calls.inference import Inference
    from mosec_asgi.observing.statistics import ServiceReport
    from mosec_asgi.steering import Steering
    from mosec_asgi.web.direct import DirectRoutes

logger = log.internal_logger(__name__)
# Event loops of two threads that start a server at the same time get one service, and one of them an error. Not a
# server's own: that may be pickled before it is started.
_beginning = threading.Lock()


class Running(Protocol):
    """A service that runs, with an engine of its own (`service`) or that of another process (`web_service`).

    Attributes:
        loop: on which it was made.
        app: answers requests, once it is started.
        direct_routes: those that `run()` can serve without the app, by path.
        calls: takes calls of objects, once it is started.
    """

    loop: asyncio.AbstractEventLoop
    app: ASGIApp
    direct_routes: DirectRoutes | None
    calls: Inference

    @property
    def steering(self) -> Steering:
        """Changes it."""

    def is_here(self) -> bool:
        """Whether this is the event loop that it runs on."""

    async def start(self, answering: Callable[[], object]) -> None:
        """Start it; raises `StartupError` where it never will serve."""

    async def stop(self) -> None:
        """Finish what was admitted, and stop it."""

    def announce_end(self) -> None:
        """Say at `/readyz` that the end is near; requests are still admitted."""

    def close(self) -> None:
        """Admit no more requests."""

    def abandon(self) -> None:
        """End it at once."""

    def statistics(self) -> Statistics:
        """Return how things stand."""

    def report(self) -> ServiceReport:
        """Return how things stand, and what has been counted and measured so far."""

    def watch_daemon(
        self, name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]
    ) -> None:
        """Call `on_exit` with the name and the exit code once `process` has ended."""


class GivenUp(Exception):
    """The end was asked for while the workers were loading."""


class Lifetime:
    """Starts and stops the service of one server.

    Attributes:
        running: the service, once it serves.
        answering: the service, while its workers load and its app answers already; for whom that is of use sets it.
        given_up: the end was asked for while the workers were loading, so that there is nothing to serve.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Running]]) -> None:
        """Begin with nothing that runs; `start` returns a service that serves."""
        self.running: Running | None = None
        self.answering: Running | None = None
        self.given_up = False
        self._start = start
        self._starting: asyncio.Task[Running] | None = None
        # The blocks that need the service to run, and those that wait for its start.
        self._blocks = 0
        self._waiting = 0
        # A request has started it, so that the end of whoever waits does not end the start.
        self._started_late = False

    @property
    def is_starting(self) -> bool:
        """Whether a start is under way, or has come to its end."""
        return self._starting is not None

    @property
    def is_here(self) -> bool:
        """Whether the service runs or is being started, on an event loop that runs."""
        return self._starting is not None and self._starting.get_loop().is_running()

    async def enter(self) -> Running:
        """Begin a block that needs the service, and start it if nobody has.

        Raises:
            GivenUp: the end was asked for before the workers were ready.
            EventLoopError: the event loop is not asyncio's.
            StartupError: a stage could not be started, or the service has another event loop.
        """
        service = await self._ensure_started()
        self._blocks += 1
        return service

    async def leave(self) -> None:
        """End a block: the last one stops the service."""
        self._blocks -= 1
        if self._blocks <= 0:
            await self.stop()

    async def start_late(self) -> Running:
        """Start the service for a request, if nobody has; for what it raises see `enter`.

        The client of that request may leave, and the next request finds the workers loading all the same.
        """
        self._started_late = True
        return await self._ensure_started()

    def announce_end(self) -> None:
        """Say at `/readyz` that the end is near."""
        for service in (self.answering, self.running):
            if service is not None:
                service.announce_end()

    def close(self) -> None:
        """Admit no more requests; end a start that is under way."""
        if self._starting is not None and not self._starting.done() and not self.given_up:
            # Once: a second time would interrupt the end of the workers that load.
            self.given_up = True
            self._starting.cancel()
        if self.answering is not None:
            self.answering.close()
        if self.running is not None:
            self.running.close()

    async def stop(self) -> None:
        """Finish what was admitted, and stop the workers."""
        running = self._forget()
        if running is not None:
            await running.stop()

    def force_stop(self) -> None:
        """End all workers at once, whatever they do."""
        running = self._forget()
        if running is not None:
            dropped = running.statistics().admitted
            running.abandon()
            logger.warning("the end was forced; %d requests were dropped", dropped)

    def _forget(self) -> Running | None:
        """Return the service that runs, if any, and begin anew."""
        running, self.running, self._starting = self.running, None, None
        self.given_up, self._started_late, self._blocks = False, False, 0
        return running

    async def _ensure_started(self) -> Running:
        """Start the service on this event loop, once; wait for a start that is under way."""
        import asyncio

        with _beginning:
            loop = self._look_at_loop()
            if self._starting is None or self._starting.get_loop() is not loop:
                self.given_up = False
                self._starting = loop.create_task(self._run_start())
            starting = self._starting
        self._waiting += 1
        try:
            # Not awaited itself: that would end it with whoever waits here, and the end of one would look like the
            # other's.
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            if self._waiting == 1 and not self._blocks and not self._started_late:
                await self._drop(starting)
            raise
        finally:
            self._waiting -= 1
        if starting.cancelled() or starting.exception() is not None:
            if self._starting is starting:
                self._starting = None
            if starting.cancelled() and self.given_up:
                logger.info("the service stops before all of its workers have been loaded")
                raise GivenUp
        return starting.result()

    def _look_at_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that runs here, and let go of a service whose loop has ended.

        Raises:
            EventLoopError: the loop is not asyncio's.
            StartupError: the service runs, or is being started, on another loop.
        """
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise EventLoopError(
                "the workers need an event loop of asyncio, and this one is of another kind, such as trio's; run the "
                "server with asyncio: `hypercorn -k asyncio`, uvicorn, granian, or server.run()"
            ) from None
        if self.running is not None and self.running.loop is not loop:
            if self.running.loop.is_running():
                raise StartupError(
                    "the server runs already, on another event loop of this program; from other threads call it by "
                    "`with server.engine() as engine:`"
                )
            # The service of a loop that ended without a shutdown, as with several `asyncio.run` calls in a row.
            self.running.abandon()
            self.running = self._starting = None
            self._blocks = 0
        elif self._starting is not None and self._starting.get_loop() is not loop and self.is_here:
            raise StartupError(
                "the server is being started already, on another event loop of this program; once it serves, call it "
                "from other threads by `with server.engine() as engine:`"
            )
        return loop

    async def _run_start(self) -> Running:
        try:
            self.running = await self._start()
        finally:
            self.answering = None
        return self.running

    async def _drop(self, starting: asyncio.Task[Running]) -> None:
        """End a start for which nobody waits any more, and what it has begun."""
        import asyncio

        if self._starting is starting:
            self._starting = None
        starting.cancel()
        await asyncio.wait([starting])
        if not self._blocks and not starting.cancelled() and starting.exception() is None:
            # It had just come to its end.
            await self.stop()


class Block(contextlib.AbstractAsyncContextManager[None]):
    """What `server.lifespan()` returns: the service runs in its `async with`."""

    def __init__(self, lifetime: Lifetime) -> None:
        self._lifetime = lifetime
        self._entered = False

    async def __aenter__(self) -> None:
        """Start the workers. Where the program is told to end while they load, this is entered without any."""
        with contextlib.suppress(GivenUp):
            await self._lifetime.enter()
            self._entered = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Finish what was admitted, and stop the workers."""
        if self._entered:
            self._entered = False
            await self._lifetime.leave()

    def __call__(self, app: object) -> NoReturn:
        """Refuse to be the lifespan of an app, which calls what it was given.

        Raises:
            DefinitionError: always.
        """
        name = type(app).__name__
        raise DefinitionError(
            f"{name} was given what server.lifespan() returns, and wants what it can call itself; write "
            f"{name}(lifespan=server.lifespan), without the parentheses behind it"
        )
