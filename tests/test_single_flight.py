"""Equal inputs that are at a stage at one time are computed once, and each call has what is its own."""

from __future__ import annotations

import asyncio
import logging
import re
import textwrap
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import single_flight_workers as workers
from fakes import (
    PATIENCE,
    Events,
    FakeClock,
    Held,
    Service,
    Steps,
    Ticket,
    answer,
    new_task,
    refusal,
    running,
    settled_loop,
    stage,
    told,
    until,
)
from harness import python, wait_until, written
from harness import running as program_running
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi import Runtime, Server, Worker
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.single_flight import Flight, SingleFlight
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.batching.task import Event, State
from mosec_asgi.errors import (
    CLIENT_LEFT,
    STAGE_DOWN,
    TIMED_OUT,
    WORKER_DIED,
    DefinitionError,
    Failure,
    MosecError,
    StartupError,
    at_capacity,
    gave_way,
)
from mosec_asgi.messages import Call, Payload, Results


def sharing(name: str = "Echo_1", *, rules: Rules | None = None, **options: Any) -> StagePlan:
    return replace(stage(name, **options), coalesce=True, rules=rules or Rules())


async def answers(tickets: list[Ticket]) -> list[bytes | Failure]:
    return [await answer(ticket) for ticket in tickets]


def submit(service: Service, body: bytes, **fields: Any) -> Ticket:
    """Submit a call with what `Service.submit` does not set."""
    from mosec_asgi.batching.future import FutureOutcome

    caller = FutureOutcome()
    call = Call(service.coordinator.new_id(), 0, body, "", **fields)
    service.coordinator.submit(call, caller)
    return Ticket(call.id, caller.future)


# -- what is shared ----------------------------------------------------------------------------------------------------


async def test_equal_inputs_that_wait_or_run_are_computed_once_and_all_get_the_answer() -> None:
    async with running(sharing()) as service:
        first = [service.submit(b"a") for _ in range(3)]
        await service.worker.gets_work()
        later = [service.submit(b"a"), service.submit(b"b"), service.submit(b"b")]
        assert service.coordinator.statistics().stages[0].queued == 1
        service.worker.reply()
        assert await answers([*first, later[0]]) == [b"re:a"] * 4
        await service.worker.gets_work()
        service.worker.reply()
        assert await answers(later[1:]) == [b"re:b"] * 2
        assert service.worker.given == [first[0].id, later[1].id]


async def test_what_comes_after_the_answer_is_computed_anew() -> None:
    async with running(sharing()) as service:
        for _ in range(2):
            ticket = service.submit(b"a")
            await service.worker.gets_work()
            service.worker.reply()
            await answer(ticket)
        assert service.worker.sizes == [1, 1]


async def test_a_stage_that_does_not_say_so_computes_each() -> None:
    async with running(stage()) as service:
        tickets = [service.submit(b"a") for _ in range(2)]
        for _ in tickets:
            await service.worker.gets_work()
            service.worker.reply()
        assert await answers(tickets) == [b"re:a"] * 2
        assert service.worker.given == [ticket.id for ticket in tickets]


async def test_a_batch_holds_each_input_once() -> None:
    async with running(sharing(max_batch_size=4, max_wait=1e6)) as service:
        tickets = [service.submit(body) for body in (b"a", b"b", b"a", b"c", b"b", b"d")]
        await service.worker.gets_work()
        assert service.worker.sizes == [4]
        service.worker.reply()
        assert await answers(tickets) == [b"re:a", b"re:b", b"re:a", b"re:c", b"re:b", b"re:d"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"tenant": "x"}, {"tenant": "y"}),
        ({"priority": 1}, {"priority": 2}),
        ({"objects": True}, {"objects": False}),
        ({"example": True}, {"example": True}),
    ],
    ids=["tenants", "priorities", "objects and bytes", "dry runs"],
)
async def test_calls_whose_places_or_forms_differ_share_nothing(first: dict[str, Any], second: dict[str, Any]) -> None:
    async with running(sharing(concurrency=4, ordered=False)) as service:
        tickets = [submit(service, b"a", **fields) for fields in (first, second)]
        await until(lambda: len(service.worker.has) == 2)
        service.worker.reply()
        await answers(tickets)


@pytest.mark.parametrize("keyed", [False, True])
async def test_keys_matter_where_the_stage_has_keys(keyed: bool) -> None:
    plan = sharing(max_batch_size=4, max_wait=0.0, rules=Rules(keyed=keyed))
    async with running(plan) as service:
        tickets = [submit(service, b"a", key=key) for key in "xy"]
        while not all(ticket.outcome.done() for ticket in tickets):
            await service.worker.gets_work()
            service.worker.reply()
        assert len(service.worker.given) == (2 if keyed else 1)


