"""The answers that a web process has counted and measured, on their way into the metrics of the whole service. Pure."""

from __future__ import annotations

from typing import Any

from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.observing.metrics import ServiceMetrics


def taken(metrics: ServiceMetrics) -> list[Any]:
    """Return what was counted since the last time, as plain data; nothing of it is left. Empty where nothing was."""
    if not metrics.throughput:
        return []
    answers = [(route, int(code), count) for (route, code), count in metrics.throughput.items()]
    duration = metrics.duration
    told = [answers, duration.counts, duration.total]
    metrics.throughput.clear()
    duration.counts, duration.total = [0] * len(duration.counts), 0.0
    return told


def add(metrics: ServiceMetrics, told: list[Any]) -> None:
    """Add what another process has counted.

    Raises:
        FrameError: it is something else.
    """
    if not told:
        return
    try:
        answers, counts, total = told
        for route, code, count in answers:
            metrics.throughput[route, code] = metrics.throughput.get((route, code), 0) + count
        duration = metrics.duration
        duration.counts = [ours + theirs for ours, theirs in zip(duration.counts, counts, strict=True)]
        duration.total += total
    except (TypeError, ValueError) as error:
        raise FrameError(f"no counts: {error}") from error
