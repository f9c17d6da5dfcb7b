"""Compare two versions of this package: `make versus REF=<commit>`, or `python benchmarks/versus.py <commit>`.

The commit is checked out into a temporary git worktree, and the same services, those of this checkout, are run with the
package from there and with the one from here. Both run in the same Python with the same dependencies. They are measured
in turn as `run.py` does it. The exit status is 1 where a row is below its bar, and 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import machine
import options
import servers
from busy import busy_loop
from checkouts import checked_out
from problems import BenchmarkError
from results import MedianCost, Result
from scenarios import SCENARIOS, Scenario
from turns import in_turn

ROOT = Path(__file__).resolve().parents[1]
# Even, so that each goes first as often as the other.
ROUNDS = 8
# What a change may cost at most, so that a slow machine's noise is no alarm, and what it may not cost at all.
BAR = 0.97
BARS = {"echo": 1.0, "latency": 1.0}
# Of the other rows the service is one of these, or their rival is.
ROWS = tuple(scenario for scenario in SCENARIOS if scenario.rival in ("mosec", "static"))

HEADER = (
    f"{'':14}  {'':8}  {'':>9}  {'':>9}  {'median':>6}  {'':>14}  {'':13}  {'µs, server + workers':^37}\n"
    f"{'row':14}  {'unit':8}  {'then':>9}  {'now':>9}  {'ratio':>6}  {'lowest-highest':>14}  {'at least':13}"
    f"  {'then':>18} {'now':>18}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows = [row for row in ROWS if row.name in (parsed.only or [row.name])]
    try:
        for row in rows:
            row.load.check()
        where = machine.describe()
        print(machine.brief(where))
        with (
            checked_out(ROOT, parsed.reference) as then,
            busy_loop() if parsed.busy else nullcontext(),
        ):
            print(f"then: {parsed.reference}, {then.name}; now: {where['commit']}, the working tree")
            now = servers.Checkout("now", ROOT)
            results = [compare(row, then, now, parsed.rounds, parsed.seconds) for row in rows]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    bars = {row.name: bar_of(row.name, parsed.bar, BARS | dict(parsed.bar_of)) for row in rows}
    where |= machine.conditions(where, [result.others for result in results], busy=parsed.busy)
    print(f"\n{table(results, bars)}\n\n{machine.brief(where)}")
    failed = below(results, bars)
    print(f"below the bar: {', '.join(failed)}" if failed else "no row is below its bar")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare another version of this package with the working tree.")
    parser.add_argument("reference", help="the commit to compare with: its hash, a tag or a branch")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", choices=names, help="run this row; may be given again")
    options.add_measuring(parser, ROUNDS)
    parser.add_argument(
        "--bar", type=float, default=BAR, metavar="RATIO", help="the least ratio of a row (default: %(default)s)"
    )
    parser.add_argument(
        "--bar-of",
        action="append",
        default=[],
        type=_named_bar,
        metavar="ROW=RATIO",
        help="the least ratio of one row; may be given again "
        f"(default: {' '.join(f'{name}={bar:.2f}' for name, bar in BARS.items())})",
    )
    return parser


def _named_bar(text: str) -> tuple[str, float]:
    name, _, ratio = text.partition("=")
    if name not in {row.name for row in ROWS}:
        raise argparse.ArgumentTypeError(f"there is no row {name!r}")
    return name, float(ratio)


def compare(row: Scenario, then: servers.Checkout, now: servers.Checkout, rounds: int, seconds: int) -> Result:
    """Measure a row with both versions, `rounds` times in turn.

    Raises:
        BenchmarkError: a server does not start, or answers wrongly.
    """
    print(f"\n{row.name}: {row.title}", flush=True)
    with servers.running(row.service, [then, now], row.load) as (old, new):
        return Result(row, in_turn(row, old, new, rounds, seconds))


def bar_of(row: str, bar: float, bars: Mapping[str, float]) -> float:
    """Return the least ratio of a row: its own of `bars`, or `bar`, the one of all that have none."""
    return bars.get(row, bar)


def below(results: Sequence[Result], bars: Mapping[str, float]) -> list[str]:
    """Return the names of the rows whose ratio is below their bar."""
    return [result.scenario.name for result in results if result.ratio < bars[result.scenario.name]]


def table(results: Sequence[Result], bars: Mapping[str, float]) -> str:
    """Return the results as text, a line for each row."""
    lines = [HEADER, "-" * len(HEADER.splitlines()[-1])]
    return "\n".join([*lines, *(_line(result, bars[result.scenario.name]) for result in results)])


def _line(result: Result, bar: float) -> str:
    row = result.scenario
    latency = row.measure == "latency"
    unit, measured, form = ("p50 ms", "p50_ms", ".3f") if latency else (row.load.unit, "per_second", ",.0f")
    then, now = format(result.theirs(measured), form), format(result.ours(measured), form)
    spread = f"{min(result.ratios):.3f}-{max(result.ratios):.3f}"
    verdict = f"{bar:.2f} {'BELOW' if result.ratio < bar else 'met'}"
    costs = f"{_cost(result.theirs_cost):>18} {_cost(result.ours_cost):>18}"
    return f"{row.name:14}  {unit:8}  {then:>9}  {now:>9}  {result.ratio:6.3f}  {spread:>14}  {verdict:13}  {costs}"


def _cost(cost: MedianCost | None) -> str:
    return "not known" if cost is None else f"{cost.server:.1f} + {cost.workers:.1f}"


if __name__ == "__main__":
    sys.exit(main())