async def test_inputs_in_shared_memory_are_not_compared() -> None:
    flights = SingleFlight(keyed=False)
    for number in range(2):
        task = new_task(number, 0.0)
        task.payload = Held(b"a")
        assert flights.join(task, 0, 0.0) is task
    assert not len(flights)


def test_a_stream_that_has_begun_runs_by_itself() -> None:
    flights = SingleFlight(keyed=False)
    begun = new_task(1, 0.0, payload=b"a", flow=Flow(100))
    assert begun.flow is not None
    begun.flow.came(3, 0.0)
    assert flights.join(begun, 0, 0.0) is begun
    assert isinstance(flights.join(new_task(2, 0.0, payload=b"a", flow=Flow(100)), 0, 0.0), Flight)


async def test_routes_that_share_a_stage_share_its_work_where_it_is_told_the_same() -> None:
    plans = [sharing("A_1"), stage("B_2"), stage("C_3")]
    async with running(*plans, routes=[[0, 1], [0, 2], [0]]) as service:
        a, b, c = service.workers
        tickets = [service.submit(b"a", route=route) for route in (0, 1, 2)]
        await a.gets_work()
        a.reply()
        await a.gets_work()
        a.reply()
        assert await answer(tickets[2]) == b"re:a"
        for worker in (b, c):
            await worker.gets_work()
            worker.reply()
        assert await answers(tickets) == [b"re:re:a"] * 2 + [b"re:a"]
        assert len(a.given) == 2, "the last route's stage encodes for its client"


async def test_a_later_stage_shares_what_became_equal_before_it() -> None:
    async with running(stage("A_1", max_batch_size=4), sharing("B_2")) as service:
        first, second = service.workers
        tickets = [service.submit(body) for body in (b"a", b"b", b"c")]
        while len(second.given) < 2:
            if first.has:
                first.reply(payloads=[b"same" if first.body(n) != b"c" else b"other" for n in first.has])
            if second.has:
                second.reply()
            await settled_loop()
        second.reply(second.has)
        assert await answers(tickets) == [b"re:same", b"re:same", b"re:other"]


# -- each has its own end ----------------------------------------------------------------------------------------------


async def test_the_first_caller_may_leave_and_the_others_get_their_answer() -> None:
    async with running(sharing()) as service:
        first, second, third = (service.submit(b"a") for _ in range(3))
        await service.worker.gets_work()
        service.coordinator.cancel(first.id)
        service.coordinator.cancel(third.id)
        await settled_loop()
        assert service.worker.cancelled == [], "somebody waits"
        assert (first.result, third.result) == (CLIENT_LEFT, CLIENT_LEFT)
        fourth = service.submit(b"a")
        service.worker.reply()
        assert await answers([second, fourth]) == [b"re:a"] * 2
        assert service.worker.given == [first.id]


async def test_what_the_last_caller_leaves_is_over_for_the_worker() -> None:
    async with running(sharing()) as service:
        tickets = [service.submit(b"a") for _ in range(2)]
        await service.worker.gets_work()
        for ticket in tickets:
            service.coordinator.cancel(ticket.id)
        await until(lambda: service.worker.cancelled == [tickets[0].id])
        again = service.submit(b"a")
        service.worker.reply()
        assert not again.outcome.done(), "that was of those who left"
        await service.worker.gets_work()
        service.worker.reply()
        assert await answer(again) == b"re:a"


async def test_what_the_last_caller_leaves_in_the_queue_is_never_sent() -> None:
    async with running(sharing()) as service:
        busy = service.submit(b"x")
        tickets = [service.submit(b"a") for _ in range(2)]
        for ticket in tickets:
            service.coordinator.cancel(ticket.id)
        assert service.coordinator.statistics().stages[0].queued == 0
        await service.worker.gets_work()
        service.worker.reply()
        assert await answer(busy) == b"re:x"
        await settled_loop()
        assert service.worker.given == [busy.id]


async def test_each_has_its_own_deadline() -> None:
    async with running(sharing()) as service:
        first = service.submit(b"a", timeout=0.01)
        second, third = service.submit(b"a"), service.submit(b"a", timeout=0.02)
        assert await answers([first, third]) == [TIMED_OUT] * 2
        assert service.worker.cancelled == []
        service.worker.reply()
        assert await answer(second) == b"re:a"
        assert service.metrics.stages[0].timeouts == 2


