"""The picture of goodput against offered load, as SVG that is readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 800, 400
LEFT, RIGHT, TOP, BOTTOM = 86, 230, 44, 60
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .grid { stroke: #8c959f; stroke-opacity: 0.25 }
  .axis { stroke: #57606a }
  .line { fill: none; stroke-width: 2.5 }
  .c0 { stroke: #1a7f37; fill: #1a7f37 } .c1 { stroke: #cf222e; fill: #cf222e }
  .dashed { stroke-dasharray: 6 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .axis { stroke: #8d96a0 }
    .c0 { stroke: #3fb950; fill: #3fb950 } .c1 { stroke: #f85149; fill: #f85149 }
  }
"""

Series = Mapping[str, Sequence[tuple[float, float]]]


def draw(title: str, series: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> str:
    """Return the picture.

    Args:
        title: of the whole.
        series: points of load and goodput, by the server and the model; the servers differ in colour, the models in
            the stroke.
    """
    loads = sorted({load for points in series.values() for load, _ in points})
    servers = list(dict.fromkeys(server for server, _ in series))
    models = list(dict.fromkeys(model for _, model in series))
    span = math.log(loads[-1] / loads[0])

    def across(load: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(load / loads[0]) / span

    def up(goodput: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(goodput, 1.1) / 1.1

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{title}</text>',
    ]
    for step in range(0, 11, 2):
        y = up(step / 10)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{step * 10} %</text>')
    for load in loads:
        x = across(load)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{load:g}&#215;</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(0):.1f}" y2="{up(0):.1f}"/>',
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{up(0):.1f}"/>',
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">'
        "offered load, as a multiple of the capacity (log)</text>",
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "answered in time, of what the model could</text>",
    ]
    for place, ((server, model), points) in enumerate(series.items()):
        colour = f"c{servers.index(server)}"
        dashed = " dashed" if models.index(model) else ""
        path = " ".join(f"{across(load):.1f},{up(goodput):.1f}" for load, goodput in points)
        parts.append(f'<polyline class="line {colour}{dashed}" style="fill:none" points="{path}"/>')
        parts += [
            f'<circle class="{colour}" cx="{across(load):.1f}" cy="{up(goodput):.1f}" r="3.5"/>'
            for load, goodput in points
        ]
        y, x = TOP + 16 + 24 * place, WIDTH - RIGHT + 16
        parts.append(f'<line class="line {colour}{dashed}" x1="{x}" x2="{x + 28}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text x="{x + 36}" y="{y}">{server}, {model}</text>')
    return "\n".join([*parts, "</svg>\n"])
