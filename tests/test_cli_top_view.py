from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from mosec_asgi.cli.top import view
from mosec_asgi.cli.top.screen import Choice, draw
from mosec_asgi.cli.top.watch import Watch
from mosec_asgi.observing.distribution import Distribution
from mosec_asgi.observing.statistics import ServiceReport, StageReport


def spread(count: int) -> Distribution:
    return Distribution((1.0,), (count, 0), count * 0.5)


def at(count: int) -> ServiceReport:
    return ServiceReport(
        "serving",
        admitted=3,
        answered={"/a": {200: count, 429: count // 2}, "/b\x1b[2J": {200: 2 * count}},
        latency=spread(count),
        stages=(
            StageReport("Slow_1", wanted=2, ready=1, slots=1, slots_in_use=1, queued=40, in_flight=2, in_time=count,
                        process=spread(count), batch_size=spread(count), refused={"overload": count}, restarts=4),
            StageReport("Idle_2\x1b]0;x\x07", wanted=1, ready=1, slots=1, queued=1, in_time=3),
            StageReport("Quick_3", wanted=1, ready=1, slots=4, slots_in_use=1, queued=7, in_time=9 * count,
                        process=spread(count)),
        ),
    )  # fmt: skip


def watched() -> Watch:
    watch = Watch()
    watch.answered(at(0), 0.0, 100.0)
    watch.answered(at(10), 1.0, 101.0)
    return watch


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (0.123, "0.12"), (2.34, "2.3"), (3.0, "3"), (12345.6, "12,346")]
)
def test_rates_are_written_as_exactly_as_anybody_reads_them(value: float | None, text: str) -> None:
    assert view.rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.00012, "0.12 ms"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (1.5, "1.50 s"), (75.0, "75.0 s")],
)
def test_times_have_their_unit(seconds: float | None, text: str) -> None:
    assert view.duration(seconds) == text


def test_bars_are_as_high_as_their_values() -> None:
    assert view.bars([0.0, 4.0, 8.0], 10) == "▁▅█"
    assert view.bars([9.0, 0.0, 0.0], 2) == "▁▁"
    assert view.bars([], 5) == ""


def test_the_table_has_a_row_for_each_stage() -> None:
    [slow, *_] = view.rows(watched())
    told = {column.head: column.text(slow) for column in view.COLUMNS}
    assert told == {
        "STAGE": "Slow_1", "WORKERS": "1/2", "BUSY": "1/1", "TASKS/S": "10", "QUEUE": "40", "RUNNING": "2",
        "BATCH": "0.5", "WAIT": "-", "TIME": "500 ms", "REFUSED/S": "10", "RESTARTS": "4",
    }  # fmt: skip
    assert {column.head for column in view.COLUMNS if column.bad(slow)} == {"WORKERS", "REFUSED/S"}


@pytest.mark.parametrize(
    ("head", "turned", "order"),
    [
        ("STAGE", False, ["Slow", "Idle", "Quick"]),
        ("STAGE", True, ["Quick", "Idle", "Slow"]),
        ("QUEUE", False, ["Slow", "Quick", "Idle"]),
        ("QUEUE", True, ["Idle", "Quick", "Slow"]),
        ("TASKS/S", False, ["Quick", "Slow", "Idle"]),
        # What has no value comes last, whichever way round.
        ("BATCH", True, ["Slow", "Idle", "Quick"]),
    ],
)
def test_stages_are_sorted_by_any_column(head: str, turned: bool, order: list[str]) -> None:
    column = [each.head for each in view.COLUMNS].index(head)
    assert [row.stage.name.partition("_")[0] for row in view.rows(watched(), column, turned=turned)] == order


def test_each_column_can_be_sorted_by_before_anything_is_known() -> None:
    watch = Watch()
    assert view.rows(watch) == []
    watch.answered(at(0), 0.0, 100.0)
    for place in range(len(view.COLUMNS)):
        assert len(view.rows(watch, place)) == 3


@pytest.mark.parametrize("width", [40, 80, 200])
def test_columns_that_do_not_fit_are_left_out_and_the_others_are_whole(width: int) -> None:
    watch = watched()
    for column in range(len(view.COLUMNS)):
        places = view.fitting(view.rows(watch, column), width, column)
        assert {0, column} <= set(places)
        assert (len(places) == len(view.COLUMNS)) == (width == 200)
        console = Console(file=io.StringIO(), width=width)
        console.print(draw("", watch, Choice(column), 0.0, width))
        shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
        assert [view.COLUMNS[place].head for place in places] == next(
            line.split() for line in shown.splitlines() if "STAGE" in line
        )
        assert "Slow_1" in shown


def test_names_do_not_move_the_terminal() -> None:
    watch = watched()
    shown = [view.COLUMNS[0].text(row) for row in view.rows(watch)] + [route for route, _ in view.routes(watch, 9)]
    assert "Idle_2?]0;x?" in shown
    assert "/b?[2J" in shown
    assert all(text.isprintable() for text in shown)


def test_the_busiest_routes_come_first() -> None:
    assert view.routes(watched(), 9) == [("/b?[2J", "20"), ("/a", "15")]
    assert len(view.routes(watched(), 1)) == 1


def test_a_line_says_all_of_it() -> None:
    line = view.line(watched(), 101.0)
    for part in ("answers/s 35", "ok 30", "refused 5", "p50 500 ms", "queued 48", "workers 3/4", "restarts 4"):
        assert part in line
    lost = watched()
    lost.lost("Connection refused", 102.0)
    assert view.line(lost, 103.0).endswith("no answer: Connection refused")


def test_the_form_for_json_has_the_report_and_the_change() -> None:
    told: Any = json.loads(json.dumps(view.as_dict(watched(), 101.0)))
    assert told["report"]["admitted"] == 3
    assert told["change"]["service"]["ok"] == 30
    assert told["change"]["stages"]["Slow_1"]["refused"] == 10
    lost = Watch()
    lost.lost("gone", 1.0)
    assert view.as_dict(lost, 2.0) == {"time": 2.0, "error": "gone"}
