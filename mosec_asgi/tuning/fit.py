"""A line through measurements: the time of a batch as fixed + slope * x, where x is its items, or what they cost. Pure.

Weighted least squares on relative residuals, reweighted by Tukey's bisquare (Beaton and Tukey, Technometrics 16(2),
1974), from a start that half of the measurements cannot move: the Theil-Sen line (Sen, JASA 63, 1968) through the
median at each x. Times are never negative: neither the fixed part nor the slope is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

# Tukey's constant: 95 % of the efficiency of least squares where the noise is normal.
_TUNING = 4.685
# From a median of absolute residuals to a standard deviation, where the noise is normal.
_TO_DEVIATION = 1.4826
_ROUNDS = 30
# Relative: measurements that agree better than that are taken for equally good.
_LEAST_SCALE = 1e-4
_LEAST_SECONDS = 1e-9
# A line that misses the median at some x by more than this share is said to be a poor one.
POOR = 0.15
# The same, where half of all measurements miss the line by more than this share.
SCATTERED = 0.3


class Point(NamedTuple):
    """A measurement.

    Attributes:
        x: items in the batch, or what they cost.
        seconds: that the batch took.
    """

    x: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """The time of a batch.

    Attributes:
        fixed: seconds of any batch.
        slope: seconds for each unit of x.
        error: the median of how far measurements lie from the line, as a share of it.
        worst: the largest of how far the median at an x lies from the line, as a share of it.
        worst_at: that x.
        points: measurements.
    """

    fixed: float
    slope: float
    error: float = 0.0
    worst: float = 0.0
    worst_at: float = 0.0
    points: int = 0

    def at(self, x: float) -> float:
        """Return the seconds of a batch."""
        return self.fixed + self.slope * x

    @property
    def is_poor(self) -> bool:
        """Whether the time is no line, or was not measured well."""
        return self.worst > POOR

    @property
    def scatters(self) -> bool:
        """Whether batches of the same size take so different times that a line says little of a slow one."""
        return self.error > SCATTERED


def fitted(points: Sequence[Point]) -> Line:
    """Return the line through measurements.

    Args:
        points: at least one; with a single x, all of the time is taken for fixed.

    Raises:
        ValueError: there is none.
    """
    if not points:
        raise ValueError("there is no measurement to fit")
    medians = _medians(points)
    fixed, slope = _start(medians)
    if len(medians) > 1:
        for _ in range(_ROUNDS):
            weights = _weights(points, fixed, slope)
            if weights is None:
                break
            after = _least_squares(points, weights)
            done = abs(after[0] - fixed) + abs(after[1] - slope) <= 1e-9 * (fixed + slope)
            fixed, slope = after
            if done:
                break
    error = median(abs(_residual(point, fixed, slope)) for point in points)
    worst = max(medians, key=lambda point: abs(_residual(point, fixed, slope)))
    return Line(fixed, slope, error, abs(_residual(worst, fixed, slope)), worst.x, len(points))


def _medians(points: Sequence[Point]) -> list[Point]:
    ordered = sorted(points)
    return [
        Point(x, median(point.seconds for point in group))
        for x, group in itertools.groupby(ordered, key=lambda point: point.x)
    ]


def _start(medians: Sequence[Point]) -> tuple[float, float]:
    """Return the Theil-Sen line."""
    slopes = [(right.seconds - left.seconds) / (right.x - left.x) for left, right in itertools.combinations(medians, 2)]
    slope = max(0.0, median(slopes)) if slopes else 0.0
    return max(0.0, median(point.seconds - slope * point.x for point in medians)), slope


def _residual(point: Point, fixed: float, slope: float) -> float:
    expected = max(fixed + slope * point.x, _LEAST_SECONDS)
    return (point.seconds - expected) / expected


def _weights(points: Sequence[Point], fixed: float, slope: float) -> list[float] | None:
    """Return how much each measurement counts; None where too few would count."""
    residuals = [_residual(point, fixed, slope) for point in points]
    scale = max(_TO_DEVIATION * median(map(abs, residuals)), _LEAST_SCALE) * _TUNING
    weights = [
        (1 - (residual / scale) ** 2) ** 2 / max(fixed + slope * point.x, _LEAST_SECONDS) ** 2
        if abs(residual) < scale
        else 0.0
        for point, residual in zip(points, residuals, strict=True)
    ]
    counting = {point.x for point, weight in zip(points, weights, strict=True) if weight}
    return weights if len(counting) > 1 else None


def _least_squares(points: Sequence[Point], weights: Sequence[float]) -> tuple[float, float]:
    total = sum(weights)
    mean_x = sum(weight * point.x for point, weight in zip(points, weights, strict=True)) / total
    mean = sum(weight * point.seconds for point, weight in zip(points, weights, strict=True)) / total
    spread = sum(weight * (point.x - mean_x) ** 2 for point, weight in zip(points, weights, strict=True))
    if spread <= 0.0:
        return mean, 0.0
    slope = (
        sum(weight * (point.x - mean_x) * (point.seconds - mean) for point, weight in zip(points, weights, strict=True))
        / spread
    )
    if slope < 0.0:
        return mean, 0.0
    fixed = mean - slope * mean_x
    if fixed < 0.0:
        # Through the origin.
        squares = sum(weight * point.x**2 for point, weight in zip(points, weights, strict=True))
        crossed = sum(weight * point.x * point.seconds for point, weight in zip(points, weights, strict=True))
        return 0.0, crossed / squares
    return fixed, slope
