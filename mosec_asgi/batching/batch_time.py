"""How long a batch takes, as a line of what is in it: `a + b * amount`, learned while the stage serves. Pure.

The amount is the number of tasks, or what they cost together where the stage counts costs. Clipper and BentoML learn
such a line as well (Crankshaw et al., NSDI 2017; the regression of BentoML's dispatcher). Theirs is least squares over
the latest batches, which has two faults here: where all of these are of one size it says nothing, and one pause of the
machine bends it. So:

*Sizes are kept apart.* The latest `KEPT` batches are remembered of each class of amounts (1, 2 and 3, 4 to 7, ...), so
that a stage which has been busy for hours with large batches still knows what a small one takes. Each class gives one
point of the line, the mean of the middle half of its times (a trimmed mean: Huber, Robust Statistics, 1981): two pauses
among eight batches change nothing. A class of one or two batches has no middle. As a larger batch takes no less time,
and no more time for each unit, such a point may not lie above what the other points allow.

*The line* is that of least squares through these points, each as heavy as it has batches, with `a` and `b` not below
zero.

*What is not known is taken to be bad.* If there is one point only, `a` cannot be told from `b`. Then all of the time is
taken to depend on the amount, so that a larger batch is taken to be as slow as it can be. A batch that was allowed on
this assumption does what was predicted at worst, and gives the second point. No batch is more than `GROWTH` times as
large as any before it. So what is not known is found out by batches that lose nothing.

*Times scatter*: a prediction is what nine in ten batches take at most (`factor`), within bounds.

*Changes.* When the latest `RUN` batches of a class all take longer than all before them, or all less, by more than
`BEYOND`, the older times of all classes are scaled by as much: a machine that is throttled or shared becomes slower as
a whole. What is scaled is a guess, and guesses of guesses would lose themselves on a machine whose times are uneven. So
each stays within what the latest times allow: a larger batch takes no less, and no more for each unit.

*Old times.* A class of which none of the latest `RECENT` batches was says little: it may be from a bad time of the
machine, and if it kept batches small, it would never be measured again. It counts as one of few batches.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

# Batches that are remembered of each class of amounts, and how many classes there may be.
KEPT = 8
MOST_CLASSES = 48
# A batch is at most so many times as large as the largest before it.
GROWTH = 2.0
# A stage has changed where so many batches in a row lie beyond all before them by this factor.
RUN = 3
BEYOND = 1.25
# A class that was not seen in so many batches is old.
RECENT = 4 * KEPT
# The share of batches that take no longer than is predicted, and how far above the line a prediction may be.
USUAL = 0.9
MOST_FACTOR = 2.0
# A point of fewer batches may be wrong by a single one.
SURE = 3


class _Point(NamedTuple):
    """A point of the line: what batches of about one amount take, and how many of them there were."""

    amount: float
    seconds: float
    weight: int


class BatchTime:
    """What is known of the time of a stage's batches.

    Attributes:
        fixed: the seconds of a batch that do not depend on what is in it.
        per_unit: the seconds that each unit of its amount adds.
        factor: by which batches may take longer than that, as nine in ten do not.
        largest: the largest amount that was measured; 0 while nothing is known.
    """

    __slots__ = ("_classes", "_count", "_seen", "factor", "fixed", "largest", "per_unit")

    def __init__(self) -> None:
        self.fixed = self.per_unit = 0.0
        self.factor = 1.0
        self.largest = 0
        self._classes: dict[int, deque[tuple[int, float]]] = {}
        # How many batches were noted, and of each class how many had been when its latest was.
        self._count = 0
        self._seen: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<BatchTime {self.factor:.2f} * ({self.fixed:.6f} + {self.per_unit:.6f} * amount)>"

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.largest > 0

    def add(self, amount: int, seconds: float) -> None:
        """Note what a batch has taken.

        Args:
            amount: of what was in it, 1 at least.
            seconds: 0 at least.
        """
        number = min(amount.bit_length(), MOST_CLASSES)
        times = self._classes.get(number)
        if times is None:
            times = self._classes[number] = deque(maxlen=KEPT)
        times.append((amount, seconds))
        self._count += 1
        self._seen[number] = self._count
        self.largest = max(self.largest, amount)
        self._follow(times)
        self._fit()

    def of(self, amount: float) -> float:
        """Return the seconds that a batch of this amount takes at most, as nine in ten do; 0 while nothing is known."""
        return self.factor * (self.fixed + self.per_unit * amount)

    def within(self, seconds: float) -> float:
        """Return the largest amount of a batch that takes no longer; it may be below 1, and infinite."""
        left = seconds / self.factor - self.fixed
        if left <= 0.0:
            return 0.0
        return left / self.per_unit if self.per_unit else math.inf

    @property
    def growth(self) -> float:
        """The largest amount of which it is safe to learn what it takes: beyond, the line may not hold."""
        return max(1.0, GROWTH * self.largest)

    def _on_line(self, amount: float) -> float:
        return self.fixed + self.per_unit * amount

    def _follow(self, times: deque[tuple[int, float]]) -> None:
        """Scale the older times where the latest of a class say that the stage has become slower or faster."""
        if len(times) < 2 * RUN or self._on_line(1.0) <= 0.0:
            return
        ratios = [seconds / self._on_line(amount) for amount, seconds in times]
        before, latest = ratios[:-RUN], ratios[-RUN:]
        # One time among those before may stand alone.
        longest = sorted(before)[-2]
        if min(latest) <= BEYOND * longest and max(latest) * BEYOND >= min(before):
            return
        change = median(latest) / max(median(before), 1e-9)
        if change <= 0.0:
            return
        kept = list(times)[-RUN:]
        known, took = sum(amount for amount, _ in kept) / RUN, median(seconds for _, seconds in kept)
        for others in self._classes.values():
            scaled = [
                (amount, min(took * max(1.0, amount / known), max(took * min(1.0, amount / known), seconds * change)))
                for amount, seconds in others
            ]
            others.clear()
            others.extend(scaled)
        times.clear()
        times.extend(kept)

    def _fit(self) -> None:
        points = _plausible([self._point_of(number) for number in sorted(self._classes)])
        self.fixed, self.per_unit = _line(points)
        ratios = sorted(
            seconds / (self._on_line(amount) or math.inf)
            for number, times in self._classes.items()
            for amount, seconds in times
            if self._is_recent(number)
        )
        # One alone is chance.
        usual = ratios[min(max(0, len(ratios) - 2), int(USUAL * len(ratios)))] if len(ratios) > 1 else 1.0
        self.factor = min(MOST_FACTOR, max(1.0, usual))

    def _is_recent(self, number: int) -> bool:
        return self._count - self._seen[number] < RECENT

    def _point_of(self, number: int) -> _Point:
        point = self._point(self._classes[number])
        return point if self._is_recent(number) else point._replace(weight=min(point.weight, SURE - 1))

    def _point(self, times: Sequence[tuple[int, float]]) -> _Point:
        """Return the point of a class, without its slowest quarter and its quickest."""
        count = len(times)
        if count >= SURE:
            known = self._on_line(1.0) > 0.0
            ordered = sorted(times, key=lambda each: each[1] / (self._on_line(each[0]) if known else each[0]))
            cut = max(1, count // 4)
            times = ordered[cut : count - cut]
        size = len(times)
        return _Point(sum(amount for amount, _ in times) / size, sum(seconds for _, seconds in times) / size, count)


def _plausible(points: Sequence[_Point]) -> list[_Point]:
    """Return the points, in order of amount, with those of few batches where the others allow them to be."""
    found = []
    for place, point in enumerate(points):
        seconds = point.seconds
        if point.weight < SURE:
            # A larger batch takes no less, and a smaller one no less for each unit.
            above = (other.seconds for other in points[place + 1 :])
            below = (other.seconds * point.amount / other.amount for other in points[:place])
            seconds = min((seconds, *above, *below))
        found.append(point._replace(seconds=seconds))
    return found


def _line(points: Sequence[_Point]) -> tuple[float, float]:
    """Return `a` and `b` of the line of least squares, neither below zero; for one point, one through the origin."""
    weight = sum(point.weight for point in points)
    mean_amount = sum(point.weight * point.amount for point in points) / weight
    mean_seconds = sum(point.weight * point.seconds for point in points) / weight
    spread = sum(point.weight * (point.amount - mean_amount) ** 2 for point in points)
    if len(points) == 1 or spread <= 0.0:
        return 0.0, mean_seconds / mean_amount
    together = sum(point.weight * (point.amount - mean_amount) * (point.seconds - mean_seconds) for point in points)
    slope = max(0.0, together / spread)
    fixed = mean_seconds - slope * mean_amount
    if fixed < 0.0:
        squares = sum(point.weight * point.amount**2 for point in points)
        return 0.0, sum(point.weight * point.amount * point.seconds for point in points) / squares
    return fixed, slope
