"""The tables to read, and the data to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policies.fairness import Row
from policies.patterns import Pattern
from policies.simulation import Outcome
from policies.verdict import Beaten, Outcomes, Verdict, is_ours, judge, rivals_of

Results = Mapping[Pattern, Outcomes]


def text(results: Results) -> str:
    """Return the verdicts, what they are by arrivals and by service, and the worst cases of ours."""
    names = list(next(iter(results.values())))
    verdicts = [judge(name, results, rivals_of(name, names)) for name in names]
    lines = _summary(verdicts)
    lines += ["", "ours, wait 10 ms, beside those alone that were told to wait as long:"]
    lines += _summary([judge("ours, wait 10 ms", results, [name for name in names if _waits_as_told(name)])])[1:]
    lines += ["", *_by("arrivals", {pattern: pattern.arrivals.name for pattern in results}, results, names)]
    lines += ["", *_by("service", {pattern: pattern.service.name for pattern in results}, results, names)]
    for verdict in verdicts:
        if is_ours(verdict.policy) and verdict.beaten:
            lines += ["", f"{verdict.policy}: where it is beaten most clearly, for each service"]
            lines += [f"  {_case(each)}" for each in _worst(verdict)]
    return "\n".join(lines)


def fairness(rows: Sequence[Row]) -> str:
    """Return what a flood on one route costs another."""
    lines = [f"{'flood':>12}  {'quiet route, ms':^17}  {'flood, ms':^17}  {'ahead':>6}  {'late':>4}  overtaken"]
    lines.append(f"{'':>12}  {'p50':>8} {'p99':>8}  {'p50':>8} {'p99':>8}")
    for row in rows:
        lines.append(
            f"{row.clients:>4} clients  {row.quiet_p50:8.1f} {row.quiet_p99:8.1f}  {row.flood_p50:8.1f} "
            f"{row.flood_p99:8.1f}  {row.ahead:6.0f}  {row.late:4}  {row.overtaken:9}"
        )
    return "\n".join(lines)


def write_json(
    path: Path,
    origin: dict[str, Any],
    settings: dict[str, Any],
    results: Results,
    routes: Sequence[Row],
    parts: Mapping[str, object],
) -> None:
    """Write all numbers, a line for each pattern; of each policy: tasks a second, p50 and p99 in ms, batch size.

    Args:
        path: of the file.
        origin: when and where.
        settings: of the run.
        results: of the patterns.
        routes: what a flood on one of them costs the other.
        parts: what else was measured, by the names of their entries.
    """
    names = list(next(iter(results.values())))
    verdicts = {
        verdict.policy: {
            "on_frontier": verdict.on_frontier,
            "of": verdict.patterns,
            "throughput_to_best": round(verdict.throughput, 4),
            "p99_to_best": round(verdict.p99, 3),
            "beaten": [_case(each) for each in _worst(verdict)],
        }
        for verdict in (judge(name, results, rivals_of(name, names)) for name in names)
    }
    head = {
        **origin,
        "settings": settings,
        "verdicts": verdicts,
        "routes": [{name: round(value, 3) for name, value in asdict(row).items()} for row in routes],
        **parts,
    }
    lines = [
        json.dumps({"pattern": pattern.name, **{name: _numbers(one) for name, one in outcomes.items()}})
        for pattern, outcomes in results.items()
    ]
    # The head as others write it, and then the patterns as its last entry.
    text = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    joined = ",\n    ".join(lines)
    path.write_text(f'{text},\n  "patterns": [\n    {joined}\n  ]\n}}\n')


def replace(path: Path, name: str, part: Mapping[str, object]) -> None:
    """Put other numbers into an entry of a file that `write_json` has written."""
    data = json.loads(path.read_text())
    patterns = data.pop("patterns")
    data[name] = part
    text = json.dumps(data, indent=2, ensure_ascii=False).removesuffix("\n}")
    joined = ",\n    ".join(json.dumps(each) for each in patterns)
    path.write_text(f'{text},\n  "patterns": [\n    {joined}\n  ]\n}}\n')


def _numbers(outcome: Outcome) -> list[float]:
    return [
        round(outcome.per_second, 1),
        round(outcome.p50 * 1000, 3),
        round(outcome.p99 * 1000, 3),
        round(outcome.batch, 1),
    ]


def _waits_as_told(name: str) -> bool:
    return not is_ours(name) and name.endswith("10 ms")


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [f"{'policy':20}  {'on the frontier':>17}  {'throughput / best':>17}  {'p99 / best':>10}"]
    for verdict in verdicts:
        share = f"{verdict.on_frontier} of {verdict.patterns}"
        lines.append(f"{verdict.policy:20}  {share:>17}  {verdict.throughput:>17.3f}  {verdict.p99:>10.2f}")
    return lines


def _by(what: str, kinds: Mapping[Pattern, str], results: Results, names: Sequence[str]) -> list[str]:
    title = f"on the frontier, by {what}"
    lines = [f"{title:28}  {'of':>3}  " + "  ".join(f"{name:>19}" for name in names)]
    for kind in dict.fromkeys(kinds.values()):
        part = {pattern: each for pattern, each in results.items() if kinds[pattern] == kind}
        counts = [judge(name, part, rivals_of(name, names)).on_frontier for name in names]
        lines.append(f"{kind:28}  {len(part):>3}  " + "  ".join(f"{count:>19}" for count in counts))
    return lines


def _worst(verdict: Verdict) -> list[Beaten]:
    """Return the worst case of each service, the worst of all first."""
    found: dict[str, Beaten] = {}
    for each in verdict.beaten:
        found.setdefault(each.pattern.service.name, each)
    return list(found.values())


def _case(case: Beaten) -> str:
    return f"{case.pattern.name}: {case.by} has {case.throughput:.2f} x the throughput, {case.p99:.2f} x the p99"
