"""What is shown of a service: numbers as text, the tables of stages and routes, and one line of all.

Names come from the service, and may hold what a terminal would obey; `harmless` makes text of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mosec_asgi.cli.top.watch import Watch
from mosec_asgi.observing.changes import StageChange
from mosec_asgi.observing.statistics import StageReport

NOTHING = "-"
# Characters between two columns, and those that are left to a name where there is little room.
_BETWEEN = 3
_MOST_NAME = 19
_BARS = "▁▂▃▄▅▆▇█"


class Row(NamedTuple):
    """A stage: how it stands, and what happened at it in the last interval."""

    stage: StageReport
    change: StageChange | None


class Column(NamedTuple):
    """A column of the table of stages.

    Attributes:
        head: its name.
        value: of a row, to sort by; None for nothing, which comes last.
        text: of the value.
        bad: whether a value is one to look at.
    """

    head: str
    value: Callable[[Row], Any]
    text: Callable[[Row], str]
    bad: Callable[[Row], bool] = lambda row: False


def rate(value: float | None) -> str:
    """Return a number per second."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Return a time with its unit."""
    if seconds is None:
        return NOTHING
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    milliseconds = seconds * 1000
    digits = 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f} ms"


def size(value: float | None) -> str:
    """Return the mean size of a batch."""
    return NOTHING if value is None else f"{value:.1f}"


def clock(seconds: float) -> str:
    """Return a time of the day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def harmless(name: str) -> str:
    """Return a name as a terminal can show it."""
    return "".join(each if each.isprintable() else "?" for each in name)


def bars(values: Sequence[float], width: int) -> str:
    """Return the last values as a row of small bars, the largest of them as high as a line."""
    last = values[-width:]
    most = max(last, default=0.0) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int(value / most * (len(_BARS) - 1) + 0.5))] for value in last)


def _of(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.change, name) if row.change is not None else None


def _told(name: str, text: Callable[[Any], str]) -> Callable[[Row], str]:
    return lambda row: text(_of(name)(row))


COLUMNS = (
    # The service's own order: nothing is sorted.
    Column("STAGE", lambda row: 0, lambda row: harmless(row.stage.name)),
    Column(
        "WORKERS",
        lambda row: row.stage.ready - row.stage.wanted,
        lambda row: f"{row.stage.ready}/{row.stage.wanted}" + (f" -{row.stage.draining}" if row.stage.draining else ""),
        lambda row: row.stage.ready < row.stage.wanted,
    ),
    Column(
        "BUSY",
        lambda row: row.stage.slots_in_use / row.stage.slots if row.stage.slots else None,
        lambda row: f"{row.stage.slots_in_use}/{row.stage.slots}",
    ),
    Column("TASKS/S", _of("tasks"), _told("tasks", rate)),
    Column("QUEUE", lambda row: row.stage.queued, lambda row: f"{row.stage.queued:,}"),
    Column("RUNNING", lambda row: row.stage.in_flight, lambda row: f"{row.stage.in_flight:,}"),
    Column("BATCH", _of("batch_size"), _told("batch_size", size)),
    Column("WAIT", _of("queue_wait"), _told("queue_wait", duration)),
    Column("TIME", _of("process"), _told("process", duration)),
    Column("REFUSED/S", _of("refused"), _told("refused", rate), lambda row: bool(row.change and row.change.refused)),
    Column("RESTARTS", lambda row: row.stage.restarts, lambda row: f"{row.stage.restarts:,}"),
)


def rows(watch: Watch, column: int = 0, *, turned: bool = False) -> list[Row]:
    """Return the stages, sorted by a column: the largest first, or the smallest where it is turned round."""
    if watch.report is None:
        return []
    changes: Sequence[StageChange | None] = watch.change.stages if watch.change else [None] * len(watch.report.stages)
    found = [Row(stage, change) for stage, change in zip(watch.report.stages, changes, strict=True)]
    if column == 0:
        return found[::-1] if turned else found
    value = COLUMNS[column].value
    known = [row for row in found if value(row) is not None]
    known.sort(key=value, reverse=not turned)
    return [*known, *(row for row in found if value(row) is None)]


def fitting(shown: Sequence[Row], width: int, column: int = 0) -> list[int]:
    """Return the places of the columns that a terminal has room for: the stages, what they are sorted by, and others.

    Args:
        shown: the rows.
        width: of the terminal, in characters.
        column: what they are sorted by.
    """
    widths = [max([len(each.head), *(len(each.text(row)) for row in shown)]) + _BETWEEN for each in COLUMNS]
    # A long name is broken into lines.
    widths[0] = min(widths[0], _MOST_NAME)
    chosen = {0, column}
    left = width - sum(widths[place] for place in chosen)
    for place in range(len(COLUMNS)):
        if place in chosen:
            continue
        left -= widths[place]
        if left < 0:
            break
        chosen.add(place)
    return sorted(chosen)


def summary(watch: Watch) -> list[list[tuple[str, str, bool]]]:
    """Return lines of names, values, and whether a value is one to look at."""
    report, service = watch.report, watch.change.service if watch.change else None
    if report is None:
        return []

    def per_second(name: str, label: str) -> tuple[str, str, bool]:
        value = getattr(service, name) if service else None
        return label, rate(value), bool(value) and name != "ok"

    return [
        [
            ("answers/s", rate(service.answered if service else None), False),
            per_second("ok", "ok"),
            per_second("refused", "refused"),
            per_second("late", "late (408)"),
            per_second("client_error", "4xx"),
            per_second("server_error", "5xx"),
        ],
        [
            *(
                (label, duration(getattr(service, name) if service else None), False)
                for label, name in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"))
            ),
            ("unanswered", f"{report.admitted:,}", False),
            ("streams", f"{report.streams_open:,}", False),
        ],
    ]


def routes(watch: Watch, most: int) -> list[tuple[str, str]]:
    """Return the busiest routes and their answers per second."""
    rates = watch.change.routes if watch.change else {}
    busiest = sorted(rates.items(), key=lambda each: (-each[1], each[0]))
    return [(harmless(route), rate(value)) for route, value in busiest[:most]]


def line(watch: Watch, seconds: float) -> str:
    """Return all of it in a line."""
    if watch.fault:
        return f"{clock(seconds)}  no answer: {watch.fault}"
    report = watch.report
    assert report is not None
    parts = [f"{name} {value}" for each in summary(watch) for name, value, _ in each]
    parts.append(f"queued {sum(stage.queued for stage in report.stages):,}")
    sizes = [row.change.batch_size for row in rows(watch) if row.change and row.change.batch_size is not None]
    if sizes:
        parts.append(f"batch {size(max(sizes))}")
    ready, wanted = (sum(getattr(stage, name) for stage in report.stages) for name in ("ready", "wanted"))
    parts.append(f"workers {ready}/{wanted}")
    parts.append(f"restarts {sum(stage.restarts for stage in report.stages):,}")
    return f"{clock(seconds)}  {'  '.join(parts)}"


def as_dict(watch: Watch, seconds: float) -> dict[str, Any]:
    """Return all of it in a form for JSON."""
    if watch.fault:
        return {"time": seconds, "error": watch.fault}
    assert watch.report is not None
    told = {"time": seconds, "report": watch.report.as_dict(), "change": None}
    if (change := watch.change) is not None:
        stages = {row.stage.name: row.change._asdict() for row in rows(watch) if row.change}
        service = change.service._asdict()
        told["change"] = {"service": service, "stages": stages, "routes": dict(change.routes)}
    return told
