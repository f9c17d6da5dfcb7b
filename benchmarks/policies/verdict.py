"""Who is on the frontier of throughput and p99 latency.

A policy is **beaten** in a pattern where another one is clearly better in throughput or p99 and loses nothing in the
other: 5 % more tasks a second or 10 % less p99 are clear, and 2 % are nothing. Where nobody beats it, it is on the
frontier. The two that are ours are not compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from policies.patterns import Pattern
from policies.simulation import Outcome

CLEARLY_MORE = 1.05
CLEARLY_LESS = 0.9
NOTHING = 0.02
OURS = "ours"

Outcomes = Mapping[str, Outcome]


@dataclass(frozen=True, slots=True)
class Beaten:
    """One pattern in which a policy is beaten.

    Attributes:
        pattern: which.
        by: the policy that does so by most.
        throughput: its throughput / that of the beaten one.
        p99: its p99 latency / that of the beaten one.
    """

    pattern: Pattern
    by: str
    throughput: float
    p99: float

    @property
    def margin(self) -> float:
        """By how much: the larger of the two ratios, with more being worse."""
        return max(self.throughput, 1 / self.p99)


def rivals_of(policy: str, names: Iterable[str]) -> list[str]:
    """Return those with which a policy is compared."""
    return [name for name in names if name != policy and not (is_ours(name) and is_ours(policy))]


def is_ours(name: str) -> bool:
    """Whether a policy is one of the package's own."""
    return name.startswith(OURS)


def beaten(policy: str, pattern: Pattern, outcomes: Outcomes, rivals: Iterable[str]) -> Beaten | None:
    """Return by whom a policy is beaten, or None where it is on the frontier."""
    mine = outcomes[policy]
    found = []
    for rival in rivals:
        theirs = outcomes[rival]
        throughput, p99 = theirs.per_second / mine.per_second, theirs.p99 / mine.p99
        loses_nothing = throughput >= 1 - NOTHING and p99 <= 1 + NOTHING
        if loses_nothing and (throughput > CLEARLY_MORE or p99 < CLEARLY_LESS):
            found.append(Beaten(pattern, rival, throughput, p99))
    return max(found, key=lambda each: each.margin, default=None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one policy over all patterns.

    Attributes:
        policy: which.
        rivals: those that it was compared with.
        patterns: how many patterns there are.
        beaten: where it is not on the frontier, the worst first.
        throughput: the median of its throughput / the best of all.
        p99: the median of its p99 latency / the best of all.
    """

    policy: str
    rivals: Sequence[str]
    patterns: int
    beaten: Sequence[Beaten]
    throughput: float
    p99: float

    @property
    def on_frontier(self) -> int:
        """In how many patterns it is on the frontier."""
        return self.patterns - len(self.beaten)


def judge(policy: str, results: Mapping[Pattern, Outcomes], rivals: Sequence[str]) -> Verdict:
    """Compare a policy with its rivals in every pattern."""
    found = [beaten(policy, pattern, outcomes, rivals) for pattern, outcomes in results.items()]
    return Verdict(
        policy,
        rivals,
        len(results),
        sorted((each for each in found if each), key=lambda each: -each.margin),
        median(each[policy].per_second / max(one.per_second for one in each.values()) for each in results.values()),
        median(each[policy].p99 / min(one.p99 for one in each.values()) for each in results.values()),
    )
