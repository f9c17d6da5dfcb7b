"""A recommendation as text: a plot of characters, lines of Python, commands. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mosec_asgi.tuning.model import Choice
from mosec_asgi.tuning.simulation import Played

WIDTH, HEIGHT = 64, 14


def plotted(curves: Mapping[str, Sequence[Played]], target: float) -> list[str]:
    """Return a plot of p99 against throughput, as lines.

    Args:
        curves: by the character that draws each.
        target: seconds, drawn as a line; infinite for none.
    """
    points = [
        (played.per_second, played.p99 * 1000, mark)
        for mark, curve in curves.items()
        for played in curve
        if 0 < played.p99 < math.inf
    ]
    if not points:
        return []
    most = max(x for x, _, _ in points)
    values = [y for _, y, _ in points] + ([target * 1000] if target < math.inf else [])
    low, high = math.log(min(values)), math.log(max(values))
    span = max(high - low, 1e-9)

    def row(value: float) -> int:
        return HEIGHT - 1 - round((math.log(value) - low) / span * (HEIGHT - 1))

    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    if target < math.inf:
        cells[row(target * 1000)] = ["-"] * WIDTH
    for x, y, mark in points:
        cells[row(y)][min(WIDTH - 1, int(x / most * (WIDTH - 1)))] = mark
    labels = {0: math.exp(high), HEIGHT - 1: math.exp(low), HEIGHT // 2: math.exp(high - span * (HEIGHT // 2) / 13)}
    lines = ["p99, ms"]
    for number, line in enumerate(cells):
        label = f"{labels[number]:9.1f}" if number in labels else " " * 9
        lines.append(f"{label} |{''.join(line)}".rstrip())
    lines.append(" " * 9 + " +" + "-" * WIDTH)
    end = f"{most:,.0f} calls a second"
    lines.append(" " * 11 + "0" + end.rjust(WIDTH - 1))
    return lines


def append_worker(runtime: Any, choice: Choice) -> str:
    """Return the line that defines a stage with these settings; what else it was defined with stays as it is."""
    arguments = [runtime.worker.__name__]
    # Devices and environments say how many workers there are.
    if runtime.devices is None:
        arguments.append(f"num={choice.num}")
    if choice.size > 1:
        arguments.append(f"max_batch_size={choice.size}")
        if choice.wait:
            arguments.append(f"max_wait_time={choice.wait}")
        if choice.budget:
            arguments.append(f"max_batch_cost={choice.budget}")
    return f"server.append_worker({', '.join(arguments)})"
