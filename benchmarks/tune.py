"""`mosec-asgi tune` on models that are known, beside a full sweep: `make tune`.

For each model: real workers that sleep as long as the model says are measured and settings are searched for, as the
command does it. What those settings are worth on the true model is set beside the best of a full sweep over it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine

from mosec_asgi import Server, Worker
from mosec_asgi.labels import Label
from mosec_asgi.tuning.fit import Line
from mosec_asgi.tuning.model import Choice, Choices, StageModel
from mosec_asgi.tuning.room import Machine
from mosec_asgi.tuning.run import Wanted, pipeline_of, recommend
from mosec_asgi.tuning.search import CALLS, Search
from mosec_asgi.tuning.simulation import Workload

RESULTS = Path(__file__).parent / "results"
WORKERS = 2
MOST = 64
SIZES = (2, 4, 8, 16, 32, 64)
# Of a single stage; of two, each option of one goes with each of the other.
FINE_SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
WAITS_MS = (0, 1, 2, 5, 10, 20, 40)
WITHIN = 0.05
MOST_SECONDS = 120.0


class Case(NamedTuple):
    """A pipeline of known models, and the target.

    Attributes:
        name: what it is called.
        stages: the seconds of any batch, and those of each item.
        target: seconds.
    """

    name: str
    stages: tuple[tuple[float, float], ...]
    target: float


CASES = (
    Case("5 ms + 0.1", ((0.005, 0.0001),), 0.02),
    Case("20 ms + 5", ((0.02, 0.005),), 0.1),
    Case("2 ms + 1, 10 ms + 0.2", ((0.002, 0.001), (0.01, 0.0002)), 0.1),
)


class Sleeping(Worker):
    """A model that is known."""

    def __init__(self, fixed: float, per_item: float) -> None:
        """Take as long as that."""
        self._fixed, self._per_item = fixed, per_item

    def forward(self, data: list[Any]) -> list[Any]:
        """Sleep."""
        time.sleep(self._fixed + self._per_item * len(data))
        return data


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a table, and write it; return the exit code."""
    parser = argparse.ArgumentParser(description="Settings that are found, beside the best of a full sweep.")
    parser.add_argument("--seconds", type=float, default=90.0, help="for each case, as the command's")
    parser.add_argument("--simulated", action="store_true", help="no real workers: the search alone, on the true model")
    options = parser.parse_args(arguments)
    rows = [row(case, options.seconds, simulated=options.simulated) for case in CASES]
    if not options.simulated:
        origin = {name: value for name, value in machine.describe().items() if name in ("date", "python", "commit")}
        (RESULTS / "tune.json").write_text(json.dumps({**origin, "cases": rows}, indent=2) + "\n")
    return 0 if all(each["of_the_best"] >= 1 - WITHIN and each["seconds"] < MOST_SECONDS for each in rows) else 1


def row(case: Case, seconds: float, *, simulated: bool) -> dict[str, Any]:
    """Return what has come out for a case."""
    models = [
        StageModel(f"stage {place}", Line(*stage), [Label()], batched=True, most=MOST)
        for place, stage in enumerate(case.stages, 1)
    ]
    judge = Search(models, Machine(WORKERS, 1 << 40, WORKERS), Workload.drawn(CALLS, 1, seed=1), case.target)
    began = time.perf_counter()
    choices = judge.best().choices if simulated else _found(case, seconds)
    took = time.perf_counter() - began
    best, best_rate, count = sweep(judge, len(models))
    rate = judge.rate_of(choices)
    found = {
        "case": case.name,
        "target_ms": case.target * 1000,
        "found": [choice._asdict() for choice in choices],
        "rate": round(rate, 1),
        "swept": count,
        "best": [choice._asdict() for choice in best],
        "best_rate": round(best_rate, 1),
        "of_the_best": round(rate / best_rate, 4),
        "seconds": round(took, 1),
    }
    print(
        f"{case.name:24} p99 <= {case.target * 1000:g} ms: {rate:8.1f}/s by {_short(choices)} in {took:.0f} s; best of "
        f"{count} {best_rate:8.1f}/s by {_short(best)}: {rate / best_rate:.3f}",
        flush=True,
    )
    return found


def sweep(judge: Search, stages: int) -> tuple[Choices, float, int]:
    """Return the best settings of a grid, their rate, and how many there were; each of them is run."""
    sizes = FINE_SIZES if stages == 1 else SIZES
    options = [Choice(WORKERS, size, wait) for size in sizes for wait in WAITS_MS]
    best, rate, count = (Choice(WORKERS, MOST),) * stages, 0.0, 0
    for choices in itertools.product(options, repeat=stages):
        count += 1
        # One that misses the target at the rate of the best cannot be better: nothing more of it needs to be known.
        if (gained := judge.rate_of(choices, rate)) > rate:
            best, rate = choices, gained
    return best, rate, count


def _found(case: Case, seconds: float) -> Choices:
    server = Server()
    for stage in case.stages:
        server.append_worker(Sleeping, max_batch_size=8, args=stage)
    route, pipeline = pipeline_of(server, None)
    wanted = Wanted(case.target, seconds, MOST, WORKERS)
    return recommend(server, route, pipeline, list(range(64)), wanted, lambda told: None).found.choices


def _short(choices: Choices) -> str:
    return " -> ".join(f"{choice.num} x {choice.size}, {choice.wait} ms" for choice in choices)


if __name__ == "__main__":
    sys.exit(main())
