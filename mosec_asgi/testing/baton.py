"""A thread that runs only while the event loop waits for it.

A worker's code is written to block: in `forward`, and in waiting for its next tasks. So it gets a thread; but one that
passes a baton to and fro with the loop, so that never both run. When the thread has to wait, for time or for news, the
loop goes on, and gives it the baton again when what it waits for has come. Nothing is left to the
system's scheduler, and time that passes on the loop, be it virtual, is the thread's time too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from mosec_asgi.inside.ending import Ending

MOST_REMINDERS = 100


class Ended(Ending):
    """Raised in the thread, wherever it waits, when it is to end."""


class BatonThread:
    """Runs a function that may wait, in turn with an event loop.

    Attributes:
        frozen: it gets no turn, as a stopped process gets none.
        alive: the function has not come to its end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Callable[[], None],
        on_end: Callable[[], None],
        name: str,
    ) -> None:
        """Prepare; `start` gives it its first turn.

        Args:
            loop: the loop to run in turn with.
            target: what to run; it must not raise.
            on_end: called on the loop once it has come to its end.
            name: the thread's.
        """
        self.frozen = False
        self.alive = True
        self._loop = loop
        self._target = target
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._turn = threading.Semaphore(0)
        self._parked = threading.Semaphore(0)
        self._ending = False
        # What it waits for, and whether that has come while it was frozen.
        self._wants_news = False
        self._seconds: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._due = False

    # -- on the loop -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let it run until it waits for the first time."""
        self._thread.start()
        self._parked.acquire()
        self._listen()

    def thaw(self) -> None:
        """Let it have its turns again."""
        self.frozen = False
        if self._due:
            self._loop.call_soon(self._go_on)

    def end(self) -> None:
        """End it: `Ended` is raised where it waits, and what it has to clean up runs."""
        if not self.alive or self._ending:
            return
        self._ending = True
        self._forget()
        # Code that swallows the exception is reminded, and then left to itself.
        for _ in range(MOST_REMINDERS):
            if self.alive:
                self._pass_baton()
        self._on_end()

    def news(self) -> None:
        """Give it a turn if it waits for news; called on the loop."""
        if self._wants_news:
            self._wants_news = False
            self._soon = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Give it a turn: what it has waited for has come."""
        self._forget()
        if self.frozen:
            self._due = True
        elif self.alive:
            self._pass_baton()
            self._listen()

    def _pass_baton(self) -> None:
        self._due = False
        self._turn.release()
        self._parked.acquire()

    def _listen(self) -> None:
        """Have the loop notice when what it waits for comes, or that it has ended."""
        if not self.alive:
            self._on_end()
            return
        if self._seconds is not None:
            self._timer = self._loop.call_later(self._seconds, self._go_on)

    def _forget(self) -> None:
        """Have the loop notice nothing any more."""
        self._wants_news = False
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None

    # -- on the thread -----------------------------------------------------------------------------------------------

    @property
    def is_current(self) -> bool:
        """Whether it is this thread that asks."""
        return threading.current_thread() is self._thread

    def wait(self, seconds: float | None = None, *, news: bool = False) -> None:
        """Let the loop go on until `seconds` have passed, or `news` has been called where that is waited for.

        Raises:
            Ended: the thread is to end.
        """
        self._seconds, self._wants_news = seconds, news
        self._parked.release()
        self._turn.acquire()
        if self._ending:
            raise Ended

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self.alive = False
            self._wants_news, self._seconds = False, None
            self._parked.release()
