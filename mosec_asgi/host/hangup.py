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

    def __init__(self, restart: Callable[[], Awaitable[None]]) -> None:
        """Prepare.

        Args:
            restart: replaces all workers.
        """
        self._restart = restart
        self._had_terminal = _has_terminal()
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

    def _hangup(self) -> None:
        if self._had_terminal and not _has_terminal():
            logger.info("the terminal has been closed; the service stops")
            # To the handlers that are there for it.
            signal.raise_signal(signal.SIGTERM)
        elif self._restarting is not None:
            # Once more after that: what is to be loaded may have changed since. Further signals add nothing.
            self._again = True
        else:
            self._restarting = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._again = True
            while self._again:
                self._again = False
                logger.info("SIGHUP: the workers are replaced, one after the other")
                await self._restart()
        except (StartupError, CallError) as error:
            logger.error("the workers that are left are not replaced, and serve on: %s", error)
        finally:
            self._restarting = None


def _has_terminal() -> bool:
    """Whether this program belongs to a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
