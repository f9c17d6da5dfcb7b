"""Two tenants, of which one sends ten times as much: what the light one feels of the heavy one.

The service's own coordinator, with admission, queue and scheduler, serves random arrivals (open loop, Poisson) on
virtual time (`overload.world`). The light tenant's p99 is that of the same calls, which take the same time, without the
heavy one (*alone*), beside it (*ours*), beside it where nobody is told which tenant a call belongs to (*FIFO*), and as
good as any order could make it (*best*, see `priority`). It is to be at most `BAR` times that of alone, or `NEAR` times
the best: then what it waits for is what runs already. None of its calls may be refused.

And two tenants of the weights 3 and 1 that both ask for more than there is are to be answered in that proportion.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from overload.cases import poisson
from overload.world import Arrival, History, SimulatedStage, World

from mosec_asgi.batching.policy.rules import Rules
from policies import patterns, priority

LOADS = (0.55, 0.8, 0.95, 1.5)
HEAVIER = 10
# Of the load alone, and of the best that is possible.
BAR, NEAR = 1.5, 1.1
WEIGHT, WITHIN = 3.0, 0.1
# Of what there is, that each of the two tenants of unequal weights asks for.
ASKED = 1.5
SECONDS = 0.02
TIMEOUT = 2.0
# Calls of the light tenant, and those that are answered in proportion to the weights.
CALLS, SHARED_CALLS = 1200, 2000
# Of a run, how much is not counted at its beginning.
WARM_UP = 0.1
# Of a run, how much is enough where nothing is judged by it.
FIFO_PART = 0.2
# The route by which calls of the light tenant are known again.
LIGHT = 1
WAYS = ("alone", "ours", "fifo", "best")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where calls run.

    Attributes:
        workers, concurrency, batch: of the stage.
        fixed, per_call: seconds of a batch and of each call in it.
    """

    workers: int = 1
    concurrency: int = 1
    batch: int = 1
    fixed: float = SECONDS
    per_call: float = 0.0

    @property
    def slots(self) -> int:
        """Batches that run at a time."""
        return self.workers * self.concurrency

    @property
    def capacity(self) -> float:
        """Calls a second at most."""
        return self.slots * self.batch / (self.fixed + self.per_call * self.batch)


LAYOUTS: Mapping[str, Layout] = {
    "one worker": Layout(),
    "8 workers": Layout(workers=8),
    "16 slots": Layout(concurrency=16),
    "batches of 16": Layout(batch=16, fixed=0.005, per_call=0.001),
}
TIMES: Mapping[str, Callable[[Random], float]] = {
    "constant": patterns.constant,
    "exponential": lambda chance: chance.expovariate(1.0),
    "pareto": patterns.pareto,
}


@dataclass(frozen=True, slots=True)
class Row:
    """The light tenant's p99 at a load, in seconds.

    Attributes:
        layout, times: the names of where calls run, and of how long they take.
        load: of both tenants, in relation to what there is.
        alone, ours, fifo, best: see above.
        answered: the share of the light tenant's calls, beside the heavy one, that were answered well.
    """

    layout: str
    times: str
    load: float
    alone: float
    ours: float
    fifo: float
    best: float
    answered: float

    @property
    def verdict(self) -> str:
        """What it is held to: to itself alone, or to what is possible; or that it is neither."""
        if self.answered < 1.0:
            return "REFUSED"
        if self.ours <= BAR * self.alone:
            return f"<= {BAR:g} x alone"
        return f"<= {NEAR:g} x best" if self.ours <= NEAR * self.best else "MISSED"

    @property
    def holds(self) -> bool:
        """Whether it is well."""
        return self.verdict.startswith("<=")


@dataclass(frozen=True, slots=True)
class Share:
    """What two tenants got that both ask for more than there is.

    Attributes:
        layout, times: see `Row`.
        ratio: of the answers to the one of the greater weight to those of the other.
        done: answers, as a share of what there is.
    """

    layout: str
    times: str
    ratio: float
    done: float

    @property
    def holds(self) -> bool:
        """Whether they got what their weights say."""
        return abs(self.ratio / WEIGHT - 1.0) <= WITHIN


class _World(World):
    """Calls take the same time whatever comes beside them."""

    def begin(self, ids: Sequence[int]) -> Random:
        """Note that a worker begins calls; return the chance that decides how long it takes."""
        super().begin(ids)
        return _chance(self.history.answers[ids[0]].call.at)


def _chance(at: float) -> Random:
    return Random(hash(at))


def p99(latencies: Sequence[float]) -> float:
    """Return the 99th percentile, without those of the beginning."""
    counted = sorted(latencies[int(WARM_UP * len(latencies)) :])
    return counted[int(0.99 * len(counted))]


def _stage(layout: Layout, times: str, weights: Mapping[str, float] | None = None) -> SimulatedStage:
    draw = TIMES[times]
    return SimulatedStage(
        lambda chance, items, now: draw(chance) * (layout.fixed + layout.per_call * items),
        num=layout.workers,
        concurrency=layout.concurrency,
        batch=layout.batch,
        rules=Rules(weights=weights or {}),
    )


def _arrivals(rates: Sequence[float], seconds: float, names: Sequence[str]) -> list[Arrival]:
    """Return the calls of tenants, each on a route of its own, by which they are known again."""
    calls = [
        replace(call, tenant=names[route])
        for route, rate in enumerate(rates)
        if rate
        for call in poisson(rate, seconds, 11 + route, route)
    ]
    return sorted(calls, key=lambda call: call.at)


