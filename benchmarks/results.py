"""What came out: pairs of measurements, the ratio of each, and the median of the ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cost import Cost
from load import Measurement
from scenarios import Scenario

MEASURED = ("per_second", "p50_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class Side:
    """One server in one round.

    Attributes:
        measurement: what the clients saw.
        cost: what a request took of the processors, where that is known.
        others: how many processors other programs kept busy meanwhile, where that is known.
    """

    measurement: Measurement
    cost: Cost | None = None
    others: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Both servers under the same load, one right after the other."""

    theirs: Side
    ours: Side


@dataclass(frozen=True, slots=True)
class MedianCost:
    """What a request costs over all rounds, in microseconds: each number a median of its own, the total too."""

    server: float
    workers: float
    total: float


def median_cost(sides: Sequence[Side]) -> MedianCost | None:
    """Return the medians over the rounds of one server; None where the cost is not known."""
    costs = [side.cost for side in sides if side.cost is not None]
    if not costs:
        return None
    names = ("server", "workers", "total")
    return MedianCost(*(round(median(getattr(cost, name) for cost in costs), 2) for name in names))


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
        return float(median(getattr(pair.theirs.measurement, measured) for pair in self.pairs))

    def ours(self, measured: str) -> float:
        """Return the same of ours."""
        return float(median(getattr(pair.ours.measurement, measured) for pair in self.pairs))

    @property
    def theirs_cost(self) -> MedianCost | None:
        """What a request costs on theirs."""
        return median_cost([pair.theirs for pair in self.pairs])

    @property
    def ours_cost(self) -> MedianCost | None:
        """What a request costs on ours."""
        return median_cost([pair.ours for pair in self.pairs])

    @property
    def others(self) -> float | None:
        """How many processors other programs kept busy meanwhile: the median of all measurements."""
        sides = [side for pair in self.pairs for side in (pair.theirs, pair.ours)]
        known = [side.others for side in sides if side.others is not None]
        return round(median(known), 3) if known else None

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
            "cost_us": {
                "theirs": asdict(self.theirs_cost) if self.theirs_cost else None,
                "ours": asdict(self.ours_cost) if self.ours_cost else None,
            },
            "rounds": {
                "ratio": [round(ratio, 3) for ratio in self.ratios],
                "theirs": _rounds([pair.theirs for pair in self.pairs]),
                "ours": _rounds([pair.ours for pair in self.pairs]),
            },
        }

    def _ratio(self, pair: Pair) -> float:
        ours, theirs = pair.ours.measurement, pair.theirs.measurement
        throughput, latency = ours.per_second / theirs.per_second, theirs.p50_ms / ours.p50_ms
        return {"throughput": throughput, "latency": latency, "both": min(throughput, latency)}[self.scenario.measure]


def _rounds(sides: Sequence[Side]) -> dict[str, list[float]]:
    """Return the numbers of one server, those of a kind in a list."""
    rounds = {name: [getattr(side.measurement, name) for side in sides] for name in MEASURED}
    if costs := [side.cost for side in sides if side.cost is not None]:
        rounds["server_us"] = [cost.server for cost in costs]
        rounds["workers_us"] = [cost.workers for cost in costs]
    if others := [side.others for side in sides if side.others is not None]:
        rounds["others"] = others
    return rounds
