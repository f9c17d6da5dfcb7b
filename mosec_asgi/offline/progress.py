"""How far a run has come, how fast it goes and how long it will take. Pure.

The rate is that of the last half a minute, as far as the run has lasted: a model that is slow on the first lines, or on
long ones, soon shows. Time left follows from units of the input (bytes, or rows), as nobody knows how many lines there
are.
"""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 30.0
STEP_SECONDS = 1.0


class Progress:
    """Counts.

    Attributes:
        total: units of the input; None where they are not known.
        units: how many of them are done, those of earlier runs included.
        lines: done by this run.
        failed: of these.
        before: lines that earlier runs have done.
    """

    def __init__(self, total: int | None, now: float = 0.0) -> None:
        """Begin.

        Args:
            total: units of the input; None where they are not known.
            now: seconds, of any clock.
        """
        self.total = total
        self.units = 0
        self.lines = 0
        self.failed = 0
        self.before = 0
        # Moments, and what was done then, by this run alone.
        self._marks: deque[tuple[float, int, int]] = deque([(now, 0, 0)])
        self._own = 0

    def start(self, now: float) -> None:
        """Begin to count time, once the models have loaded."""
        self._marks = deque([(now, self.lines, self._own)])

    def skip(self, units: int) -> None:
        """Note a line that an earlier run has done."""
        self.before += 1
        self.units += units

    def advance(self, units: int, now: float, *, failed: bool = False) -> None:
        """Note a line that is done."""
        self.lines += 1
        self.failed += failed
        self.units += units
        self._own += units
        if now - self._marks[-1][0] >= STEP_SECONDS:
            self._marks.append((now, self.lines, self._own))
            while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_SECONDS:
                self._marks.popleft()

    def rate(self, now: float) -> float:
        """Return lines in a second."""
        then, lines, _ = self._marks[0]
        return (self.lines - lines) / (now - then) if now > then else 0.0

    def left(self, now: float) -> float | None:
        """Return the seconds until the end; None where nobody can tell."""
        then, _, units = self._marks[0]
        if self.total is None or now <= then or self._own <= units:
            return None
        return max(0, self.total - self.units) * (now - then) / (self._own - units)

    def share(self) -> float | None:
        """Return the part that is done, from 0 to 1; None where nobody can tell."""
        return None if self.total is None else min(1.0, self.units / self.total) if self.total else 1.0

    def text(self, now: float) -> str:
        """Return it all in words."""
        failed = f" ({self.failed:,} failed)" if self.failed else ""
        share, left = self.share(), self.left(now)
        parts = [] if share is None else [f"{share:.0%}"]
        parts += [f"{counted(self.before + self.lines)}{failed}", f"{self.rate(now):,.0f} lines/s"]
        parts += [] if left is None else [f"{duration(left)} left"]
        return ", ".join(parts)


def counted(lines: int) -> str:
    """Return a number of lines in words."""
    return f"{lines:,} line" if lines == 1 else f"{lines:,} lines"


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
