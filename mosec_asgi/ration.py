"""Log lines that a client can cause, so many that they would fill a disk: some of them, and how many were left out.

`rationing` decides how many. Here they are logged: lines, faults with their tracebacks and without, and what was left
out, at the end of its stretch. What a line says is cut, as it may hold what a client has sent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from mosec_asgi import log
from mosec_asgi.fault_kind import kind_of
from mosec_asgi.rationing import MOST, SECONDS, Rationing, Shown, Summary

# Characters of a text in a line; and in one that is like others before it.
MOST_TEXT = 4000
MOST_TEXT_AGAIN = 300


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> object:
        """Have it not come, if it has not."""


# Calls a function so many seconds later.
Later: TypeAlias = Callable[[float, Callable[[], None]], Timer]


def later_in_thread(seconds: float, callback: Callable[[], None]) -> Timer:
    """Call something later, in a thread of its own: where no event loop runs."""
    timer = threading.Timer(seconds, callback)
    timer.name, timer.daemon = "mosec_asgi ration", True
    timer.start()
    return timer


class _Line(NamedTuple):
    """What a line says.

    Attributes:
        level: of the line.
        text: what it says, with `args`.
        args: see above.
        extra: fields of the line.
        faults: whether it tells of a fault.
    """

    level: int
    text: str
    args: tuple[object, ...]
    extra: Mapping[str, object] | None
    faults: bool


class Ration:
    """Passes on what may be logged, and says how much it has left out. Any thread may use it."""

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
        self._lock = threading.Lock()
        self._rationing = Rationing()
        self._timer: Timer | None = None
        # When it is to come, by the clock.
        self._due = 0.0

    def log(self, level: int, text: str, *args: object, extra: Mapping[str, object] | None = None) -> None:
        """Log a line, unless there were too many of its kind.

        Args:
            level: of the line.
            text: its kind, and with `args` what it says, as for `logging.Logger.log`.
            args: see above.
            extra: see above.
        """
        line = _Line(level, text, _cut(args, MOST_TEXT), extra, faults=False)
        if self._ask((level, text), line) is not Shown.NOTHING:
            self._logger.log(level, text, *line.args, extra=extra, stacklevel=2)

    def fault(
        self,
        level: int,
        text: str,
        *args: object,
        error: BaseException,
        extra: Mapping[str, object] | None = None,
        requests: int = 1,
        traced: bool = True,
    ) -> None:
        """Log a fault: with its traceback, or without where others of its kind had theirs, unless there were too many.

        Args:
            level: of the line.
            text: with `args` what it says, as for `logging.Logger.log`.
            args: see above.
            error: the fault.
            extra: as above.
            requests: how many have failed by it.
            traced: its traceback is of use.
        """
        kind = kind_of(error)
        line = _Line(level, text, _cut(args, MOST_TEXT_AGAIN), extra, faults=True)
        shown = self._ask((level, text, kind), line, requests, whole=True)
        if shown is Shown.WHOLE:
            exc_info = error if traced else None
            self._logger.log(level, text, *_cut(args, MOST_TEXT), exc_info=exc_info, extra=extra, stacklevel=2)
        elif shown is Shown.LINE:
            form = f"{text} (as others before, which have their traceback; {_escaped(kind.place)})" if traced else text
            self._logger.log(level, form, *line.args, extra=extra, stacklevel=2)

    def say_all(self) -> None:
        """Say now what was left out; no timer is left."""
        with self._lock:
            timer, self._timer = self._timer, None
            summaries = self._rationing.all(self._clock())
        if timer is not None:
            timer.cancel()
        self._say(summaries)

    def _ask(self, kind: tuple[object, ...], line: _Line, requests: int = 1, *, whole: bool = False) -> Shown:
        with self._lock:
            now = self._clock()
            verdict = self._rationing.ask(kind, now, line, requests=requests, whole=whole)
            if verdict.shown is Shown.NOTHING and self._timer is None and self._later is not None:
                self._set_timer(verdict.until, now, self._later)
        if verdict.before is not None:
            self._say([verdict.before])
        return verdict.shown

    def _set_timer(self, due: float, now: float, later: Later) -> None:
        # There may be no thread to have, or no event loop any more: then the next line says it.
        with contextlib.suppress(RuntimeError):
            self._timer, self._due = later(due - now, self._say_due), due

    def _say_due(self) -> None:
        with self._lock:
            self._timer = None
            # A timer may come a little early, and that of a virtual clock at once.
            now = max(self._clock(), self._due)
            summaries, due = self._rationing.due(now), self._rationing.next_due()
            if due is not None and self._later is not None:
                self._set_timer(due, now, self._later)
        self._say(summaries)

    def _say(self, summaries: list[Summary]) -> None:
        for summary in summaries:
            line: _Line = summary.note
            args = (summary.requests, summary.seconds, MOST, SECONDS, *line.args)
            what = "requests have failed in the same way" if line.faults else "lines were left out"
            form = f"%d more {what} in the last %.1f s, as %d are logged in %g s; the last one was: {line.text}"
            self._logger.log(line.level, form, *args, extra=line.extra)


class RationedLogger:
    """Stands in for a logger whose warnings and errors clients cause."""

    def __init__(self, logger: logging.Logger, warnings: Ration, errors: Ration) -> None:
        """Stand in for `logger`.

        Args:
            logger: does all else.
            warnings: where its warnings go.
            errors: where its errors go.
        """
        self._logger = logger
        self._warnings = warnings
        self._errors = errors

    def warning(self, text: str, *args: object) -> None:
        """Log a warning, unless there were too many of its kind."""
        self._warnings.log(logging.WARNING, text, *args)

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log an error, unless there were too many of its kind."""
        if exc_info is None:
            self._errors.log(logging.ERROR, text, *args)
        else:
            self._errors.fault(logging.ERROR, text, *args, error=exc_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


def _cut(args: tuple[object, ...], most: int) -> tuple[object, ...]:
    """Return what a line says: numbers, and texts that are cut. Nothing else is kept, such as what a fault holds."""
    return tuple(each if isinstance(each, (int, float)) else log.cut(str(each), most) for each in args)


def _escaped(value: object) -> str:
    return str(value).replace("%", "%%")
