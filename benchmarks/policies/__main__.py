"""The command: `make policies`, or `PYTHONPATH=benchmarks python -m policies --patterns pareto`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from policies import report
from policies.ours import Ours
from policies.patterns import Pattern, grid
from policies.rivals import BentoML, Mosec, Triton
from policies.simulation import Outcome, Policy, Run

RESULTS = Path(__file__).parents[1] / "results"
WAIT = 0.01
# From workers and batch size to a policy.
POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "ours, wait unset": lambda workers, batch: Ours(workers, batch, None),
    "ours, wait 10 ms": lambda workers, batch: Ours(workers, batch, WAIT),
    "mosec, wait 10 ms": lambda workers, batch: Mosec(workers, batch, WAIT),
    "BentoML": BentoML,
    "Triton": Triton,
    "Triton, delay 10 ms": lambda workers, batch: Triton(workers, batch, WAIT),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print the verdict, write the data and the plots; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m policies", description="Compare batching policies.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patterns", default="", help="only those whose name has this in it; nothing is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    patterns = [pattern for pattern in grid(options.seed) if options.patterns in pattern.name]
    if not patterns:
        parser.error(f"no pattern has {options.patterns!r} in its name; one is {grid(0)[0].name!r}")
    began = time.perf_counter()
    with multiprocessing.Pool(options.processes) as pool:
        results = dict(zip(patterns, pool.map(play, patterns, chunksize=4), strict=True))
    print(f"{len(patterns)} patterns, {len(patterns) * len(POLICIES)} runs, {time.perf_counter() - began:.0f} s\n")
    print(report.text(results))
    return 0


def play(pattern: Pattern) -> dict[str, Outcome]:
    """Run one pattern under every policy."""
    return {name: Run(pattern, make(pattern.workers, pattern.batch)).play() for name, make in POLICIES.items()}


if __name__ == "__main__":
    sys.exit(main())
