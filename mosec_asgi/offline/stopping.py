"""SIGINT and SIGTERM: no more lines are taken, and those in hand are finished; the second time they are dropped."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Enough(BaseException):
    """Ends a read that a signal has come into."""


class Stopping:
    """Hears of signals, in the main thread.

    Attributes:
        number: of the signal that has come; None where none has.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        """Prepare.

        Args:
            tell: called with the first signal that finds lines in hand, inside of its handler.
        """
        self.number: int | None = None
        self._tell = tell
        self._in_hand = False
        self._reading = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Handle the signals for the time of a block."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def lines_are_in_hand(self) -> None:
        """Note that a signal is no longer to end the program at once."""
        self._in_hand = True

    def until_asked(self, source: Iterable[T]) -> Iterator[T]:
        """Yield what a source yields, until a signal comes."""
        iterator = iter(source)
        while self.number is None:
            try:
                self._reading = True
                try:
                    # The read may wait for as long as nobody writes into the pipe, so a signal ends it.
                    item = next(iterator)
                finally:
                    self._reading = False
            except (StopIteration, _Enough):
                return
            yield item

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.number is not None, number
        # While models load, nothing is.
        if again or not self._in_hand:
            raise KeyboardInterrupt
        self._tell()
        if self._reading:
            raise _Enough
