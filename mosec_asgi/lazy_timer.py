"""A timer of the event loop that is moved often and fires seldom.

Moving it later sets nothing: the loop's timer fires when it was first to fire, finds that it is too early, and is set
anew. So a deadline that each request moves on costs a comparison a request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class LazyTimer:
    """Calls a function at a time that may be moved; set and used on one event loop.

    Attributes:
        when: the time at which it is to call; infinite where it is not.
    """

    __slots__ = ("_clock", "_due", "_handle", "_loop", "_set_for", "when")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], due: Callable[[], None]) -> None:
        """Set nothing yet.

        Args:
            loop: to be called on.
            clock: in whose seconds `when` is.
            due: called when the time has come; it may set the timer again.
        """
        self.when = math.inf
        self._loop = loop
        self._clock = clock
        self._due = due
        self._handle: asyncio.TimerHandle | None = None
        # When the loop's timer fires.
        self._set_for = math.inf

    @property
    def is_set(self) -> bool:
        """Whether it is to call."""
        return self.when < math.inf

    def set(self, when: float) -> None:
        """Have it call at `when`, in place of what was set before."""
        self.when = when
        if when < self._set_for:
            self._arm()

    def clear(self) -> None:
        """Have it not call. The loop's timer is cancelled."""
        self.when = math.inf
        self._disarm()

    def _arm(self) -> None:
        self._disarm()
        self._set_for = self.when
        self._handle = self._loop.call_later(delay_until(self.when, self._clock()), self._fire)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._set_for = None, math.inf

    def _fire(self) -> None:
        self._handle, self._set_for = None, math.inf
        if self.when > self._clock():
            if self.when < math.inf:
                self._arm()
            return
        self.when = math.inf
        self._due()


def delay_until(when: float, now: float) -> float:
    """Return the seconds from `now` until `when`, for a timer."""
    # Rounded up to whole milliseconds: uvloop's timers know no finer, and would otherwise fire too early and spin.
    return math.ceil(max(0.0, when - now) * 1000) / 1000


def later(seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    """Call something later, on the event loop that runs; `RuntimeError` where none does."""
    return asyncio.get_running_loop().call_later(seconds, callback)