async def test_the_deadline_of_shared_work_is_the_last_of_its_callers() -> None:
    flights = SingleFlight(keyed=False)
    tasks = [new_task(number, 0.0, payload=b"a", deadline=deadline) for number, deadline in enumerate((5.0, 9.0, 7.0))]
    flight, *_ = [flights.join(task, 0, 0.0) for task in tasks]
    assert flight is not None
    assert flight.deadline == 9.0
    assert flights.leave(tasks[1]) is None
    assert flight.deadline == 7.0
    assert flights.leave(tasks[0]) is None
    assert flights.leave(tasks[2]) is flight
    assert not len(flights)


async def test_an_error_of_the_input_is_the_answer_to_all() -> None:
    async with running(sharing()) as service:
        tickets = [service.submit(b"a") for _ in range(2)]
        await service.worker.gets_work()
        service.worker.reply(code=422, payloads=[b"not so"])
        assert await answers(tickets) == [Failure(422, "not so")] * 2


async def test_two_dying_workers_are_the_end_for_all_and_each_is_named_in_the_log(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with running(sharing()) as service:
        tickets = [service.submit(b"a", name=name) for name in ("one", "two")]
        for _ in range(2):
            worker = service.worker
            await worker.gets_work()
            worker.exit()
            await service.next_life(worker)
            tickets.append(service.submit(b"a", name="late") if len(tickets) == 2 else tickets[-1])
        assert await answers(tickets[:3]) == [WORKER_DIED] * 3
        named = [told(record, "request_id") for record in logged.records if "answered 500" in record.getMessage()]
        assert named == [("one",), ("two",), ("late",)]
        assert not service.worker.has


async def test_a_stage_that_goes_down_answers_all_that_waits() -> None:
    async with running(sharing(num=1)) as service:
        busy = service.submit(b"x")
        tickets = [service.submit(b"a") for _ in range(2)]
        await service.worker.gets_work()
        service.launcher.refusal = StartupError("no more")
        service.worker.exit()
        assert await answers([*tickets, busy]) == [STAGE_DOWN] * 3


async def test_the_stop_answers_all() -> None:
    async with running(sharing()) as service:
        tickets = [service.submit(b"a") for _ in range(3)]
        stopping = asyncio.ensure_future(service.coordinator.stop(PATIENCE))
        await service.worker.gets_work()
        service.worker.reply()
        await stopping
        assert await answers(tickets) == [b"re:a"] * 3


async def test_callers_count_against_the_capacity_and_one_of_them_gives_way() -> None:
    async with running(sharing(), capacity=3) as service:
        busy = submit(service, b"x")
        waiting = [submit(service, b"a") for _ in range(2)]
        assert await refusal(submit(service, b"a")) == at_capacity(1)
        more = submit(service, b"b", priority=5)
        assert await answer(waiting[1]) == gave_way(1)
        for _ in range(3):
            await service.worker.gets_work()
            service.worker.reply()
            await settled_loop()
        assert await answers([busy, waiting[0], more]) == [b"re:x", b"re:a", b"re:b"]


# -- results that a link holds -----------------------------------------------------------------------------------------


async def test_a_held_result_goes_to_the_first_and_the_others_have_a_copy() -> None:
    async with running(sharing("A_1"), stage("B_2", max_batch_size=2, max_wait=1e6)) as service:
        first, second = service.workers
        tickets = [service.submit(b"a") for _ in range(2)]
        await first.gets_work()
        held = Held(b"large")
        first.reply(payloads=[held])
        await second.gets_work()
        assert [second.payload(ticket.id) for ticket in tickets] == [held, b"large"]
        second.reply(payloads=[b"1", b"2"])
        assert await answers(tickets) == [b"1", b"2"]
        assert held.drops == 1


async def test_a_held_result_that_nobody_waits_for_is_dropped() -> None:
    async with running(sharing()) as service:
        ticket, held = service.submit(b"a"), Held()
        await service.worker.gets_work()
        service.coordinator.cancel(ticket.id)
        service.worker.reply(payloads=[held])
        assert held.drops == 1


@pytest.mark.parametrize("error", [ImportError, SystemExit])
async def test_where_a_held_result_cannot_be_copied_the_first_has_it_and_the_others_an_error(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    class Foreign(Held):
        def copy(self) -> bytes:
            raise error("no module named theirs")

    async with running(sharing()) as service:
        tickets = [service.submit(b"a", name=name) for name in ("one", "two", "three")]
        await service.worker.gets_work()
        held = Foreign(b"large")
        service.worker.reply(payloads=[held])
        first, *others = await answers(tickets)
        assert first == b"large"
        assert {each.code for each in others if isinstance(each, Failure)} == {500}
        assert held.drops == 1
        (record,) = [record for record in logged.records if record.levelno == logging.ERROR]
        assert told(record, "request_id") == ("two three",)


# -- what is counted ---------------------------------------------------------------------------------------------------


async def test_work_counts_once_and_the_calls_that_shared_it_are_counted() -> None:
    async with running(sharing()) as service:
        tickets = [service.submit(b"a") for _ in range(5)]
        await service.worker.gets_work()
        told_now = service.coordinator.statistics()
        assert (told_now.admitted, told_now.stages[0].in_flight, told_now.stages[0].queued) == (5, 1, 0)
        service.worker.reply()
        await answers(tickets)
        metrics = service.metrics.stages[0]
        assert (metrics.coalesced, metrics.in_time, metrics.in_vain, metrics.queue_wait.count) == (4, 1, 0, 1)


async def test_equal_calls_beyond_what_a_stage_could_compute_are_no_overload() -> None:
    clock = FakeClock()
    async with running(sharing(), clock=clock, capacity=100_000, timeout=1.0, load_shedding=True) as service:
        for _ in range(60):
            tickets = [service.submit(b"a") for _ in range(40)]
            await service.worker.gets_work()
            clock.advance(0.1)
            service.worker.reply(seconds=0.1)
            await answers(tickets)
        offered = service.coordinator._stages[0].admission.offered
        assert offered.per_second <= 11, "that is what it has to do: ten a second"


async def test_the_times_of_each_call_are_its_own() -> None:
    clock = FakeClock()
    plan = replace(sharing(), times=True)
    async with running(plan, clock=clock) as service:
        first = service.submit(b"a")
        await service.worker.gets_work()
        clock.advance(2.0)
        second = service.submit(b"a")
        clock.advance(1.0)
        service.worker.reply()
        await answers([first, second])
        times = [ticket.outcome.result().times for ticket in (first, second)]
        assert [(time.queue, time.compute) for (time,) in times] == [(0.0, 3.0), (0.0, 1.0)]


# -- by chance ---------------------------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 3)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["send", "die", "answer"]), st.integers(0, 3)),
    ),
    max_size=60,
)