def _run(stage: SimulatedStage, calls: Sequence[Arrival]) -> History:
    return _World([stage], [[0], [0]], timeout=TIMEOUT, seed=3).run(calls)


def _latencies(history: History) -> list[float]:
    """Return those of the light tenant that were answered well."""
    return [answer.latency for answer in history.answers if answer.call.route == LIGHT and answer.code == 200]


def row(layout_name: str, times: str, load: float, calls: int = CALLS) -> Row:
    """Return the light tenant's p99 in each way."""
    layout = LAYOUTS[layout_name]
    light = load * layout.capacity / (1 + HEAVIER)
    seconds = calls / light
    both, names = (HEAVIER * light, light), ("heavy", "light")
    stage = _stage(layout, times)
    alone = _run(stage, _arrivals((0.0, light), seconds, names))
    arrivals = _arrivals(both, seconds, names)
    ours = _run(stage, arrivals)
    fifo = _run(stage, _arrivals(both, FIFO_PART * seconds, ("", "")))
    lights = [answer for answer in ours.answers if answer.call.route == LIGHT]
    return Row(
        layout_name,
        times,
        load,
        p99(_latencies(alone)),
        p99(_latencies(ours)),
        p99(_latencies(fifo)),
        _best(layout, times, arrivals, ours.good_in(0.0, arrivals[-1].at)),
        sum(answer.code == 200 for answer in lights) / len(lights),
    )


def _best(layout: Layout, times: str, arrivals: Sequence[Arrival], done: float) -> float:
    draw = cache(lambda at: TIMES[times](_chance(at)))
    found = priority.best(
        [priority.Offered(call.at, call.route == LIGHT) for call in arrivals],
        layout.slots,
        layout.batch,
        lambda first, count: draw(first.at) * (layout.fixed + layout.per_call * count),
        done,
        p99,
    )
    return p99(found.latencies)


def share(layout_name: str, times: str, calls: int = SHARED_CALLS) -> Share:
    """Return what tenants get whose weights are unequal."""
    layout = LAYOUTS[layout_name]
    # At first more is admitted than can be done in time, until it is known how much that is.
    begin = 4 * TIMEOUT
    rate, seconds = ASKED * layout.capacity, begin + calls / layout.capacity
    stage = _stage(layout, times, {"gold": WEIGHT})
    history = _run(stage, _arrivals((rate, rate), seconds, ("gold", "free")))
    gold, free = (
        sum(
            each.code == 200 and each.call.route == route and begin <= each.call.at + each.latency < seconds
            for each in history.answers
        )
        for route in (0, 1)
    )
    return Share(layout_name, times, gold / max(1, free), (gold + free) / (layout.capacity * (seconds - begin)))


def cases() -> list[tuple[str, str]]:
    """Return what is tried: each layout with each kind of times; what a batch takes follows from its size."""
    return [(name, times) for name in LAYOUTS for times in TIMES if LAYOUTS[name].batch == 1 or times == "constant"]


def rows(processes: int | None = None) -> tuple[list[Row], list[Share]]:
    """Return all loads, and all shares."""
    with multiprocessing.Pool(processes) as pool:
        shares = pool.starmap_async(share, cases(), chunksize=1)
        found = pool.starmap(row, [(*case, load) for case in cases() for load in LOADS], chunksize=1)
        return found, shares.get()


def holds(rows: Sequence[Row], shares: Sequence[Share]) -> bool:
    """Whether all is as it should be."""
    return all(row.holds for row in rows) and all(share.holds for share in shares)


def text(rows: Sequence[Row], shares: Sequence[Share]) -> str:
    """Return the tables to read."""
    lines = [f"two tenants, one sends {HEAVIER} times as much: the light one's p99 in ms"]
    head = f"{'load':>5}  {'alone':>7}  {'ours':>7}  {'FIFO':>7}  {'best':>7}  {'/ alone':>7}  {'/ best':>6}"
    lines.append(f"{'':28}{head}")
    for each in rows:
        times = (f"{1000 * value:7.1f}" for value in (each.alone, each.ours, each.fifo, each.best))
        ratios = f"{each.ours / each.alone:7.2f}  {each.ours / each.best:6.2f}"
        lines.append(
            f"{f'{each.layout}, {each.times}':28}{each.load:5g}  {'  '.join(times)}  {ratios}  {each.verdict}"
            + (f", {1 - each.answered:.2%} of its calls" if each.answered < 1.0 else "")
        )
    lines += ["", f"weights 3 : 1, each asks for {ASKED:g} times what there is: the ratio of their answers"]
    for part in shares:
        verdict = "" if part.holds else "  MISSED"
        name = f"{part.layout}, {part.times}"
        lines.append(f"{name:28}{part.ratio:5.2f}  {part.done:4.0%} of what there is{verdict}")
    return "\n".join(lines)


def numbers(rows: Sequence[Row], shares: Sequence[Share]) -> dict[str, object]:
    """Return the data to keep: p99 in ms."""
    return {
        "bar": BAR,
        "near": NEAR,
        "rows": [
            {
                "layout": each.layout,
                "times": each.times,
                "load": each.load,
                **{
                    name: round(1000 * value, 2)
                    for name, value in zip(WAYS, (each.alone, each.ours, each.fifo, each.best), strict=True)
                },
                "answered": round(each.answered, 4),
                "verdict": each.verdict,
            }
            for each in rows
        ],
        "weights": [
            {
                "layout": each.layout,
                "times": each.times,
                "ratio": round(each.ratio, 3),
                "done": round(each.done, 3),
            }
            for each in shares
        ],
    }
