"""SIGHUP under `run()`: all workers are replaced, one after the other, as daemons read their configuration anew.

The system sends the same signal when a terminal is closed, to the programs that were started in it. Then nobody is
there any more to see the service or to end it, and it ends as by SIGTERM; a program that ignores the signal, as under
`nohup`, is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator

from mosec_asgi import log
from mosec_asgi.errors import CallError, StartupError

logger = log.internal_logger(__name__)


class Hangup:
    """Hears of SIGHUP, on the running event loop."""

    def __init__(self, restart: Callable[[], Awaitable[None]], ends: Callable[[], bool] = lambda: False) -> None:
        """Prepare.

        Args:
            restart: replaces all workers, once they are ready.
            ends: whether the service stops.
        """
        self._restart = restart
        self._ends = ends
        self._had_terminal = has_terminal()
        self._workers_are_ready = False
        self._restarting: asyncio.Task[None] | None = None
        self._again = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear of the signal as long as this is entered, unless it is ignored or the user handles it."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            if self._restarting is not None:
                self._restarting.cancel()

    def workers_are_ready(self) -> None:
        """Do what a signal has asked for while the workers loaded: they may have read what has changed since."""
        self._workers_are_ready = True
        if self._again:
            self._begin()

    def _hangup(self) -> None:
        if self._had_terminal and not has_terminal():
            logger.info("the terminal has been closed; the service stops")
            # To the handlers that are there for it.
            signal.raise_signal(signal.SIGTERM)
        elif self._ends():
            logger.info("SIGHUP: the service stops, and its workers are not replaced any more")
        elif self._restarting is not None:
            # Once more after that: what is to be loaded may have changed since. Further signals add nothing.
            self._again = True
        elif self._workers_are_ready:
            self._begin()
        elif not self._again:
            logger.info("SIGHUP: the workers are still loading; they are replaced once all of them are ready")
            self._again = True

    def _begin(self) -> None:
        self._restarting = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._again = True
            while self._again:
                self._again = False
                logger.info("SIGHUP: the workers are replaced, one after the other")
                await self._restart()
        except (StartupError, CallError) as error:
            if self._ends():
                logger.info("the remaining workers are not replaced: the service stops")
            else:
                logger.error("the remaining workers are not replaced, and go on serving: %s", error)
        finally:
            self._restarting = None


def has_terminal() -> bool:
    """Whether this program belongs to a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
