"""`server.statistics()`: what it says of a service in each state, and that it can be sent as JSON."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import until
from test_exposition import NOW, service
from workers import Gate

from mosec_asgi import Server, Worker
from mosec_asgi.batching.engine import StageStatistics, Statistics
from mosec_asgi.observing.statistics import ServiceReport, WorkerReport, report


class Double(Worker):
    def forward(self, data: Any) -> Any:
        return data * 2


class Together(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data


class LoadsWhenTold(Worker):
    def __init__(self, gate: str) -> None:
        while not Path(gate).exists():
            time.sleep(0.01)

    def forward(self, data: Any) -> Any:
        return data


class OneFails(Worker):
    def __init__(self) -> None:
        if self.worker_id == 2:
            raise RuntimeError("no memory left on the device")

    def forward(self, data: Any) -> Any:
        return data


def reported(now: Statistics = NOW, state: str = "serving") -> ServiceReport:
    routes = {"/inference": ["Pre_1", "Model_2"], "/other": ["Model_2"]}
    return report(service(), now, routes, state=state, uptime=60.0, capacity=1024)


def test_what_stands_and_what_was_counted_come_together() -> None:
    told = reported()
    assert told.answered == {"/inference": {200: 2, 408: 1}, "/other": {200: 1}}
    assert (told.admitted, told.capacity, told.shared_memory, told.uptime) == (5, 1024, 4096, 60.0)
    assert told.refused == {"capacity": 1}
    assert told.latency.count == 1
    pre, model = told.stages
    assert (pre.name, pre.routes, pre.timed_out, pre.cancelled) == ("Pre_1", ("/inference",), 2, 3)
    assert (pre.in_time, pre.in_vain, pre.queue_wait.count, pre.process.count) == (9, 2, 1, 3)
    assert model.routes == ("/inference", "/other")
    assert (model.queued, model.in_flight, model.slots_in_use, model.restarts) == (4, 6, 3, 1)
    # Sizes are told of stages that form batches only.
    assert (pre.batch_size.count, model.batch_size.mean) == (0, 8)


def test_the_form_for_json_has_percentiles_in_place_of_buckets() -> None:
    told = json.loads(json.dumps(reported().as_dict()))
    assert told["answered"]["/inference"] == {"200": 2, "408": 1}
    assert told["latency"]["count"] == 1
    assert told["latency"]["p50"] == pytest.approx(0.003, rel=0.2)
    assert told["stages"][0]["batch_size"] == {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None}
    assert told["stages"][1]["process"]["mean"] == 0.5
    assert (told["ready"], told["refused"], told["streams_open"]) == (True, {"capacity": 1}, 0)


def test_workers_are_told_with_their_states_and_what_loads() -> None:
    places = (WorkerReport(1, "ready", 9.0, "process 7", 2), WorkerReport(2, "starting", 3.0, "process 8"))
    stage = StageStatistics("Pre_1", 0, 0, 0, 1, 2, 0, down=False, concurrency=4, places=places)
    [told] = reported(Statistics(0, False, (stage,))).stages
    assert [(each.worker_id, each.state, each.name, each.in_flight) for each in told.workers] == [
        (1, "ready", "process 7", 2),
        (2, "starting", "process 8", 0),
    ]
    assert told.slots == 4
    loading = reported(Statistics(0, False, (stage,)), "loading")
    assert [(stage, each.worker_id, each.seconds) for stage, each in loading.loading] == [("Pre_1", 2, 3.0)]
    assert not loading.ready


def test_a_service_that_is_closing_is_stopping_whatever_else_it_is() -> None:
    assert reported(Statistics(1, True, NOW.stages)).state == "stopping"


async def test_a_server_tells_of_itself_in_each_of_its_states() -> None:
    server = Server(capacity=7)
    server.append_worker(Double)
    server.append_worker(Gate, num=2, executor="thread")
    server.append_worker(Together, max_batch_size=4, route="/batched", executor="thread")
    assert server.statistics() == ServiceReport()
    async with server:
        for _ in range(3):
            assert await server.infer(4, route="/batched") == 4
        told = server.statistics()
        assert (told.state, told.ready, told.capacity) == ("serving", True, 7)
        assert told.answered == {"/batched": {200: 3}}
        assert told.latency.count == 3
        double, gate, together = told.stages
        assert (double.name, gate.name, gate.routes) == ("Double_1", "Gate_2", ("/inference",))
        assert [(each.worker_id, each.state) for each in gate.workers] == [(1, "ready"), (2, "ready")]
        assert double.workers[0].name.startswith("process ")
        assert (together.batch_size.count, together.max_batch_size, together.in_time) == (3, 4, 3)
    assert server.statistics() == ServiceReport()


async def test_while_workers_load_it_says_which(tmp_path: Path) -> None:
    gate = tmp_path / "open"
    server = Server()
    server.append_worker(LoadsWhenTold, kwargs={"gate": str(gate)})

    async def enter() -> None:
        async with server:
            pass

    starting = asyncio.create_task(enter())
    await until(lambda: server.statistics().loading, "nothing is loading")
    told = server.statistics()
    assert told.state == "loading"
    assert [(stage, worker.state) for stage, worker in told.loading] == [("LoadsWhenTold_1", "starting")]
    gate.touch()
    await starting
    assert server.statistics().state == "stopped"


async def test_a_place_without_a_worker_says_why() -> None:
    server = Server()
    server.append_worker(Double, executor="thread")
    server.append_worker(OneFails, num=2, executor="thread")
    async with server:
        told = server.statistics()
        errors = [worker.error for worker in told.stages[1].workers if worker.error]
        assert errors == ["RuntimeError: no memory left on the device"]


async def test_it_can_be_asked_from_another_thread() -> None:
    server = Server()
    server.append_worker(Double, executor="thread")
    async with server:
        told: list[ServiceReport] = []
        thread = threading.Thread(target=lambda: told.append(server.statistics()))
        thread.start()
        thread.join()
        assert told[0].state == "serving"
