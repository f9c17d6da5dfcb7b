"""Hears of SIGINT and SIGTERM beside whoever handles them.

ASGI servers record these signals and look at them once the app has started, which takes as long as the models load.
Each way of handling a signal stays as it is: the handler that was there before is called first, and it decides what
becomes of the program. Where there is none, because the signal is ignored or ends the program by itself, nothing is
changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def told_of_signals(tell: Callable[[], object], note: Callable[[int], object] | None = None) -> Iterator[None]:
    """Tell of each signal that somebody handles, as long as this is entered.

    In a thread other than the main one Python handles no signals, and nothing is told.

    Args:
        tell: called on the running event loop.
        note: called before it with the signal's number, wherever the program is, as the handler of a signal is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chained = [_Chained(number, tell, note) for number in SIGNALS]
    for handler in chained:
        handler.install()
    try:
        yield
    finally:
        for handler in chained:
            handler.remove()


class _Chained:
    """A handler of a signal that calls the one before it, and then tells the event loop."""

    def __init__(
        self, number: signal.Signals, tell: Callable[[], object], note: Callable[[int], object] | None
    ) -> None:
        self._number = number
        self._note = note
        self._tell: Callable[[], object] | None = tell
        self._loop = asyncio.get_running_loop()
        # A process that is forked meanwhile inherits the handler, and must not write to this one's loop.
        self._process = os.getpid()
        self._before: _Handler | None = None

    def install(self) -> None:
        before = signal.getsignal(self._number)
        # Python's own handler of ctrl-c raises KeyboardInterrupt, which needs no help.
        if callable(before) and before is not signal.default_int_handler:
            self._before = before
            signal.signal(self._number, self._handle)

    def remove(self) -> None:
        self._tell = None
        # Who has set another meanwhile may call this one from there; then it only passes on.
        if self._before is not None and signal.getsignal(self._number) == self._handle:
            signal.signal(self._number, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            if self._before is not None:
                self._before(number, frame)
        finally:
            if self._tell is not None and os.getpid() == self._process:
                if self._note is not None:
                    self._note(number)
                self._loop.call_soon_threadsafe(self._tell)
