"""A latency target under rising load: what each policy makes of it.

A model of 5 ms a batch and 1 ms an item, a target of 50 ms. What is possible at that target is taken from a sweep: the
highest load at which some fixed bound on the size of batches, with or without a wait for them to fill, keeps p99 at the
target. A policy has no such sweep to go by, only the target.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from policies.ours import Ours
from policies.patterns import Open, Pattern, Service
from policies.rivals import BentoML, Clipper, Triton
from policies.simulation import Outcome, Policy, Run, middle

SERVICE = Service("model 5 ms + 1", 0.005, 0.001)
TARGET = 0.05
BATCH = 128
WORKERS = (1, 2, 4)
# Tasks a second for each worker: of full batches it does 962.
RATES = (100, 300, 500, 600, 640, 680, 700, 720, 740, 760, 780, 800, 850, 900)
SIZES = (8, 12, 16, 20, 24, 32, 45, 64, 128)
WAITS = (None, 0.01)
TASKS = 5000
SEEDS = 2
# By how much p99 may lie above the target, and up to which part of what is possible.
NEARLY = 1.3
UP_TO = 0.95

# From the workers to a policy that is told the target.
POLICIES: dict[str, Callable[[int], Policy]] = {
    "ours": lambda workers: Ours(workers, BATCH, None, TARGET),
    "ours, no target": lambda workers: Ours(workers, BATCH, None),
    "Clipper": lambda workers: Clipper(workers, BATCH, TARGET),
    "BentoML": lambda workers: BentoML(workers, BATCH, TARGET),
    "Triton": lambda workers: Triton(workers, BATCH),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One load, and what came of it.

    Attributes:
        workers: how many there are.
        rate: tasks a second, for each worker.
        outcomes: of each policy.
    """

    workers: int
    rate: float
    outcomes: dict[str, Outcome]


def play(workers: int, rate: float, make: Callable[[int], Policy], seeds: int = SEEDS, tasks: int = TASKS) -> Outcome:
    """Return what a policy makes of a load, the medians of some runs."""
    runs = []
    for seed in range(seeds):
        pattern = Pattern(Open("poisson", 1.0), SERVICE, workers, BATCH, seed, tasks)
        load = rate * workers / pattern.capacity
        pattern = Pattern(Open(f"poisson {rate}", load), SERVICE, workers, BATCH, seed, tasks)
        runs.append(Run(pattern, make(workers)).play())
    return middle(runs)


def possible(workers: int, rates: Sequence[float] = RATES, seeds: int = SEEDS, tasks: int = TASKS) -> float:
    """Return the highest of the rates at which some fixed size of batches keeps p99 at the target."""
    best = 0.0
    for size in SIZES:
        for wait in WAITS:
            for rate in rates:
                if rate <= best:
                    continue
                outcome = play(workers, rate, partial(_bounded, size, wait), seeds, tasks)
                if outcome.p99 > TARGET:
                    break
                best = rate
    return best


def _bounded(size: int, wait: float | None, workers: int) -> Policy:
    return Ours(workers, size, wait)


def rows() -> tuple[list[Row], dict[int, float]]:
    """Return all loads, and what is possible, for each number of workers."""
    with multiprocessing.Pool() as pool:
        best = pool.map(possible, WORKERS)
        found = pool.starmap(row, [(workers, rate) for workers in WORKERS for rate in RATES], chunksize=1)
    return found, dict(zip(WORKERS, best, strict=True))


def row(workers: int, rate: float) -> Row:
    """Return what all policies make of a load."""
    return Row(workers, rate, {name: play(workers, rate, make) for name, make in POLICIES.items()})


def held_until(rows: Sequence[Row], workers: int, name: str) -> float:
    """Return the highest rate up to which p99 is nearly at the target, or below."""
    best = 0.0
    for each in rows:
        if each.workers == workers:
            if each.outcomes[name].p99 > NEARLY * TARGET:
                break
            best = each.rate
    return best


def text(rows: Sequence[Row], best: dict[int, float]) -> str:
    """Return the table to read."""
    lines = [f"latency target {TARGET * 1000:g} ms, {SERVICE.name} ms an item: p99 in ms (mean batch)"]
    for workers in dict.fromkeys(each.workers for each in rows):
        lines += [
            "",
            f"{workers} worker{'s' if workers > 1 else ''}; possible at the target: {best[workers]:g} a second each",
        ]
        lines.append(f"{'a second':>8}  " + "  ".join(f"{name:>15}" for name in POLICIES))
        for each in rows:
            if each.workers == workers:
                cells = (f"{one.p99 * 1000:8.1f} ({one.batch:4.1f})" for one in each.outcomes.values())
                lines.append(f"{each.rate:8g}  " + "  ".join(f"{cell:>15}" for cell in cells))
        held = (f"{held_until(rows, workers, name):15g}" for name in POLICIES)
        lines.append(f"{'<= x 1.3':>8}  " + "  ".join(held))
    return "\n".join(lines)


def numbers(rows: Sequence[Row], best: dict[int, float]) -> dict[str, object]:
    """Return the data to keep: of each policy p50 and p99 in ms and the mean size of a batch."""
    return {
        "target_ms": TARGET * 1000,
        "possible": best,
        "rows": [
            {
                "workers": each.workers,
                "rate": each.rate,
                **{
                    name: [round(one.p50 * 1000, 2), round(one.p99 * 1000, 2), round(one.batch, 1)]
                    for name, one in each.outcomes.items()
                },
            }
            for each in rows
        ],
    }
