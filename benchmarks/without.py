"""Measure what each of the shorter ways brings, alone: the package with it, and without it, in turn.

`make without`, or `python benchmarks/without.py --only busy-poll --busy`. A way is worth its code where it gains more
than 5 %, quiet and beside a busy program; the latency counts for one connection, the processor time for many.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import machine
import options
import servers
from busy import busy_loop
from problems import BenchmarkError
from results import Result
from scenarios import Scenario
from versus import compare

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 6

_LONE = Scenario("echo, 1 connection", "JSON echo, 1 connection", "echo", 1, "latency")
_ASGI = "JSON echo through ASGI under run()"
# The rows in which each way plays a part.
ROWS = {
    "busy-poll": (_LONE,),
    "gathering": (
        Scenario("asgi, 1 connection", f"{_ASGI}, 1 connection", "asgi_run", 1, "latency"),
        Scenario("asgi, 64 connections", f"{_ASGI}, 64 connections", "asgi_run", 64),
    ),
    "known-heads": (_LONE, Scenario("echo, 64 connections", "JSON echo, 64 connections", "echo", 64)),
}

HEADER = (
    f"{'way':12}  {'row':22}  {'req/s or p50 without':>20}  {'with':>9}  {'gain':>7}  {'lowest-highest':>15}"
    f"  {'µs of server + workers without':>30}  {'with':>13}  {'less':>6}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure what each of the shorter ways brings, alone.")
    parser.add_argument("--only", action="append", choices=list(ROWS), help="measure this way; may be given again")
    options.add_measuring(parser, ROUNDS)
    parsed = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lines = []
    others = []
    try:
        where = machine.describe()
        print(machine.brief(where))
        with busy_loop() if parsed.busy else nullcontext():
            for way in parsed.only or ROWS:
                without = servers.Checkout(f"without {way}", ROOT, way)
                for row in ROWS[way]:
                    row.load.check()
                    result = compare(row, without, servers.Checkout("with it", ROOT), parsed.rounds, parsed.seconds)
                    lines.append(_line(way, result))
                    others.append(result.others)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    where |= machine.conditions(where, others, busy=parsed.busy)
    print("\n".join(["", HEADER, "-" * len(HEADER), *lines, "", machine.brief(where)]))
    return 0


def _line(way: str, result: Result) -> str:
    row = result.scenario
    measured, form = ("p50_ms", ".3f") if row.measure == "latency" else ("per_second", ",.0f")
    without, present = format(result.theirs(measured), form), format(result.ours(measured), form)
    spread = f"{min(result.ratios) - 1:+.1%} {max(result.ratios) - 1:+.1%}"
    costs = [result.theirs_cost, result.ours_cost]
    shown = ["not known" if cost is None else f"{cost.server:.1f} + {cost.workers:.1f}" for cost in costs]
    less = ""
    if costs[0] is not None and costs[1] is not None:
        before, after = (cost.server + cost.workers for cost in costs if cost is not None)
        less = f"{1 - after / before:+.1%}"
    gain = f"{result.ratio - 1:+.1%}"
    return (
        f"{way:12}  {row.name:22}  {without:>20}  {present:>9}  {gain:>7}  {spread:>15}"
        f"  {shown[0]:>30}  {shown[1]:>13}  {less:>6}"
    )


if __name__ == "__main__":
    sys.exit(main())
