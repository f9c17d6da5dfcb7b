"""The last minutes of a service, a point a second, for whoever looks at it now. Pure: time comes in.

What it keeps is bounded: `MOST_POINTS` of them, and fewer where a service has very many stages.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, NamedTuple

from mosec_asgi.observing.changes import Change, ServiceChange, StageChange, change
from mosec_asgi.observing.statistics import ServiceReport

# Seconds between two points.
INTERVAL = 1.0
# Points that are kept, and numbers in all of them together: to send all of these must not hold up other requests.
MOST_POINTS = 900
MOST_NUMBERS = 150_000
# Points over which percentiles and means are taken.
WINDOW = 5
# Digits of a number that is shown.
DIGITS = 4


_Numbers = tuple[float | None, ...]


class _Point(NamedTuple):
    """A second, with its numbers as they are sent, so that nothing is left to do then."""

    time: float
    service: _Numbers
    stages: tuple[_Numbers, ...]


class History:
    """The last points of a service.

    Attributes:
        added: points that were ever added; the number of the next one.
        latest: what happened in the last interval; None before the second report.
    """

    def __init__(self, stages: int) -> None:
        """Begin with nothing; `stages` is how many the service has."""
        numbers = 1 + len(ServiceChange._fields) + stages * len(StageChange._fields)
        self._points: deque[_Point] = deque(maxlen=max(WINDOW, min(MOST_POINTS, MOST_NUMBERS // numbers)))
        # The reports of the window, the oldest first, and when each was made.
        self._reports: deque[tuple[float, ServiceReport]] = deque(maxlen=WINDOW + 1)
        self.added = 0
        self.latest: Change | None = None

    def due(self, now: float) -> bool:
        """Whether it is time for another report."""
        return not self._reports or now - self._reports[-1][0] >= INTERVAL

    def add(self, report: ServiceReport, now: float, time: float) -> None:
        """Add a point: what happened since the last report.

        Args:
            report: how the service stands.
            now: when it was made, in seconds of a clock that only grows.
            time: the same as a date, in seconds since 1970.
        """
        if self._reports:
            last, before = self._reports[-1]
            if now <= last:
                return
            self.latest = change(report, before, now - last, self._reports[0][1])
            stages = tuple(map(_shortened, self.latest.stages))
            self._points.append(_Point(round(time, 3), _shortened(self.latest.service), stages))
            self.added += 1
        self._reports.append((now, report))

    def columns(self, after: int = 0) -> dict[str, Any]:
        """Return the points from number `after` on, those that are still kept, as columns of numbers.

        Returns:
            `first` and `next`: the number of the first of them, and of the first that there is not yet; `times`, in
            seconds since 1970; `service`: columns by the names in `ServiceChange`; `stages`: for each stage its columns
            by the names in `StageChange`.
        """
        first = max(self.added - len(self._points), after)
        skipped = len(self._points) - (self.added - first)
        points = list(islice(self._points, skipped, None)) if first < self.added else []
        stages = max((len(point.stages) for point in points), default=0)
        return {
            "first": first,
            "next": self.added,
            "times": [point.time for point in points],
            "service": _columns(ServiceChange._fields, [point.service for point in points]),
            "stages": [
                _columns(StageChange._fields, [_at(point.stages, place) for point in points]) for place in range(stages)
            ],
        }


def _at(stages: tuple[_Numbers, ...], place: int) -> _Numbers:
    # While a service starts, it may not have its stages yet.
    return stages[place] if place < len(stages) else (None,) * len(StageChange._fields)


def _columns(names: tuple[str, ...], rows: list[_Numbers]) -> dict[str, list[float | None]]:
    columns = map(list, zip(*rows, strict=True)) if rows else ([] for _ in names)
    return dict(zip(names, columns, strict=True))


def _shortened(values: _Numbers) -> _Numbers:
    """Return numbers with as many digits as anybody looks at."""
    return tuple(float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for value in values)
