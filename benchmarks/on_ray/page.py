"""The numbers as a table in docs/scaling.md, where it is between two comments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results" / "ray.json"
_BETWEEN = re.compile(r"(<!-- make ray -->\n).*(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Number:
    """What was measured of one way.

    Attributes:
        way: its title.
        per_second: requests answered.
        p50_ms: the median latency, in milliseconds.
        p99_ms: its 99th percentile.
        cpu_us: microseconds of processor time of the processes that a request passes, for each.
    """

    way: str
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def median_of(numbers: Sequence[Number]) -> Number:
    """Return the medians of what was measured of one way."""
    names = ("per_second", "p50_ms", "p99_ms", "cpu_us")
    return Number(numbers[0].way, *(round(median(getattr(one, name) for one in numbers), 1) for name in names))


def table(numbers: Mapping[str, Sequence[Number]]) -> str:
    """Return the numbers of each row, by its title, as Markdown."""
    lines = ["| | | requests/s | median, ms | 99 %, ms | processor time, µs |", "|---|---|---:|---:|---:|---:|"]
    for title, ways in numbers.items():
        for place, one in enumerate(ways):
            first = title if place == 0 else ""
            times = f"{one.p50_ms:.1f} | {one.p99_ms:.0f} | {one.cpu_us:,.0f}"
            lines.append(f"| {first} | {one.way} | {one.per_second:,.0f} | {times} |")
    return "\n".join(lines) + "\n"


def write(numbers: Mapping[str, Sequence[Number]]) -> None:
    """Write the numbers, and the page's table of them."""
    RESULTS.write_text(json.dumps({title: [asdict(one) for one in ways] for title, ways in numbers.items()}, indent=1))
    with_table = _BETWEEN.sub(lambda found: found[1] + table(numbers) + found[2], PAGE.read_text())
    PAGE.write_text(with_table)


def read() -> dict[str, list[Number]]:
    """Return the numbers as they were written."""
    return {title: [Number(**one) for one in ways] for title, ways in json.loads(RESULTS.read_text()).items()}
