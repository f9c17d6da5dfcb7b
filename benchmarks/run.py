"""Compare mosec_asgi with mosec: `make bench`, or `python benchmarks/run.py --only echo --rounds 3`.

For each scenario both servers are started, warmed up, and then loaded in turn while the other one idles. Fairer than to
start and stop them one at a time, because the two halves of a pair are then a second apart instead of five, on machines
whose speed changes by the second; and an idle server takes nothing from the other: measured as processor time over 5 s,
mosec took 0 ms and mosec_asgi 10 ms. Who goes first alternates from round to round.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import machine
import report
import servers
from load import Measurement
from problems import BenchmarkError
from results import Pair, Result
from scenarios import SCENARIOS, Scenario

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
SECONDS = 3
WARM_UP_SECONDS = 1
# wrk leaves in the middle of its last requests; the server finishes them before the other one is measured.
SETTLE_SECONDS = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        chosen = _chosen(options.only)
        for scenario in chosen:
            scenario.load.check()
        if any(scenario.rival == "mosec" for scenario in chosen):
            servers.check_mosec()
        _compare_all(chosen, options.rounds, options.seconds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _chosen(names: Sequence[str] | None) -> list[Scenario]:
    """Return the scenarios of these names; without any, all whose rival is there."""
    chosen = [scenario for scenario in SCENARIOS if scenario.name in (names or [scenario.name])]
    if any(scenario.optional for scenario in chosen):
        try:
            servers.check_litserve()
        except BenchmarkError as missing:
            if names:
                raise
            print(f"left out: {missing}", file=sys.stderr)
            chosen = [scenario for scenario in chosen if not scenario.optional]
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare mosec_asgi with mosec, side by side on this machine.")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", action="append", choices=names, help="run this scenario; may be given again")
    parser.add_argument("--rounds", type=_at_least_one, default=ROUNDS, help="pairs a scenario (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=_at_least_one, default=SECONDS, help="length of a measurement (default: %(default)s)"
    )
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _compare_all(scenarios: Sequence[Scenario], rounds: int, seconds: int) -> None:
    where = machine.describe()
    cores = os.cpu_count() or 1
    print(f"{where['cpu']}, {cores} cores; {where['python']}; {', '.join(map(' '.join, where['packages'].items()))}")
    if where["load_average_before"] > cores / 4:
        print(f"warning: other programs use this machine (load average {where['load_average_before']})")
    results = [compare(scenario, rounds, seconds) for scenario in scenarios]
    print(f"\n{report.table(results)}\n")

    # Only a whole run becomes the record that is kept in git.
    all_there = {scenario for scenario in SCENARIOS if not scenario.optional} <= set(scenarios)
    whole = all_there and rounds >= ROUNDS and seconds >= SECONDS
    path = RESULTS / ("latest.json" if whole else "trial.json")
    report.write_json(path, where, {"rounds": rounds, "seconds": seconds}, results)
    print(f"written: {path}")
    if report.draw(path.with_suffix(".png"), results):
        print(f"written: {path.with_suffix('.png')}")


def compare(scenario: Scenario, rounds: int, seconds: int) -> Result:
    """Measure both servers of a scenario, `rounds` times in turn.

    Args:
        scenario: what to compare.
        rounds: how many pairs.
        seconds: the length of each measurement, where the scenario does not stretch it.

    Raises:
        BenchmarkError: a server does not start, or answers wrongly.
    """
    print(f"\n{scenario.name}: {scenario.title}", flush=True)
    with servers.running(scenario.service, [scenario.rival, "mosec_asgi"], scenario.load) as (theirs, ours):
        for server in (theirs, ours):
            _measure(server, scenario, WARM_UP_SECONDS)
        pairs = []
        for number in range(rounds):
            order = (theirs, ours) if number % 2 == 0 else (ours, theirs)
            measured = {server.package: _measure(server, scenario, seconds) for server in order}
            pairs.append(Pair(measured[theirs.package], measured[ours.package]))
            print(f"  {number + 1}/{rounds}  {_brief(scenario, pairs[-1])}", flush=True)
    return Result(scenario, pairs)


def _measure(server: servers.RunningServer, scenario: Scenario, seconds: int) -> Measurement:
    try:
        measurement = scenario.load.put_on(server.url, scenario.connections, seconds * scenario.stretch)
    except BenchmarkError as error:
        raise server.failure(str(error)) from error
    time.sleep(SETTLE_SECONDS)
    return measurement


def _brief(scenario: Scenario, pair: Pair) -> str:
    halves = ((scenario.rival, pair.theirs), ("mosec_asgi", pair.ours))
    return "  ".join(f"{name} {m.per_second:,.0f} {scenario.load.unit} p50 {m.p50_ms:.2f} ms" for name, m in halves)


if __name__ == "__main__":
    sys.exit(main())
