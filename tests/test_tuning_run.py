from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mosec_asgi import ContinuousWorker, Server, SSEWorker, Worker
from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.pool.process.launcher import usable_cores
from mosec_asgi.tuning.run import Wanted, pipeline_of, recommend


class Echo(Worker):
    """Returns what it is given."""

    def forward(self, data: Any) -> Any:
        return data


class Writer(SSEWorker):
    """Streams."""

    def forward(self, data: Any) -> Iterator[str]:
        yield "a"


def served(*routes: str, worker: type[Worker] = Echo, **options: Any) -> Server:
    server = Server()
    for route in routes:
        server.append_worker(worker, route=route, **options)
    return server


def test_the_only_route_is_tuned_and_of_several_one_must_be_named() -> None:
    route, [runtime] = pipeline_of(served("/a"), None)
    assert (route, runtime.worker) == ("/a", Echo)
    assert pipeline_of(served("/a", "/b"), "/b")[0] == "/b"
    with pytest.raises(WrongUse, match="--route takes one of /a, /b"):
        pipeline_of(served("/a", "/b"), None)
    with pytest.raises(WrongUse, match="there is no route '/c'"):
        pipeline_of(served("/a"), "/c")
    with pytest.raises(WrongUse, match="append a worker"):
        pipeline_of(Server(), None)


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (served("/a", worker=Writer), "streams"),
        (served("/a", executor="thread"), "does not run in processes"),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_the_reason(server: Server, why: str) -> None:
    with pytest.raises(WrongUse, match=rf"the stage \w+_1 of /a {why}"):
        pipeline_of(server, None)
    assert issubclass(ContinuousWorker, Worker)


def test_a_recommendation_is_no_worse_than_what_there_is() -> None:
    server = served("/a", max_batch_size=4, max_wait_time=50)
    route, pipeline = pipeline_of(server, None)
    said: list[str] = []
    found = recommend(server, route, pipeline, [1, 2, 3], Wanted(0.2, 4.0, 8, 1), said.append)
    assert said == ["measuring Echo_1", "searching"]
    assert found.measured[0].outputs == [1, 2, 3]
    assert found.now[0].size == 4
    assert found.found.rate >= found.now_rate
    assert [choice.num for choice in found.found.choices] == [1]


def test_workers_that_are_defined_beyond_the_processors_are_not_counted_as_if_each_had_one() -> None:
    # Quick enough to keep a processor busy each.
    server = served("/a", num=2 * usable_cores())
    route, pipeline = pipeline_of(server, None)
    found = recommend(server, route, pipeline, [1, 2, 3], Wanted(0.2, 4.0, 8), lambda told: None)
    assert found.machine.most == 2 * usable_cores()
    assert found.found.rate >= 0.95 * found.now_rate > 0


def test_as_many_workers_are_looked_at_as_are_defined_and_no_more_than_are_asked_for() -> None:
    server = served("/a", num=3 * usable_cores())
    route, pipeline = pipeline_of(server, None)
    found = recommend(server, route, pipeline, [1], Wanted(0.2, 4.0, 8, 1), lambda told: None)
    assert [choice.num for choice in found.found.choices] == [1]
