"""The plot of the ratios, as SVG: `python benchmarks/ratios.py` draws that of `latest.json` anew.

The axis is logarithmic, as ratios span 1 to 20. It has a light and a dark side, by what the reader's browser is set to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

LATEST = Path(__file__).parent / "results" / "latest.json"
WIDTH, LEFT, RIGHT, TOP, ROW, HEAD = 820, 20, 70, 66, 40, 30
LEAST = 0.7
TICKS = (1, 2, 5, 10, 20, 50)
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:13px;fill:#1f2933}.title{font-size:16px;font-weight:600}"
    ".head{font-weight:600}.small{font-size:12px;fill:#52606d}.page{fill:#ffffff}.bar{fill:#4878a8}"
    ".grid{stroke:#d9dee4}.one{stroke:#52606d;stroke-dasharray:4 3}.span{stroke:#1f2933;stroke-width:1.5}"
    "@media (prefers-color-scheme:dark){text{fill:#e4e7eb}.small{fill:#9aa5b1}.page{fill:#151b22}.bar{fill:#5b93cc}"
    ".grid{stroke:#323f4b}.one{stroke:#9aa5b1}.span{stroke:#e4e7eb}}"
)


def svg(data: dict[str, Any]) -> str:
    """Return the plot.

    Args:
        data: what `report.write_json` has written.
    """
    scenarios = data["scenarios"]
    mosec = f"beside mosec {data['machine']['packages'].get('mosec', '')}"
    groups = [
        (mosec, [one for one in scenarios if one["theirs"] == "mosec"]),
        ("beside other ways to do the same in Python", [one for one in scenarios if one["theirs"] != "mosec"]),
    ]
    most = max(2, *(max(one["rounds"]["ratio"]) for one in scenarios)) * 1.1

    def x(ratio: float) -> float:
        share = (math.log(max(ratio, LEAST)) - math.log(LEAST)) / (math.log(most) - math.log(LEAST))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    rows: list[str] = []
    y = TOP
    for head, ones in groups:
        if ones:
            rows.append(f'<text class="head" x="{LEFT}" y="{y + 14}">{escape(head)}</text>')
            y += HEAD
        for one in ones:
            rows += _row(one, y, x)
            y += ROW
        y += 6
    grid = [_line("one" if tick == 1 else "grid", x(tick), TOP + HEAD - 8, y) for tick in TICKS if tick < most]
    ticks = [_tick(tick, x(tick), y + 18) for tick in TICKS if tick < most]
    height = y + 48
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}"/>',
            f'<text class="title" x="{LEFT}" y="26">How many times as fast as the other, on the same machine</text>',
            f'<text class="small" x="{LEFT}" y="46">requests a second, or the time of one; the bar is the median of '
            f"{data['settings'].get('rounds', '')} pairs, the line spans them; more is better</text>",
            *grid,
            *rows,
            *ticks,
            f'<text class="small" x="{LEFT}" y="{y + 38}">ratio, on a logarithmic axis; at 1 both are equal</text>',
            "</svg>\n",
        ]
    )


def _row(one: dict[str, Any], y: float, x: Any) -> list[str]:
    low, high = sorted((x(1), x(one["ratio"])))
    ratios: Sequence[float] = one["rounds"]["ratio"]
    return [
        f'<text x="{LEFT + 14}" y="{y + 10}">{escape(one["title"])}</text>',
        f'<rect class="bar" x="{low}" y="{y + 15}" width="{high - low:.1f}" height="15"/>',
        f'<line class="span" x1="{x(min(ratios))}" x2="{x(max(ratios))}" y1="{y + 22.5}" y2="{y + 22.5}"/>',
        f'<text class="head" x="{x(max(*ratios, 1)) + 8}" y="{y + 27}">{one["ratio"]:.1f}</text>',
    ]


def _line(kind: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _tick(tick: int, x: float, y: float) -> str:
    return f'<text class="small" text-anchor="middle" x="{x}" y="{y}">{tick}</text>'


if __name__ == "__main__":
    LATEST.with_suffix(".svg").write_text(svg(json.loads(LATEST.read_text())))
