"""An engine without HTTP: it serves web processes, from its start to its exit code."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import uvloop

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.host.hangup import Hangup
from mosec_asgi.host.run import DAEMON_DIED, START_FAILED
from mosec_asgi.remote.listening import EngineSocket

# Web processes of other programs for which there is room in shared memory; what still others send goes through their
# sockets.
EXPECTED = 16

logger = log.internal_logger(__name__)


class Server(Protocol):
    """Whose engine it is: `mosec_asgi.Server`.

    Attributes:
        on_daemon_exit: called with the name and the exit code of a daemon process that has ended.
    """

    on_daemon_exit: Callable[[str, int], None] | None

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Run the engine for the time of a block."""

    async def restart(self) -> None:
        """Replace all workers, one after the other."""

    def announce_end(self) -> None:
        """Say at `/readyz` that the end is near; requests are still admitted."""

    def close(self) -> None:
        """Admit no more requests."""


class AtPath:
    """Web processes that come to a socket at a path; see `service.WebProcesses`."""

    expected = EXPECTED

    def __init__(self, path: str) -> None:
        """Prepare."""
        self._path = path
        self._socket: EngineSocket | None = None

    def start(self, take: Callable[[socket.socket], object]) -> None:
        """Take those that come.

        Raises:
            StartupError: it cannot listen there.
        """
        self._socket = EngineSocket(self._path)
        self._socket.start(take)

    def close(self) -> None:
        """Take no more."""
        if self._socket is not None:
            self._socket.close()


def run(
    server: Server,
    abandon: Callable[[], object],
    *,
    ready: Callable[[], object] = lambda: None,
    before_end: Callable[[], Awaitable[object]] | None = None,
    told: Callable[[Callable[[int], object]], object] = lambda end: None,
) -> int:
    """Serve until a signal ends it.

    Args:
        server: whose engine it is.
        abandon: ends all workers at once.
        ready: called on the event loop, once all workers are ready.
        before_end: awaited before the engine ends, while it still answers.
        told: is given a function that ends the engine with an exit code.

    Returns:
        the exit code: 0 after SIGTERM or SIGINT, 130 where a second SIGINT has forced the end, else what went wrong.
    """
    return uvloop.run(_Run(server, abandon, ready, before_end).serve(told))


class _Run:
    """One run of an engine."""

    def __init__(
        self,
        server: Server,
        abandon: Callable[[], object],
        ready: Callable[[], object],
        before_end: Callable[[], Awaitable[object]] | None,
    ) -> None:
        self._server = server
        self._abandon = abandon
        self._ready = ready
        self._before_end = before_end
        self._loaded = False
        self._end: asyncio.Event
        self._ending: asyncio.Future[None]
        self._code = 0

    async def serve(self, told: Callable[[Callable[[int], object]], object]) -> int:
        loop = asyncio.get_running_loop()
        self._end, self._ending = asyncio.Event(), loop.create_future()
        # In another thread Python handles no signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._signalled, number)
        self._server.on_daemon_exit = self._daemon_ended
        told(self._end_with)
        serving = loop.create_task(self._serve())
        await asyncio.wait([serving, self._ending], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            # Forced.
            self._abandon()
            serving.cancel()
            await asyncio.wait([serving])
            self._code = 128 + signal.SIGINT
        elif not serving.cancelled():
            serving.result()
        logger.info("the engine has stopped")
        return self._code

    async def _serve(self) -> None:
        began = time.monotonic()
        try:
            hangup = Hangup(self._server.restart, self._end.is_set)
            with hangup.heard():
                await self._serve_until_end(began, hangup)
        except StartupError as error:
            logger.error("the service could not be started: %s", error)
            self._code = START_FAILED

    async def _serve_until_end(self, began: float, hangup: Hangup) -> None:
        async with self._server.lifespan():
            self._loaded = True
            if not self._end.is_set():
                logger.info("all workers are ready, %.1f s after the start", time.monotonic() - began)
                self._ready()
                hangup.workers_are_ready()
            await self._end.wait()
            self._server.announce_end()
            if self._before_end is not None:
                await self._before_end()
            self._server.close()

    def _signalled(self, number: int) -> None:
        if self._end.is_set() and number == signal.SIGINT and not self._ending.done():
            self._ending.set_result(None)
        self._end.set()

    def _end_with(self, code: int) -> None:
        if not self._end.is_set():
            self._code = code
            self._end.set()
            if not self._loaded:
                # Nobody waits for the models, which may take minutes.
                self._server.close()

    def _daemon_ended(self, name: str, code: int) -> None:
        if self._end.is_set():
            logger.info("the daemon process %s has ended with code %d", name, code)
            return
        logger.error("the daemon process %s has ended with code %d; the service stops", name, code)
        self._end_with(DAEMON_DIED)