@given(ACTIONS)
@settings(deadline=None)
def test_whatever_happens_each_call_is_in_one_flight_and_each_input_in_one(actions: list[tuple[str, int]]) -> None:
    flights = SingleFlight(keyed=False)
    live: dict[bytes, Flight] = {}
    waiting: dict[bytes, list[int]] = {}
    tasks = {}
    answered: dict[int, Payload] = {}
    for number, (what, which) in enumerate(actions):
        body = b"%d" % which
        flight = live.get(body)
        if what == "join":
            tasks[number] = task = new_task(number, 0.0, payload=body, deadline=float(number * 7 % 10))
            unit = flights.join(task, 0, 0.0)
            assert (unit is None) == (flight is not None), "an input has one flight"
            if isinstance(unit, Flight):
                live[body] = unit
            waiting.setdefault(body, []).append(number)
        elif what == "leave":
            found = next(((body, which) for body, numbers in waiting.items() if which in numbers), None)
            if found is not None:
                waiting[found[0]].remove(which)
                left = flights.leave(tasks[which])
                assert (left is None) == bool(waiting[found[0]])
                tasks[which].settle()
                if left is not None:
                    assert left is live.pop(found[0])
                    left.settle()
        elif flight is not None:
            if what == "send" and flight.state is State.QUEUED:
                flight.step(Event.DISPATCH)
                flights.sent([flight], 0.0)
            elif what == "die" and flight.state is State.SENT:
                flight.step(Event.REQUEUE)
                flights.requeued([flight])
            elif what == "answer" and flight.state is State.SENT:
                results = Results([flight.id], [200], [b"re:" + flight.payload], 0.1)  # type: ignore[operator]
                found_tasks, expanded = flights.landed([live.pop(body)], results, lambda payload, tasks: (200, b""))
                assert [task.id for task in found_tasks] == waiting.pop(body)
                answered |= dict(zip(expanded.ids, expanded.payloads, strict=True))
                assert flight.state is State.SETTLED
        for body, flight in live.items():
            callers = flights.callers(flight)
            assert [task.id for task in callers] == waiting[body]
            assert {task.state for task in callers} == {flight.state}
            assert flight.deadline == max(task.deadline for task in callers)
        assert len(flights) == len(live)
    assert all(payload == b"re:%d" % actions[number][1] for number, payload in answered.items())


