"""How values are spread: a histogram at one moment, and what can be read from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many values lay between which bounds.

    Attributes:
        bounds: the upper bounds, rising; a value belongs to the first bound that is not below it.
        counts: how many values belong to each bound, and as the last of them, how many lay above all bounds.
        total: the sum of the values.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total: float = 0.0

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The mean of the values; None without any."""
        count = self.count
        return self.total / count if count else None

    def quantile(self, share: float) -> float | None:
        """Return the value below which a share of the values lies, as Prometheus' `histogram_quantile` estimates it.

        Within two bounds the values are taken to be spread evenly. What lies above all bounds is taken for the last
        bound, so that the true value may be larger.

        Args:
            share: from 0 to 1.

        Returns:
            the value, or None without any values.
        """
        rank = share * self.count
        if not self.count:
            return None
        below, lower = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * max(rank - below, 0.0) / count
            below, lower = below + count, bound
        return lower

    def since(self, earlier: Distribution) -> Distribution:
        """Return what has been added since an earlier moment; all of it where that is of other bounds, or of more."""
        if earlier.bounds != self.bounds:
            return self
        counts = tuple(now - before for now, before in zip(self.counts, earlier.counts, strict=True))
        # It was begun anew.
        return self if min(counts) < 0 else Distribution(self.bounds, counts, self.total - earlier.total)

    def __add__(self, other: Distribution) -> Distribution:
        """Return both together; their bounds must be the same, or one of them without any."""
        if not other.bounds or not self.bounds:
            return self if self.bounds else other
        if self.bounds != other.bounds:
            raise ValueError("two distributions of different bounds cannot be added")
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return Distribution(self.bounds, counts, self.total + other.total)


# Of nothing.
EMPTY = Distribution()
