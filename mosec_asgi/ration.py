"""Log lines that a client can cause, so many that they would fill a disk: some of them, and how many were left out.

Lines of one text are of one kind. Of each kind `MOST` are logged in a stretch of `SECONDS`, and the rest are counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

# Lines of one kind in a stretch of time.
MOST = 100
SECONDS = 10.0


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> object:
        """Have it not come, if it has not."""


# Calls a function so many seconds later.
Later: TypeAlias = Callable[[float, Callable[[], None]], Timer]


class Ration:
    """Passes on what may be logged, and says how many lines it has left out."""

    def __init__(
        self, logger: logging.Logger, later: Later | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with nothing left out.

        Args:
            logger: gets the lines.
            later: to say at the end of a stretch what was left out; None where that has to wait for the next line.
            clock: seconds.
        """
        self._logger = logger
        self._later = later
        self._clock = clock
        # One for each text in the code that logs: they are few.
        self._kinds: dict[str, _Kind] = {}

    def log(self, level: int, text: str, *args: object, extra: dict[str, object] | None = None) -> None:
        """Log a line, unless there were too many of its kind.

        Args:
            level: of the line.
            text: its kind, and with `args` what it says, as for `logging.Logger.log`.
            args: see above.
            extra: see above.
        """
        kind, now = self._kinds.get(text), self._clock()
        if kind is None:
            kind = self._kinds[text] = _Kind()
        if now >= kind.until:
            self._say(level, text, kind)
            kind.until, kind.left = now + SECONDS, MOST
        if kind.left:
            kind.left -= 1
            self._logger.log(level, text, *args, extra=extra, stacklevel=2)
            return
        if not kind.dropped and self._later is not None:
            kind.timer = self._later(kind.until - now, lambda: self._say(level, text, kind))
        kind.dropped += 1
        kind.last = args

    def say_all(self, level: int = logging.WARNING) -> None:
        """Say now what was left out; no timer is left."""
        for text, kind in self._kinds.items():
            self._say(level, text, kind)

    def _say(self, level: int, text: str, kind: _Kind) -> None:
        if kind.timer is not None:
            kind.timer.cancel()
            kind.timer = None
        if kind.dropped:
            dropped, kind.dropped = kind.dropped, 0
            form = f"%d more lines were left out, %d are logged in %g s; the last one was: {text}"
            self._logger.log(level, form, dropped, MOST, SECONDS, *kind.last)


class RationedWarnings:
    """Stands in for a logger whose warnings clients cause."""

    def __init__(self, logger: logging.Logger, ration: Ration) -> None:
        """Stand in for `logger`; its warnings go through `ration`."""
        self._logger = logger
        self._ration = ration

    def warning(self, text: str, *args: object) -> None:
        """Log a warning, unless there were too many of its kind."""
        self._ration.log(logging.WARNING, text, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


class _Kind:
    """Lines of one text.

    Attributes:
        until: the end of the stretch.
        left: how many may still be logged in it.
        dropped: how many were left out, and not told of.
        last: the arguments of the last of these.
        timer: says at the end of the stretch how many they were.
    """

    __slots__ = ("dropped", "last", "left", "timer", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.left = MOST
        self.dropped = 0
        self.last: tuple[object, ...] = ()
        self.timer: Timer | None = None
