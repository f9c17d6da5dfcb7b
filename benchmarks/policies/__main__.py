"""The command: `make policies`, or `PYTHONPATH=benchmarks python -m policies --patterns pareto`."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import machine

from policies import fairness, plots, report, targets, tenants
from policies.ours import Ours
from policies.patterns import Pattern, grid
from policies.rivals import BentoML, Mosec, Triton
from policies.simulation import HOP, Outcome, Policy, Run, middle

RESULTS = Path(__file__).parents[1] / "results"
SEEDS = 3
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
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each pattern, of which the medians count")
    parser.add_argument("--patterns", default="", help="only those whose name has this in it; nothing is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--targets", action="store_true", help="only the part about latency targets, a minute or two")
    parser.add_argument("--tenants", action="store_true", help="only the part about two tenants, a minute")
    options = parser.parse_args(arguments)
    if options.targets:
        loads, best = targets.rows()
        print(targets.text(loads, best))
        report.replace(RESULTS / "policies.json", "latency_target", targets.numbers(loads, best))
        plots.draw_targets(RESULTS, loads, best)
        return 0
    if options.tenants:
        light, shares = tenants.rows(options.processes)
        print(tenants.text(light, shares))
        report.replace(RESULTS / "policies.json", "tenants", tenants.numbers(light, shares))
        return int(not tenants.holds(light, shares))
    patterns = [pattern for pattern in grid(options.seed) if options.patterns in pattern.name]
    if not patterns:
        parser.error(f"no pattern has {options.patterns!r} in its name; one is {grid(0)[0].name!r}")
    began = time.perf_counter()
    results = simulate(patterns, options.seeds, options.processes)
    runs = len(patterns) * options.seeds * len(POLICIES)
    print(f"{len(patterns)} patterns, {runs:,} runs, {time.perf_counter() - began:.0f} s\n")
    print(report.text(results))
    if not options.patterns:
        routes = fairness.rows(options.seed)
        print(f"\n{report.fairness(routes)}")
        loads, best = targets.rows()
        print(f"\n{targets.text(loads, best)}")
        light, shares = tenants.rows(options.processes)
        print(f"\n{tenants.text(light, shares)}")
        settings = {"seed": options.seed, "seeds": options.seeds, "runs": runs, "hop_ms": HOP * 1000}
        # Nothing else of the machine matters: time is virtual.
        origin = {name: value for name, value in machine.describe().items() if name in ("date", "python", "commit")}
        parts: dict[str, object] = {
            "latency_target": targets.numbers(loads, best),
            "tenants": tenants.numbers(light, shares),
        }
        report.write_json(RESULTS / "policies.json", origin, settings, results, routes, parts)
        drawn = plots.draw(RESULTS, results, loads, best)
        print(
            f"\nwritten: {RESULTS}/policies.json"
            + (", policies.png, policies-model.png, policies-target.png" if drawn else "")
        )
        if not drawn:
            print("no plots: matplotlib is missing (pip install 'mosec-asgi[bench]')")
        return int(not tenants.holds(light, shares))
    return 0


def simulate(patterns: Sequence[Pattern], seeds: int, processes: int | None) -> dict[Pattern, dict[str, Outcome]]:
    """Run each pattern with so many seeds under every policy; return the medians of what came out."""
    runs = [dataclasses.replace(pattern, seed=pattern.seed + seed) for pattern in patterns for seed in range(seeds)]
    with multiprocessing.Pool(processes) as pool:
        played = pool.map(play, runs, chunksize=4)
    groups = [played[place : place + seeds] for place in range(0, len(played), seeds)]
    return {
        pattern: {name: middle([one[name] for one in group]) for name in POLICIES}
        for pattern, group in zip(patterns, groups, strict=True)
    }


def play(pattern: Pattern) -> dict[str, Outcome]:
    """Run one pattern under every policy."""
    return {name: Run(pattern, make(pattern.workers, pattern.batch)).play() for name, make in POLICIES.items()}


if __name__ == "__main__":
    sys.exit(main())