# -- definitions -------------------------------------------------------------------------------------------------------


class Asks(Worker):
    takes_request = True

    def forward(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    ("worker", "coalesce", "why"),
    [
        (Asks, True, "with `takes_request` the result may depend on which request it is"),
        (Events, True, "a stream goes to one client"),
        (Steps, True, "a stream goes to one client"),
        (workers.Adds, 1, "must be True or False, not 1"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_to_do(worker: type[Worker], coalesce: Any, why: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(why)):
        Runtime(worker, coalesce=coalesce)


# -- real workers ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(*stages: type[Worker], executor: str, coalesce: bool = True) -> AsyncIterator[Server]:
    server = Server(timeout=20_000)
    for each in stages:
        server.append_worker(each, executor=executor, coalesce=coalesce and each is workers.Counts)
    async with server:
        yield server


def coalesced(server: Server) -> int:
    return server.statistics().stages[0].coalesced


@pytest.mark.parametrize("executor", ["process", "thread"])
async def test_calls_of_objects_share_the_work_and_not_the_result(executor: str, tmp_path: Path) -> None:
    item = {"until": str(tmp_path / "now"), "large": True}
    async with serving(workers.Counts, executor=executor) as server:
        calls = [asyncio.ensure_future(server.infer(item)) for _ in range(10)]
        gone = asyncio.ensure_future(server.infer(item))
        await until(lambda: coalesced(server) == 10)
        gone.cancel()
        (tmp_path / "now").touch()
        results = await asyncio.gather(*calls)
        assert [int(each[0]) for each in results] == [1] * 10
        results[0][0] = 7
        assert [int(each[0]) for each in results] == [7] + [1] * 9
        assert int((await server.infer(item))[0]) == 2


async def test_large_results_go_on_to_the_next_stage_for_each(tmp_path: Path) -> None:
    item = {"until": str(tmp_path / "now"), "large": True}
    async with serving(workers.Counts, workers.Adds, executor="process") as server:
        calls = [asyncio.ensure_future(server.infer(item)) for _ in range(4)]
        await until(lambda: coalesced(server) == 3)
        (tmp_path / "now").touch()
        assert await asyncio.gather(*calls) == [2] * 4
        await until(lambda: server.statistics().shared_memory == 0)


async def test_a_failure_reaches_each_caller(tmp_path: Path) -> None:
    item = {"until": str(tmp_path / "now"), "bad": True}
    async with serving(workers.Counts, executor="thread") as server:
        calls = [asyncio.ensure_future(server.infer(item)) for _ in range(3)]
        await until(lambda: coalesced(server) == 2)
        (tmp_path / "now").touch()
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert len({id(failure) for failure in failures}) == 3
        assert {(failure.code, str(failure)) for failure in failures if isinstance(failure, MosecError)} == {
            (422, str(failures[0]))
        }
        assert "call 1 is bad" in str(failures[0])


PROGRAM = """
    from mosec_asgi import Server
    from single_flight_workers import Counts

    if __name__ == "__main__":
        server = Server(timeout=30_000)
        server.append_worker(Counts, coalesce=True)
        server.run()
"""


def test_of_a_hundred_equal_requests_at_once_forward_is_called_for_one(tmp_path: Path) -> None:
    file = written(tmp_path, textwrap.dedent(PROGRAM))
    with program_running(python(file), tmp_path / "output.log") as program, ThreadPoolExecutor(100) as pool:
        program.wait_ready()
        body = {"until": str(tmp_path / "now"), "reply": True}
        client = httpx.Client(timeout=PATIENCE, limits=httpx.Limits(max_connections=100))

        def ask(_: int) -> httpx.Response:
            return client.post(f"http://127.0.0.1:{program.port}/inference", json=body)

        def number(name: str) -> int:
            found = re.search(rf"^mosec_service_{name}(?:\{{.*\}})? (\d+)", program.client.get("/metrics").text, re.M)
            return int(found[1]) if found else 0

        asked = [pool.submit(ask, place) for place in range(100)]
        wait_until(lambda: number("remaining_task") == 100, "all requests are there")
        (tmp_path / "now").touch()
        responses = [each.result() for each in asked]
        assert {(each.status_code, each.headers["x-call"], each.json()) for each in responses} == {(201, "1", 1)}
        assert len({each.headers["x-request-id"] for each in responses}) == 100
        assert number("tasks_coalesced_total") == 99
        assert ask(0).json() == 2
        client.close()
