"""A recommendation as text."""

from __future__ import annotations

import math

from mosec_asgi import Runtime, Worker
from mosec_asgi.tuning.model import Choice
from mosec_asgi.tuning.simulation import Played
from mosec_asgi.tuning.text import HEIGHT, append_worker, plotted


class Model(Worker):
    def forward(self, data: list[int]) -> list[int]:
        return data


def played(rate: float, p99: float) -> Played:
    return Played(rate, rate, p99 / 2, p99, (1.0,), met=True)


def test_a_plot_has_its_points_where_they_belong() -> None:
    lines = plotted({"*": [played(100, 0.01), played(1000, 0.1)]}, 0.05)
    assert lines[0] == "p99, ms"
    assert lines[1].endswith("*")
    assert "100.0" in lines[1]
    assert lines[HEIGHT].split("|")[1].index("*") == 6
    assert sum("----" in line for line in lines) == 2
    assert "1,000 calls a second" in lines[-1]


def test_a_plot_of_a_single_point_or_of_nothing_is_no_fault() -> None:
    assert plotted({"*": [played(10, 0.01)]}, math.inf)
    assert plotted({"*": [played(10, math.inf)]}, 0.1) == []


def test_the_line_to_write_has_what_is_not_the_default() -> None:
    runtime = Runtime(Model, max_batch_size=4)
    assert append_worker(runtime, Choice(2, 16, 5, 300)) == (
        "server.append_worker(Model, num=2, max_batch_size=16, max_wait_time=5, max_batch_cost=300)"
    )
    assert append_worker(runtime, Choice(1, 1)) == "server.append_worker(Model, num=1)"
