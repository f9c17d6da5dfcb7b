"""Compare mosec_asgi with mosec: `make bench`, or `python benchmarks/run.py --only echo --rounds 3`.

For each scenario both servers are started, warmed up, and then loaded in turn while the other one idles. `--busy` does
all of that beside a busy program.
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
import report
import servers
from busy import busy_loop
from problems import BenchmarkError
from results import Result
from scenarios import SCENARIOS, Scenario
from turns import in_turn

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        chosen = _chosen(parsed.only)
        for scenario in chosen:
            scenario.load.check()
        if any(scenario.rival == "mosec" for scenario in chosen):
            servers.check_mosec()
        _compare_all(chosen, parsed.rounds, parsed.seconds, parsed.busy)
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
    options.add_measuring(parser, ROUNDS)
    return parser


def _compare_all(scenarios: Sequence[Scenario], rounds: int, seconds: int, busy: bool) -> None:
    where = machine.describe()
    print(f"{machine.brief(where)}; {', '.join(map(' '.join, where['packages'].items()))}")
    if machine.is_loaded(where):
        print(f"warning: other programs use this machine (load average {where['load_average_before']})")
    with busy_loop() if busy else nullcontext():
        results = [compare(scenario, rounds, seconds) for scenario in scenarios]
    where |= machine.conditions(where, [result.others for result in results], busy=busy)
    print(f"\n{report.table(results)}\n")
    print(f"{report.cost_table(results, machine.brief(where))}\n")

    # Only a whole run becomes a record that is kept in git.
    all_there = {scenario for scenario in SCENARIOS if not scenario.optional} <= set(scenarios)
    whole = all_there and rounds >= ROUNDS and seconds >= options.SECONDS
    path = RESULTS / f"{'latest' if whole else 'trial'}{'-busy' if busy else ''}.json"
    report.write_json(path, where, {"rounds": rounds, "seconds": seconds}, results)
    print(f"written: {path}")
    print(f"written: {report.draw(path)}")


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
        return Result(scenario, in_turn(scenario, theirs, ours, rounds, seconds))


if __name__ == "__main__":
    sys.exit(main())
