"""What must hold while a service is attacked, as a function of what was measured. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# How much longer the honest client may wait, as it is asked for: p99 during the attack by p99 before and after.
TIMES = 2.0
# What a service may hold during an attack beyond what it held before, in bytes, all processes together: the budget for
# bodies (64 MB), once more for a worker that reads one of them, and the buffers of connections.
GROWTH = 200_000_000
# What it may hold more afterwards: the allocators' holes, above all of workers that have read a large body.
LEFT = 64_000_000


@dataclass(frozen=True, slots=True)
class Held:
    """What the processes of a service hold at one moment.

    Attributes:
        memory: resident bytes, of all of them.
        descriptors: of all of them.
        workers: the processes beside the server itself.
    """

    memory: int
    descriptors: int
    workers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Latencies:
    """What the honest client has measured in a time.

    Attributes:
        seconds: of each request that was answered 200, from when it was due.
        failures: what came instead of a 200, and how often.
    """

    seconds: Sequence[float]
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def p99(self) -> float:
        """The 99th percentile in seconds."""
        if len(self.seconds) < 2:
            return float("inf")
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[98]

    def __add__(self, other: Latencies) -> Latencies:
        names = {*self.failures, *other.failures}
        failures = {name: self.failures.get(name, 0) + other.failures.get(name, 0) for name in names}
        return Latencies([*self.seconds, *other.seconds], failures)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen of an attack.

    Attributes:
        usual: the honest client, before and after.
        during: the same meanwhile.
        beside: an honest client of the same service that nobody attacks, meanwhile.
        before: what the service held before.
        peak: resident bytes that it held at most.
        after: what it held in the end, when it had been given time to come to rest.
        answers: whether the service was answering right afterwards.
        log: lines of the log that tell of a fault of the service.
        done: what the attackers did, and how often.
        problems: what the attackers saw and should not have, and how often.
    """

    usual: Latencies
    during: Latencies
    beside: Latencies
    before: Held
    peak: int
    after: Held
    answers: bool
    log: Sequence[str]
    done: Mapping[str, int]
    problems: Mapping[str, int]


def broken(measured: Measured) -> list[str]:
    """Return how a promise was broken; nothing where all were kept."""
    faults = [f"{what} ({count} times)" for what, count in measured.problems.items()]
    faults += [f"the honest client: {what} ({count} times)" for what, count in measured.during.failures.items()]
    if is_slow(measured):
        usual, beside, during = (each.p99 * 1000 for each in (measured.usual, measured.beside, measured.during))
        faults.append(
            f"the honest client's p99 was {during:.1f} ms, and is {usual:.1f} ms else; where nobody attacked, it was "
            f"{beside:.1f} ms"
        )
    grown = measured.peak - measured.before.memory
    if grown > GROWTH:
        faults.append(f"the service held {grown / 1e6:.0f} MB more, and {GROWTH / 1e6:.0f} are allowed")
    left = measured.after.memory - measured.before.memory
    if left > LEFT:
        faults.append(f"{left / 1e6:.0f} MB more are held afterwards, and {LEFT / 1e6:.0f} are allowed")
    descriptors = measured.after.descriptors - measured.before.descriptors
    if descriptors > 0:
        faults.append(f"{descriptors} descriptors more are open afterwards")
    if measured.after.workers != measured.before.workers:
        faults.append("a worker was replaced")
    if not measured.answers:
        faults.append("the service does not answer afterwards")
    faults += [f"in the log: {line}" for line in measured.log]
    if not sum(measured.done.values()):
        faults.append("the attackers did nothing")
    return faults


def is_slow(measured: Measured) -> bool:
    """Whether the honest client had to wait too long, and not because of the machine, which others use as well."""
    return measured.during.p99 > TIMES * max(measured.usual.p99, measured.beside.p99)
