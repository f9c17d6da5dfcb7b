"""What came out: pairs of measurements, the ratio of each, and the median of the ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from load import Measurement
from scenarios import Scenario

MEASURED = ("per_second", "p50_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class Pair:
    """Both servers under the same load, one right after the other."""

    theirs: Measurement
    ours: Measurement


@dataclass(frozen=True, slots=True)
class Result:
    """All pairs of a scenario, a pair for each round.

    The ratio is formed within a pair, and then the median is taken: what else goes on on a machine changes from minute
    to minute and hits both halves of a pair alike. More is better for ours, of latencies too: theirs / ours.
    """

    scenario: Scenario
    pairs: Sequence[Pair]

    @property
    def ratios(self) -> list[float]:
        """One ratio a round."""
        return [self._ratio(pair) for pair in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def meets_bar(self) -> bool | None:
        """Whether the ratio reaches the bar; None where there is no bar."""
        return None if self.scenario.bar is None else self.ratio >= self.scenario.bar

    def theirs(self, measured: str) -> float:
        """Return the median over the rounds of what was measured of theirs: one of `MEASURED`."""
        return float(median(getattr(pair.theirs, measured) for pair in self.pairs))

    def ours(self, measured: str) -> float:
        """Return the same of ours."""
        return float(median(getattr(pair.ours, measured) for pair in self.pairs))

    def as_json(self) -> dict[str, Any]:
        """Return the numbers of every round, and what is read from them."""
        scenario = self.scenario
        return {
            "name": scenario.name,
            "title": scenario.title,
            "connections": scenario.connections,
            "unit": scenario.load.unit,
            "measure": scenario.measure,
            "theirs": scenario.rival,
            "bar": scenario.bar,
            "ratio": round(self.ratio, 3),
            "meets_bar": self.meets_bar,
            "rounds": {
                "ratio": [round(ratio, 3) for ratio in self.ratios],
                "theirs": {name: [getattr(pair.theirs, name) for pair in self.pairs] for name in MEASURED},
                "ours": {name: [getattr(pair.ours, name) for pair in self.pairs] for name in MEASURED},
            },
        }

    def _ratio(self, pair: Pair) -> float:
        throughput, latency = pair.ours.per_second / pair.theirs.per_second, pair.theirs.p50_ms / pair.ours.p50_ms
        return {"throughput": throughput, "latency": latency, "both": min(throughput, latency)}[self.scenario.measure]
