"""The same models in each way that there is on one machine and on Ray: `make ray`.

All ways of a row run at the same time, and are asked in turn, round after round: what this machine does meanwhile is
done to all of them. Ray has two nodes, both on this machine, with HAProxy before its Serve.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence

import processes
from problems import BenchmarkError

from on_ray import page
from on_ray.page import Number
from on_ray.rows import ROWS, Row
from on_ray.ways import Cluster, Served, Way, cluster

WARM_UP_SECONDS = 1
# wrk leaves in the middle of its last requests.
SETTLE_SECONDS = 0.3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code, 1 where a ratio is below its bar."""
    parser = argparse.ArgumentParser(prog="make ray", description="Compare this package with Ray Serve.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="how long, each time (default: %(default)s)")
    parser.add_argument("--only", choices=[row.name for row in ROWS], action="append", help="this row; again for more")
    options = parser.parse_args(arguments)
    met = True
    numbers: dict[str, list[Number]] = {}
    try:
        for row in ROWS:
            row.load.check()
        print("starting two nodes of Ray, and Ray Serve ...", flush=True)
        with cluster() as ray:
            for row in ROWS:
                if not options.only or row.name in options.only:
                    rates = run(row, ray, options.rounds, options.seconds)
                    numbers[row.title] = list(rates.values())
                    for bar in row.bars:
                        met &= _meets(bar, rates)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.only:
        page.write(numbers)
        print(f"\nthe table of {page.PAGE.name} has these numbers")
    return 0 if met else 1


def run(row: Row, ray: Cluster, rounds: int, seconds: int) -> dict[Way, Number]:
    """Measure all ways of a row in turn; return what each does, the median of its rounds."""
    print(f"\n{row.title}", flush=True)
    with contextlib.ExitStack() as stack:
        ways = {way: stack.enter_context(way.run(row, ray)) for way in row.ways}
        for served in ways.values():
            row.load.put_on(served.url, row.connections, WARM_UP_SECONDS)
        measured: dict[Way, list[Number]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, served in ways.items():
                time.sleep(SETTLE_SECONDS)
                measured[way].append(_measure(row, way, served, seconds))
    numbers = {way: page.median_of(those) for way, those in measured.items()}
    for one in numbers.values():
        print(
            f"  {one.way:<42} {one.per_second:>9,.1f} req/s  median {one.p50_ms:7.1f} ms  99 % {one.p99_ms:7.1f} ms"
            f"  {one.cpu_us:9,.0f} us of processor time each"
        )
    return numbers


def _measure(row: Row, way: Way, served: Served, seconds: int) -> Number:
    before = _processor_seconds(served)
    measured = row.load.put_on(served.url, row.connections, seconds)
    cpu = 1e6 * (_processor_seconds(served) - before) / measured.done
    return Number(way.title, measured.per_second, measured.p50_ms, measured.p99_ms, cpu)


def _processor_seconds(served: Served) -> float:
    return sum(processes.read_stat(pid).own for pid in served.processes())


def _meets(bar: tuple[Way, Way, float], numbers: dict[Way, Number]) -> bool:
    ours, theirs, least = bar
    ratio = numbers[ours].per_second / numbers[theirs].per_second
    cheaper = numbers[theirs].cpu_us / numbers[ours].cpu_us
    met = ratio >= least
    says = "" if met else "   MISSED"
    print(f"  {ours.title} does {ratio:.2f} times the requests/s of {theirs.title}, at least {least:g}{says}")
    print(f"  and takes 1/{cheaper:.1f} of its processor time", flush=True)
    return met


if __name__ == "__main__":
    sys.exit(main())
