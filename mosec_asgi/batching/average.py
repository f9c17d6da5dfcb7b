"""An exponentially weighted moving average: the newest measurement has a fixed weight. Pure."""

from __future__ import annotations


class MovingAverage:
    """An average that follows what is measured.

    Attributes:
        value: the average; None while nothing has been measured.
    """

    __slots__ = ("_weight", "value")

    def __init__(self, weight: float) -> None:
        """Begin with nothing measured.

        Args:
            weight: of the newest measurement, from 0 to 1.
        """
        self.value: float | None = None
        self._weight = weight

    def add(self, measured: float) -> float:
        """Take in a measurement and return the average."""
        before = self.value
        self.value = value = measured if before is None else before + self._weight * (measured - before)
        return value
