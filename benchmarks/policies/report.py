"""The tables to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.patterns import Pattern
from policies.verdict import Beaten, Outcomes, Verdict, is_ours, judge, rivals_of

# How many of the worst cases are named.
WORST = 8

Results = Mapping[Pattern, Outcomes]


def text(results: Results) -> str:
    """Return the verdicts, what they are by arrivals, and the worst cases of ours."""
    names = list(next(iter(results.values())))
    verdicts = [judge(name, results, rivals_of(name, names)) for name in names]
    lines = _summary(verdicts) + [""] + _by_arrivals(results, names)
    for verdict in verdicts:
        if is_ours(verdict.policy) and verdict.beaten:
            lines += ["", f"{verdict.policy}: beaten most clearly in"]
            lines += [f"  {_case(each)}" for each in verdict.beaten[:WORST]]
    return "\n".join(lines)


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [f"{'policy':20}  {'on the frontier':>17}  {'throughput / best':>17}  {'p99 / best':>10}"]
    for verdict in verdicts:
        share = f"{verdict.on_frontier} of {verdict.patterns}"
        lines.append(f"{verdict.policy:20}  {share:>17}  {verdict.throughput:>17.3f}  {verdict.p99:>10.2f}")
    return lines


def _by_arrivals(results: Results, names: Sequence[str]) -> list[str]:
    kinds = dict.fromkeys(pattern.arrivals.name for pattern in results)
    lines = [f"{'on the frontier, by arrivals':28}  of  " + "  ".join(f"{name:>19}" for name in names)]
    for kind in kinds:
        part = {pattern: each for pattern, each in results.items() if pattern.arrivals.name == kind}
        counts = [judge(name, part, rivals_of(name, names)).on_frontier for name in names]
        lines.append(f"{kind:28}  {len(part):2}  " + "  ".join(f"{count:>19}" for count in counts))
    return lines


def _case(case: Beaten) -> str:
    return f"{case.pattern.name}: {case.by} has {case.throughput:.2f} x the throughput, {case.p99:.2f} x the p99"
