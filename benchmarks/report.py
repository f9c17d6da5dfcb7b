"""The table to read, the JSON to keep, the plot to show."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ratios
from results import Result

HEADER = (
    f"{'':14}  {'':8}  {'':>8}  {'':>8}  {'median':>6}  {'':>12}  {'':10}  {'p50 ms':^15}  {'p99 ms':^15}\n"
    f"{'scenario':14}  {'unit':8}  {'theirs':>8}  {'ours':>8}  {'ratio':>6}  {'lowest-highest':>14}  {'bar':9}"
    f" {'theirs':>7} {'ours':>7}  {'theirs':>7} {'ours':>7}"
)

COST_HEADER = (
    f"{'':14}  {'theirs':^26}  {'ours':^26}  {'theirs /':>8}\n"
    f"{'scenario':14}  {'server':>8} {'workers':>8} {'sum':>8}  {'server':>8} {'workers':>8} {'sum':>8}  {'ours':>8}"
)


def table(results: Sequence[Result]) -> str:
    """Return the results as text, a line for each scenario and then what each is."""
    lines = [HEADER, "-" * len(HEADER.splitlines()[-1]), *map(_row, results), ""]
    lines += [f"{result.scenario.name}: {result.scenario.title}{_note(result)}" for result in results]
    return "\n".join(lines)


def cost_table(results: Sequence[Result], where: str) -> str:
    """Return what a request costs as text, a line for each scenario; `where` says on what that was measured."""
    lines = [f"processor time of a request (of streams: of an event), user and system, in µs, on {where}", COST_HEADER]
    return "\n".join([*lines, "-" * len(COST_HEADER.splitlines()[-1]), *map(_cost_row, results)])


def _cost_row(result: Result) -> str:
    theirs, ours = result.theirs_cost, result.ours_cost
    if theirs is None or ours is None:
        return f"{result.scenario.name:14}  not known on this system"
    sides = "  ".join(f"{cost.server:8.1f} {cost.workers:8.1f} {cost.total:8.1f}" for cost in (theirs, ours))
    # Of few requests it may be less than the system counts.
    ratio = f"{theirs.total / ours.total:8.2f}" if ours.total else ""
    return f"{result.scenario.name:14}  {sides}  {ratio}".rstrip()


def _row(result: Result) -> str:
    scenario = result.scenario
    if scenario.measure == "latency":
        unit, theirs, ours = "p50 ms", f"{result.theirs('p50_ms'):.3f}", f"{result.ours('p50_ms'):.3f}"
    else:
        measured = "per_second"
        unit, theirs, ours = scenario.load.unit, f"{result.theirs(measured):,.0f}", f"{result.ours(measured):,.0f}"
    bar = "" if scenario.bar is None else f"{scenario.bar:.2f} {'met' if result.meets_bar else 'MISSED'}"
    spread = f"{min(result.ratios):.2f}-{max(result.ratios):.2f}"
    latencies = "  ".join(f"{result.theirs(p):>7.2f} {result.ours(p):>7.2f}" for p in ("p50_ms", "p99_ms"))
    return (
        f"{scenario.name:14}  {unit:8}  {theirs:>8}  {ours:>8}  {result.ratio:>6.2f}  {spread:>14}  {bar:11}{latencies}"
    )


def _note(result: Result) -> str:
    return {
        "mosec": "",
        "litserve": "; theirs is LitServe",
        "bare": "; theirs is the bare app",
        "uvicorn": "; theirs is the bare app",
        "static": "; theirs are the static batches",
    }[result.scenario.rival]


def write_json(path: Path, machine: dict[str, Any], settings: dict[str, Any], results: Sequence[Result]) -> None:
    """Write all numbers and where they are from; a list of numbers stays on one line."""
    data = {"machine": machine, "settings": settings, "scenarios": [result.as_json() for result in results]}
    text = json.dumps(data, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")


def draw(path: Path) -> Path:
    """Draw the ratios that `write_json` has written, beside them; return where."""
    target = path.with_suffix(".svg")
    target.write_text(ratios.svg(json.loads(path.read_text())))
    return target
