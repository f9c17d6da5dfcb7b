from __future__ import annotations

import asyncio
import functools
import logging
import time
from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    PATIENCE,
    FakeClock,
    FakeWorker,
    Held,
    Service,
    answer,
    refusal,
    running,
    settled_loop,
    stage,
    told,
    until,
)
from pickled import PickledCoordinator

from mosec_asgi.batching.engine import StageStatistics
from mosec_asgi.batching.future import FutureOutcome
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.errors import (
    CANCELLED,
    CLIENT_LEFT,
    CLOSING,
    INTERNAL_ERROR_TEXT,
    LOADING,
    STAGE_DOWN,
    STALLED,
    TIMED_OUT,
    TOO_LONG,
    UNSEEN,
    WORKER_DIED,
    Failure,
    StartupError,
    at_capacity,
    describe,
    not_begun,
    too_late,
    too_slow,
)
from mosec_asgi.messages import (
    EGRESS,
    EXAMPLE,
    INGRESS,
    OBJECT_IN,
    OBJECT_OUT,
    Call,
    Chunk,
    LinkError,
    Outcome,
    Results,
    Tasks,
)

pytestmark = pytest.mark.usefixtures("logged")


@pytest.fixture(autouse=True, params=["in one process", "every message as bytes"])
def crossing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run each test also where every message crosses a socket, in both directions; whether this is so."""
    pickled: bool = request.param != "in one process"
    if pickled:
        monkeypatch.setattr(Service, "engine", PickledCoordinator)
    return pickled


async def let_start_fail(service: Service, stage_name: str = "Echo_1") -> None:
    """Let the only worker of a stage die and its next start fail, so that the stage is down."""
    (worker,) = service.launcher.alive(stage_name)
    service.launcher.on_launch = None
    launches = len(service.launcher.launched)
    worker.exit()
    await until(lambda: len(service.launcher.launched) > launches)
    service.launcher.launched[-1].fail_to_start("OSError: no weights")
    service.launcher.on_launch = FakeWorker.ready


# -- there and back ----------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_with_what_its_worker_answers() -> None:
    async with running(stage()) as service:
        ticket = service.submit(b"body", name="mine")
        await service.worker.gets_work()
        (tasks,) = service.worker.sent
        assert list(tasks.payloads) == [b"body"]
        assert list(tasks.request_ids) == ["mine"]
        assert list(tasks.flags) == [INGRESS | EGRESS]
        service.worker.reply(payloads=[b"result"])
        assert await answer(ticket) == b"result"


async def test_a_lonely_request_does_not_wait_for_the_end_of_the_turn() -> None:
    async with running(stage()) as service:
        service.submit()
        assert service.worker.sizes == [1]


async def test_all_requests_of_one_turn_are_one_message() -> None:
    async with running(stage()) as service:
        worker = service.worker
        await service.make_quick(worker)
        service.submit()
        await worker.gets_work()
        before = len(worker.sent)
        tickets = [service.submit() for _ in range(5)]
        await settled_loop()
        assert worker.sizes[before:] == [5]
        worker.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"re:%d" % n for n in range(3, 8)]


async def test_results_and_requests_of_one_turn_lead_to_one_message() -> None:
    async with running(stage(num=2), stage("Last_2", max_batch_size=8)) as service:
        first, second, last = service.workers
        for _ in range(2):
            service.submit()
        await until(lambda: first.has and second.has)
        first.reply()
        second.reply()
        await last.gets_work()
        assert last.sizes == [2]


async def test_a_burst_of_a_full_batch_is_one_message() -> None:
    async with running(stage(num=4, max_batch_size=8, max_wait=1.0)) as service:
        for _ in range(8):
            service.submit()
        await settled_loop()
        assert [worker.sizes for worker in service.workers] == [[8], [], [], []]


async def test_answers_belong_to_their_requests_whatever_their_order() -> None:
    async with running(stage(num=3)) as service:
        tickets = [service.submit(b"%d" % n) for n in range(3)]
        await until(lambda: all(worker.has for worker in service.workers))
        for worker in reversed(service.workers):
            worker.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"re:0", b"re:1", b"re:2"]


async def test_answers_in_another_order_belong_to_their_requests_where_a_worker_keeps_none() -> None:
    async with running(stage(max_batch_size=3, max_wait=1.0, ordered=False)) as service:
        tickets = [service.submit() for _ in range(3)]
        await service.worker.gets_work()
        service.worker.reply(list(reversed(service.worker.has)))
        assert [await answer(ticket) for ticket in tickets] == [b"re:1", b"re:2", b"re:3"]


async def test_a_worker_that_keeps_order_and_answers_out_of_it_is_killed_and_no_answer_is_believed() -> None:
    async with running(stage(max_batch_size=3, max_wait=1.0)) as service:
        worker = service.worker
        tickets = [service.submit() for _ in range(3)]
        await worker.gets_work()
        worker.reply(list(reversed(worker.has)), payloads=[b"a", b"b", b"c"])
        assert worker.killed
        worker = await service.next_life(worker)
        for ticket in tickets:
            await worker.gets_work()
            worker.reply()
            assert await answer(ticket) == b"re:%d" % ticket.id


async def test_an_error_of_the_worker_is_the_answer() -> None:
    async with running(stage()) as service:
        ticket = service.submit()
        await service.worker.gets_work()
        service.worker.reply(code=422, payloads=["nötig \udcff".encode(errors="surrogateescape")])
        assert await answer(ticket) == Failure(422, "nötig \ufffd")


async def test_a_worker_cannot_say_that_a_client_has_left_which_waits(logged: pytest.LogCaptureFixture) -> None:
    async with running(stage("First_1"), stage("Last_2")) as service:
        ticket = service.submit()
        (worker,) = service.launcher.alive("First_1")
        await worker.gets_work()
        worker.reply(code=CANCELLED)
        assert await answer(ticket) == Failure(500, INTERNAL_ERROR_TEXT)
        assert "answered 500: its worker said that the client had left, which it has not" in logged.messages


async def test_each_stage_gets_what_the_one_before_has_answered() -> None:
    async with running(stage("A_1"), stage("B_2"), stage("C_3")) as service:
        first, second, third = service.workers
        ticket = service.submit(b"body")
        for worker, received, flags in (
            (first, b"body", INGRESS),
            (second, b"re:body", 0),
            (third, b"re:re:body", EGRESS),
        ):
            await worker.gets_work()
            assert list(worker.sent[0].payloads) == [received]
            assert list(worker.sent[0].flags) == [flags]
            worker.reply()
        assert await answer(ticket) == b"re:re:re:body"


async def test_an_error_ends_the_way_through_the_stages() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        ticket = service.submit()
        await first.gets_work()
        first.reply(code=400, payloads=[b"bad request: no"])
        assert await answer(ticket) == Failure(400, "bad request: no")
        await settled_loop()
        assert second.given == []


async def test_routes_share_a_stage_and_keep_their_own_ways() -> None:
    async with running(stage("Shared_1"), stage("Only_2"), routes=[[0], [0, 1]]) as service:
        shared, only = service.workers
        short, long = service.submit(route=0), service.submit(route=1)
        await shared.gets_work()
        assert shared.sent[0].flags[0] == INGRESS | EGRESS
        shared.reply()
        assert await answer(short) == b"re:1"
        await shared.gets_work()
        assert shared.sent[1].flags[0] == INGRESS
        shared.reply()
        await only.gets_work()
        only.reply()
        assert await answer(long) == b"re:re:2"


async def test_an_example_takes_the_place_of_the_body() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        ticket = service.try_to_submit(0, b"", "dry-run", example=True)
        await first.gets_work()
        assert list(first.sent[0].flags) == [EXAMPLE]
        first.reply()
        await second.gets_work()
        assert list(second.sent[0].flags) == [EGRESS]
        second.reply()
        assert await answer(ticket) == b"re:re:"


async def test_a_call_of_objects_has_flags_of_its_own_in_the_same_batch() -> None:
    async with running(
        stage("A_1", max_batch_size=2, max_wait=1.0), stage("B_2", max_batch_size=2, max_wait=1.0)
    ) as service:
        first, second = service.workers
        plain = service.submit()
        caller, call = Told(), Call(service.coordinator.new_id(), 0, b"item", "mine", objects=True)
        service.coordinator.submit(call, caller)
        await first.gets_work()
        assert list(first.sent[0].flags) == [INGRESS, OBJECT_IN]
        first.reply()
        await second.gets_work()
        assert list(second.sent[0].flags) == [EGRESS, OBJECT_OUT]
        second.reply()
        assert (await answer(plain), caller.outcomes) == (b"re:re:1", [Outcome(call.id, 200, b"re:re:item")])


async def test_what_a_link_holds_is_passed_on_to_a_caller_of_objects_and_to_no_other() -> None:
    async with running(stage()) as service:
        for objects in (True, False):
            held, caller = Held(), Told()
            call = Call(service.coordinator.new_id(), 0, b"item", "mine", objects=objects)
            service.coordinator.submit(call, caller)
            await service.worker.gets_work()
            service.worker.reply(payloads=[held])
            await settled_loop()
            [outcome] = caller.outcomes
            assert (outcome.code, held.drops) == (200, 0 if outcome.payload is held else 1)
            if not objects:
                assert outcome.payload == b"contents"
            elif service.engine is not PickledCoordinator:
                assert outcome.payload is held


async def test_the_end_of_a_stream_is_never_held_in_memory() -> None:
    async with running(streaming()) as service:
        held, caller = Held(b""), Told()
        call = Call(service.coordinator.new_id(), 0, b"item", "mine", objects=True)
        service.coordinator.submit(call, caller)
        await service.worker.gets_work()
        service.worker.reply(payloads=[held])
        await settled_loop()
        assert caller.outcomes == [Outcome(call.id, 200, b"")]
        assert held.drops == 1


@pytest.mark.parametrize("how", ["refused", "answered", "cancelled"])
async def test_the_engine_drops_the_input_that_a_link_holds_whatever_becomes_of_the_call(how: str) -> None:
    async with running(stage(), capacity=0 if how == "refused" else 1) as service:
        held = Held()
        call = Call(service.coordinator.new_id(), 0, held, "mine", objects=True)
        service.coordinator.submit(call, Told())
        if how == "answered":
            await service.worker.gets_work()
            service.worker.reply(payloads=[b"done"])
        elif how == "cancelled":
            service.coordinator.cancel(call.id)
        await settled_loop()
        assert held.drops == 1


# -- waiting for a batch -----------------------------------------------------------------------------------------------


async def test_a_batch_that_does_not_fill_leaves_when_its_oldest_has_waited_by_the_clock() -> None:
    clock = FakeClock()
    async with running(stage(max_batch_size=8, max_wait=0.01), clock=clock) as service:
        service.submit()
        clock.advance(0.005)
        service.submit()
        # The loop's own time passes, and that of the clock does not.
        await asyncio.sleep(0.03)
        assert service.worker.sent == []
        clock.advance(0.005)
        await until(lambda: service.worker.sent)
        assert service.worker.sizes == [2]


async def test_a_batch_that_fills_does_not_wait() -> None:
    async with running(stage(max_batch_size=2, max_wait=100.0)) as service:
        service.submit()
        await settled_loop()
        assert service.worker.sent == []
        service.submit()
        await settled_loop()
        assert service.worker.sizes == [2]


async def test_without_a_wait_of_its_own_a_stage_does_not_wait_for_what_will_not_come() -> None:
    async with running(stage(max_batch_size=8, max_wait=100.0, adaptive=True)) as service:
        service.submit()
        await settled_loop()
        assert service.worker.sizes == [1]


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_beyond_its_capacity_a_service_refuses_until_one_is_answered() -> None:
    async with running(stage(), capacity=3) as service:
        tickets = [service.submit() for _ in range(3)]
        refused = await refusal(service.try_to_submit(0, b"", "one too many"))
        assert refused == at_capacity(1)
        assert isinstance(refused, Failure)
        assert (refused.code, refused.retry_after) == (429, 1)
        assert service.metrics.stages[0].rejected == 1
        await service.worker.gets_work()
        service.worker.reply()
        await answer(tickets[0])
        service.submit()
        assert await refusal(service.try_to_submit(0, b"", "one too many")) == refused
        assert service.coordinator.statistics().admitted == 3


@pytest.mark.parametrize("end", ["cancel", "time out"])
async def test_a_task_that_ends_without_an_answer_makes_room(end: str) -> None:
    async with running(stage(), capacity=1) as service:
        ticket = service.submit(timeout=0.005 if end == "time out" else None)
        if end == "cancel":
            service.coordinator.cancel(ticket.id)
        await answer(ticket)
        service.submit()


async def test_after_close_requests_are_refused_and_admitted_ones_are_answered() -> None:
    async with running(stage()) as service:
        ticket = service.submit()
        service.coordinator.close()
        refused = await refusal(service.try_to_submit(0, b"", "late"))
        assert refused == CLOSING
        assert isinstance(refused, Failure)
        assert (refused.code, refused.retry_after) == (503, 1)
        assert service.coordinator.statistics().closing
        await service.worker.gets_work()
        service.worker.reply()
        assert await answer(ticket) == b"re:1"


async def saturate(service: Service, worker: FakeWorker, clock: FakeClock, seconds: float) -> None:
    """Let the only worker of a stage answer one task each so many seconds while others wait, until none is left."""
    while service.coordinator.statistics().admitted:
        await settled_loop()
        clock.advance(seconds)
        worker.reply(seconds=seconds)


async def test_a_service_at_its_capacity_says_when_it_will_have_worked_that_off() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, capacity=25, timeout=1e6) as service:
        for _ in range(25):
            service.submit()
        assert await refusal(service.try_to_submit(0, b"", "")) == at_capacity(1), "nothing is known yet"
        await saturate(service, service.worker, clock, 0.125)
        for _ in range(25):
            service.submit()
        # One is on the worker, 24 wait, and it does eight in a second.
        assert await refusal(service.try_to_submit(0, b"", "")) == at_capacity(3)


async def test_nobody_is_sent_away_for_more_than_a_minute() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, capacity=10, timeout=1e6) as service:
        for _ in range(2):
            for _ in range(10):
                service.submit()
            refused = await refusal(service.try_to_submit(0, b"", ""))
            await saturate(service, service.worker, clock, 1000.0)
        assert refused == at_capacity(60)


async def test_the_slowest_stage_of_a_route_says_when_to_come_again() -> None:
    clock = FakeClock()
    stages = [stage("A_1"), stage("B_2"), stage("Slow_3")]
    async with running(*stages, routes=[[0, 1], [2]], clock=clock, capacity=30, timeout=1e6) as service:
        first, second, slow = service.workers
        # The second stage of the route is what holds it up: 15 wait there, and it does eight in a second.
        for _ in range(2):
            for _ in range(16):
                service.submit()
            while len(second.has) + service.coordinator.statistics().stages[1].queued < 16:
                await first.gets_work()
                first.reply(seconds=0.0001)
            await second.gets_work()
            before = service.coordinator.statistics()
            if not service.coordinator._stages[1].admission.times.mean:
                await saturate(service, second, clock, 0.125)
        assert before.stages[1].queued == 15
        for _ in range(14):
            service.submit(route=1)
        assert await refusal(service.try_to_submit(0, b"", "")) == at_capacity(2)
        assert await refusal(service.try_to_submit(1, b"", "")) == at_capacity(1)
        assert slow.has


# -- load shedding -----------------------------------------------------------------------------------------------------


async def known_to_do_eight_a_second(service: Service, clock: FakeClock) -> None:
    """Let the only worker of a service show its speed."""
    for _ in range(20):
        service.submit()
    await saturate(service, service.worker, clock, 0.125)


async def test_a_request_that_would_not_be_done_in_time_is_refused_at_once_where_that_is_asked_for() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, timeout=2.0, load_shedding=True) as service:
        await known_to_do_eight_a_second(service, clock)
        tickets = [service.try_to_submit(0, b"", "") for _ in range(19)]
        admitted = service.coordinator.statistics().admitted
        assert await refusal(tickets[-1]) == too_late(2)
        assert too_late(2).code == 429
        assert admitted == 16, "one on the worker, and 15 that are done two seconds after its beginning"
        assert service.metrics.stages[0].refusals == {"deadline": 3}
        # As soon as one is done there is room for another.
        await settled_loop()
        service.worker.reply(seconds=0.125)
        await settled_loop()
        service.submit()


async def test_it_is_the_requests_own_time_that_counts() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, timeout=1e6, load_shedding=True) as service:
        await known_to_do_eight_a_second(service, clock)
        for _ in range(16):
            service.submit()
        # 15 wait, which takes two seconds with the one on the worker; and one's own time comes on top of that.
        refused = await refusal(service.try_to_submit(0, b"", "", 2.1))
        assert refused == too_late(2)
        service.submit(timeout=2.2)
        service.submit()


async def test_a_call_that_allows_less_than_the_model_takes_is_answered_408_at_once() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, timeout=1e6, load_shedding=True) as service:
        await known_to_do_eight_a_second(service, clock)
        assert await refusal(service.try_to_submit(0, b"", "", 0.1)) == TOO_LONG
        assert (TOO_LONG.code, TOO_LONG.retry_after) == (408, None)
        assert service.metrics.stages[0].refusals == {"own_time": 1}
        assert not service.worker.has


@pytest.mark.parametrize("own", [True, False], ids=["its own timeout", "the service's timeout"])
async def test_a_task_that_cannot_be_finished_any_more_is_dropped_at_the_queues_head(
    own: bool, logged: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, timeout=1e6 if own else 2.0, load_shedding=True) as service:
        await known_to_do_eight_a_second(service, clock)
        first = service.submit()
        await settled_loop()
        second = service.submit(timeout=2.0 if own else None)
        # The worker takes much longer than it ever has.
        clock.advance(1.95)
        service.worker.reply()
        if own:
            assert await answer(first) == b"re:21"
        setting = "the header `x-request-timeout`" if own else "`timeout`"
        assert await answer(second) == not_begun("Echo_1", 0.125, 0.05, setting)
        assert service.worker.has == []
        assert service.metrics.stages[0].timeouts == 1
        (record,) = [record for record in logged.records if "not begun" in record.message]
        assert record.request_id == "request-22"  # type: ignore[attr-defined]


async def test_a_service_that_sheds_no_load_begins_what_is_late() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, timeout=1e6, load_shedding=False) as service:
        await known_to_do_eight_a_second(service, clock)
        service.submit()
        await settled_loop()
        second = service.submit(timeout=2.0)
        clock.advance(1.95)
        service.worker.reply()
        await settled_loop()
        assert service.worker.has == [second.id]


async def test_a_stage_knows_what_is_on_its_way_to_it() -> None:
    async with running(stage("A_1"), stage("B_2"), timeout=PATIENCE, load_shedding=True) as service:
        first, second = service.workers
        coming = service.coordinator._stages[1].admission
        tickets = [service.submit() for _ in range(3)]
        assert coming.coming == 3
        service.coordinator.cancel(tickets[2].id)
        assert coming.coming == 2, "its client has left"
        first.reply()
        assert coming.coming == 1, "it is there"
        await second.gets_work()
        second.reply()
        assert coming.coming == 1


async def test_requests_are_admitted_whatever_the_backlog_where_nothing_else_is_asked_for() -> None:
    clock = FakeClock()
    async with running(stage(), clock=clock, timeout=2.0) as service:
        await known_to_do_eight_a_second(service, clock)
        for _ in range(100):
            service.submit()


async def test_a_service_whose_speed_is_not_known_sheds_nothing() -> None:
    async with running(stage(), timeout=PATIENCE, load_shedding=True) as service:
        for _ in range(100):
            service.submit()


async def test_streams_that_run_do_not_stand_in_the_way_of_others_while_there_are_slots() -> None:
    clock = FakeClock()
    plan = streaming(concurrency=32)
    async with running(plan, clock=clock, timeout=3.0, event_timeout=1e6, load_shedding=True) as service:
        for _ in range(4):
            streams = [service.stream() for _ in range(16)]
            await until(lambda: len(service.worker.has) == 16)
            service.worker.emit(service.worker.has, [b"a"] * 16)
            clock.advance(10.0)
            service.worker.reply(payloads=[b""] * 16)
            assert [await answer(stream.ticket) for stream in streams] == [b""] * 16


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def test_a_task_on_a_worker_is_answered_408_at_its_deadline(logged: pytest.LogCaptureFixture) -> None:
    async with running(stage()) as service:
        began = time.monotonic()
        ticket = service.submit(timeout=0.02, name="slow one")
        assert await answer(ticket) == TIMED_OUT
        assert TIMED_OUT.code == 408
        assert 0.02 <= time.monotonic() - began < 5.0
        assert service.metrics.stages[0].timeouts == 1
        (record,) = [record for record in logged.records if record.levelno == logging.WARNING]
        assert told(record, "request_id", "stage") == ("slow one", "Echo_1")


async def test_a_task_in_the_queue_is_answered_408_and_never_sent() -> None:
    async with running(stage()) as service:
        first = service.submit()
        waiting = service.submit(timeout=0.01)
        assert await answer(waiting) == TIMED_OUT
        service.worker.reply()
        await answer(first)
        last = service.submit()
        await service.worker.gets_work()
        assert service.worker.given == [first.id, last.id]


async def test_each_task_has_its_own_deadline_whatever_their_order() -> None:
    async with running(stage(max_batch_size=8, max_wait=0.0)) as service:
        order: list[str] = []
        for name, timeout in (("late", 0.06), ("early", 0.01), ("middle", 0.03), ("never", 100.0)):
            ticket = service.submit(timeout=timeout)
            ticket.outcome.add_done_callback(functools.partial(lambda name, _: order.append(name), name))
        await until(lambda: len(order) == 3)
        assert order == ["early", "middle", "late"]
        assert service.coordinator.statistics().admitted == 1


async def test_a_deadline_counts_through_all_stages_and_deaths() -> None:
    clock = FakeClock()
    async with running(stage("A_1"), stage("B_2"), clock=clock) as service:
        first, second = service.workers
        ticket = service.submit(timeout=0.01)
        await first.gets_work()
        clock.advance(0.004)
        first.reply()
        await second.gets_work()
        clock.advance(0.004)
        second.exit()
        second = await service.next_life(second)
        await second.gets_work()
        assert not ticket.outcome.done()
        clock.advance(0.002)
        assert await answer(ticket) == TIMED_OUT


async def test_the_timeout_of_the_service_counts_where_a_request_has_none() -> None:
    async with running(stage(), timeout=0.01) as service:
        assert await answer(service.submit()) == TIMED_OUT


async def test_a_requests_own_time_counts_where_it_is_shorter_than_the_services() -> None:
    clock = FakeClock()
    async with running(stage(max_batch_size=8, max_wait=1e6), clock=clock, timeout=0.03) as service:
        short, longer, own = service.submit(timeout=0.01), service.submit(timeout=1e6), service.submit()
        clock.advance(0.02)
        assert await answer(short) == TIMED_OUT
        assert not longer.outcome.done()
        assert not own.outcome.done()
        clock.advance(0.01)
        assert [await answer(longer), await answer(own)] == [TIMED_OUT, TIMED_OUT]


async def test_the_worker_is_told_of_a_task_that_was_answered_408() -> None:
    async with running(stage()) as service:
        ticket = service.submit(timeout=0.005)
        assert await answer(ticket) == TIMED_OUT
        await until(lambda: service.worker.cancelled == [ticket.id])


async def test_a_worker_that_is_stuck_is_replaced_and_its_requests_are_answered_408() -> None:
    clock = FakeClock()
    async with running(stage(timeout=0.1), clock=clock, timeout=1e6) as service:
        stuck = service.worker
        ticket, waiting = service.submit(), service.submit()
        while not stuck.killed:
            looks = stuck.looks
            await until(lambda looks=looks: stuck.looks > looks)  # type: ignore[misc]
            clock.advance(0.25)
        assert await answer(ticket) == describe(too_slow(0.1, UNSEEN))
        worker = await service.next_life(stuck)
        await worker.gets_work()
        worker.reply()
        assert await answer(waiting) == b"re:2"
        assert service.metrics.stages[0].timeouts == 1


async def test_the_answer_to_a_task_that_was_answered_408_is_dropped() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        ticket = service.submit(timeout=0.005)
        assert await answer(ticket) == TIMED_OUT
        first.reply()
        await settled_loop()
        assert ticket.result == TIMED_OUT
        assert first.alive
        assert not first.killed
        assert second.given == []
        # And its worker is free for the next.
        service.submit()
        await first.gets_work()


# -- clients that leave ------------------------------------------------------------------------------------------------


async def test_a_waiting_task_whose_client_leaves_is_never_sent() -> None:
    async with running(stage()) as service:
        first, second, third = (service.submit() for _ in range(3))
        await service.worker.gets_work()
        service.coordinator.cancel(second.id)
        assert await answer(second) == CLIENT_LEFT
        assert service.coordinator.statistics().stages[0].queued == 1
        service.worker.reply()
        await service.worker.gets_work()
        assert service.worker.given == [first.id, third.id]
        assert service.metrics.stages[0].cancellations == 1


async def test_a_task_whose_client_leaves_goes_to_no_further_stage() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        ticket = service.submit()
        await first.gets_work()
        service.coordinator.cancel(ticket.id)
        assert await answer(ticket) == CLIENT_LEFT
        first.reply()
        await settled_loop()
        assert second.given == []
        assert service.coordinator.statistics().admitted == 0


async def test_leaving_after_the_answer_changes_nothing() -> None:
    async with running(stage()) as service:
        ticket = service.submit()
        service.worker.reply()
        service.coordinator.cancel(ticket.id)
        service.coordinator.cancel(ticket.id)
        assert await answer(ticket) == b"re:1"
        service.coordinator.cancel(12345)
        assert service.metrics.stages[0].cancellations == 0


async def test_a_future_that_its_waiter_has_cancelled_disturbs_nobody() -> None:
    async with running(stage(max_batch_size=2, max_wait=1.0)) as service:
        gone, stays = service.submit(), service.submit()
        gone.outcome.cancel()
        await service.worker.gets_work()
        service.worker.reply()
        assert await answer(stays) == b"re:2"


class Told:
    """A caller that writes down what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.chunks: list[Chunk] = []

    def settled(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def streamed(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)


class Faulty:
    """A caller that can be told nothing."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def settled(self, outcome: Outcome) -> None:
        raise self._error(f"nothing to do with {outcome!r}")

    def streamed(self, chunk: Chunk) -> None:
        raise self._error(f"nothing to do with {chunk!r}")


# What a caller runs may be the user's code, and that of libraries.
FAULTS = pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])


@FAULTS
async def test_a_fault_of_who_is_told_an_outcome_disturbs_nobody(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    async with running(stage(max_batch_size=3, max_wait=1.0)) as service:
        first = service.submit()
        service.coordinator.submit(Call(service.coordinator.new_id(), 0, b"2", "the-faulty"), Faulty(error))
        last = service.submit()
        await service.worker.gets_work()
        service.worker.reply()
        assert [await answer(first), await answer(last)] == [b"re:1", b"re:2"]
        assert service.coordinator.statistics().admitted == 0
    (record,) = [record for record in logged.records if record.levelno >= logging.ERROR]
    assert told(record, "request_id") == ("the-faulty",)


@FAULTS
async def test_a_fault_of_who_is_told_a_piece_of_a_stream_disturbs_nobody(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    async with running(streaming()) as service:
        other = service.stream()
        faulty = Call(service.coordinator.new_id(), 0, b"", "the-faulty")
        service.coordinator.submit(faulty, Faulty(error))
        await until(lambda: len(service.worker.has) == 2)
        service.worker.emit([faulty.id, other.id], [b"a", b"b"])
        assert (other.chunks, service.worker.killed) == ([b"b"], False)
        (record,) = [record for record in logged.records if record.levelno >= logging.ERROR]
        assert told(record, "request_id") == ("the-faulty",)


async def test_an_outcome_is_told_once_whatever_ends_the_task() -> None:
    async with running(stage()) as service:
        caller, call = Told(), Call(service.coordinator.new_id(), 0, b"1", "mine")
        service.coordinator.submit(call, caller)
        await service.worker.gets_work()
        service.coordinator.cancel(call.id)
        assert caller.outcomes == [Outcome.of_failure(call.id, CLIENT_LEFT)], "it comes before `cancel` returns"
        assert caller.outcomes[0].code == CANCELLED
        service.worker.reply()
        await settled_loop()
        service.coordinator.cancel(call.id)
        assert len(caller.outcomes) == 1


async def test_a_refusal_is_told_once_and_after_submit_has_returned() -> None:
    async with running(stage(), capacity=0) as service:
        caller, call = Told(), Call(12, 0, b"", "mine")
        service.coordinator.submit(call, caller)
        service.coordinator.cancel(call.id)
        assert caller.outcomes == []
        await settled_loop()
        assert caller.outcomes == [Outcome.of_failure(12, at_capacity(1))]


async def test_two_calls_cannot_have_one_number_at_a_time() -> None:
    async with running(stage()) as service:
        first, second = Told(), Told()
        call = Call(7, 0, b"x", "mine")
        service.coordinator.submit(call, first)
        with pytest.raises(ValueError, match="a call with the number 7 runs already"):
            service.coordinator.submit(call, second)
        service.worker.reply()
        service.coordinator.submit(call, second)
        await service.worker.gets_work()
        service.worker.reply(payloads=[b"y"])
        assert (first.outcomes, second.outcomes) == ([Outcome(7, 200, b"re:x")], [Outcome(7, 200, b"y")])


# -- streams -----------------------------------------------------------------------------------------------------------


def streaming(name: str = "Echo_1", **options: Any) -> StagePlan:
    """Return a stage that streams, with room for many tasks on a worker."""
    return stage(name, streams=True, ordered=False, concurrency=options.pop("concurrency", 100), **options)


async def test_the_pieces_of_a_stream_come_in_order_and_before_its_outcome() -> None:
    async with running(streaming()) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id] * 2, [b"a", b"b"])
        service.worker.emit([stream.id], [b"c"])
        assert stream.chunks == [b"a", b"b", b"c"], "each is passed on as it comes"
        assert not stream.ticket.outcome.done()
        service.worker.reply(payloads=[b""])
        assert await answer(stream.ticket) == b""
        assert stream.chunks == [b"a", b"b", b"c"]


async def test_pieces_belong_to_their_streams() -> None:
    async with running(streaming()) as service:
        streams = [service.stream() for _ in range(3)]
        await until(lambda: len(service.worker.has) == 3)
        one, two, three = (stream.id for stream in streams)
        service.worker.emit([two, one, two], [b"2a", b"1a", b"2b"])
        service.worker.reply([two], payloads=[b""])
        service.worker.emit([three, one], [b"3a", b"1b"])
        assert [stream.chunks for stream in streams] == [[b"1a", b"1b"], [b"2a", b"2b"], [b"3a"]]
        assert [stream.ticket.outcome.done() for stream in streams] == [False, True, False]


async def test_a_stream_of_no_pieces_ends_well() -> None:
    async with running(streaming()) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.reply(payloads=[b""])
        assert await answer(stream.ticket) == b""
        assert stream.chunks == []
        assert service.metrics.stages[0].first_event.count == 0


async def test_an_error_in_the_middle_of_a_stream_is_its_outcome() -> None:
    async with running(streaming()) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id], [b"a"])
        service.worker.reply(code=422, payloads=[b"no"])
        assert await answer(stream.ticket) == Failure(422, "no")
        assert stream.chunks == [b"a"]


async def test_a_stream_goes_through_the_stages_before_the_one_that_streams() -> None:
    async with running(stage("A_1"), streaming("B_2")) as service:
        first, second = service.workers
        stream = service.stream(b"x")
        await first.gets_work()
        first.reply()
        await second.gets_work()
        assert second.payload(stream.id) == b"re:x"
        second.emit([stream.id], [b"a"])
        second.reply(payloads=[b""])
        assert await answer(stream.ticket) == b""
        assert [stage.events for stage in service.metrics.stages] == [0, 1]


async def test_a_worker_that_streams_to_a_client_who_waits_for_one_answer_is_killed() -> None:
    async with running(streaming(), stage("B_2"), routes=[[0, 1]]) as service:
        first, _ = service.workers
        service.submit()
        await first.gets_work()
        first.emit(first.has, [b"event"])
        assert first.killed


@pytest.mark.parametrize("left", ["by itself", "from within a piece"])
async def test_a_client_that_leaves_ends_its_stream_and_its_worker_is_told(left: str) -> None:
    async with running(streaming()) as service:
        chunks: list[bytes] = []

        def on_chunk(chunk: bytes) -> None:
            chunks.append(chunk)
            if left == "from within a piece":
                service.coordinator.cancel(ticket.id)

        ticket, other = service.submit(on_chunk=on_chunk), service.stream()
        await until(lambda: len(service.worker.has) == 2)
        service.worker.emit([ticket.id, other.id], [b"a", b"x"])
        service.coordinator.cancel(ticket.id)
        assert await answer(ticket) == CLIENT_LEFT
        service.worker.emit([ticket.id, other.id], [b"b", b"y"])
        assert (chunks, other.chunks) == ([b"a"], [b"x", b"y"])
        await until(lambda: service.worker.cancelled)
        assert service.worker.cancelled == [ticket.id]
        service.worker.reply([ticket.id], code=499, payloads=[b""])
        assert ticket.result == CLIENT_LEFT
        assert service.metrics.stages[0].cancellations == 1
        assert service.metrics.stages[0].streams_open == 1


async def test_a_stream_that_is_open_at_the_end_is_answered_503() -> None:
    async with running(streaming()) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id], [b"a"])
        stop = asyncio.ensure_future(service.coordinator.stop(0.02))
        await settled_loop()
        service.worker.emit([stream.id], [b"b"])
        await stop
        assert await answer(stream.ticket) == CLOSING
        assert stream.chunks == [b"a", b"b"]


async def test_a_stream_whose_worker_dies_in_its_middle_ends_with_500_and_is_not_run_again() -> None:
    async with running(streaming()) as service:
        worker = service.worker
        begun, silent = service.stream(), service.stream()
        await until(lambda: len(worker.has) == 2)
        worker.emit([begun.id], [b"a"])
        worker.exit()
        assert await answer(begun.ticket) == WORKER_DIED
        worker = await service.next_life(worker)
        await worker.gets_work()
        assert worker.has == [silent.id]
        worker.emit([silent.id], [b"x"])
        worker.reply(payloads=[b""])
        assert await answer(silent.ticket) == b""
        assert (begun.chunks, silent.chunks) == ([b"a"], [b"x"])


def with_middle(**options: Any) -> list[StagePlan]:
    return [replace(stage("Middle_1", **options), sends=True), replace(streaming(), specs=stage("Last_2").specs)]


async def test_a_stage_before_the_last_may_send_the_first_pieces_of_a_stream() -> None:
    async with running(*with_middle(), stream_buffer=1024) as service:
        middle, last = service.workers
        stream = service.stream(b"in")
        await middle.gets_work()
        middle.emit([stream.id], [b"a" * 1100])
        service.credit(stream.id, 100)
        middle.reply(payloads=[b"on"])
        await last.gets_work()
        assert list(last.sent[0].payloads) == [b"on"]
        # It has all its room, and hears only of what it has sent itself.
        last.emit([stream.id], [b"b" * 1100])
        service.credit(stream.id, 1000)
        service.credit(stream.id, 1100)
        await settled_loop()
        assert (middle.taken, last.taken) == ([], [(stream.id, 1100)])
        last.reply(payloads=[b""])
        assert await answer(stream.ticket) == b""
        assert [len(chunk) for chunk in stream.chunks] == [1100, 1100]
        assert [stage.streams_open for stage in service.metrics.stages] == [0, 0]
        assert [stage.events for stage in service.metrics.stages] == [0, 2]


@pytest.mark.parametrize("place", [0, 1])
async def test_a_stream_that_has_sent_an_event_before_the_last_stage_is_not_run_again(place: int) -> None:
    async with running(*with_middle()) as service:
        middle, last = service.workers
        stream = service.stream()
        await middle.gets_work()
        middle.emit([stream.id], [b"a"])
        if place:
            middle.reply()
            await last.gets_work()
        await until(lambda: stream.chunks)
        service.workers[place].exit()
        assert await answer(stream.ticket) == WORKER_DIED
        assert [stage.streams_open for stage in service.metrics.stages] == [0, 0]


async def test_a_piece_for_a_route_that_does_not_stream_is_dropped_and_counts_as_taken() -> None:
    async with running(with_middle()[0], stage("Last_2")) as service:
        middle, last = service.workers
        ticket = service.submit()
        await middle.gets_work()
        middle.emit([ticket.id], [b"a" * 100])
        await until(lambda: middle.taken == [(ticket.id, 100)])
        middle.reply()
        await last.gets_work()
        last.reply(payloads=[b"done"])
        assert await answer(ticket) == b"done"


# -- how much of a stream may be on its way ----------------------------------------------------------------------------


async def test_what_a_client_takes_is_told_to_the_worker_in_quarters_of_the_buffer() -> None:
    async with running(streaming(), stream_buffer=1024) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id], [b"a" * 2000])
        for size in (100, 100, 55):
            service.credit(stream.id, size)
        await settled_loop()
        assert service.worker.taken == []
        service.credit(stream.id, 1)
        await settled_loop()
        assert service.worker.taken == [(stream.id, 256)]


async def test_a_client_may_take_a_piece_while_it_is_given_it() -> None:
    async with running(streaming(), stream_buffer=1024) as service:

        def take(chunk: bytes) -> None:
            service.credit(ticket.id, len(chunk))

        ticket = service.submit(on_chunk=take)
        await service.worker.gets_work()
        for _ in range(10):
            service.worker.emit([ticket.id], [b"a" * 1024])
        assert not service.worker.killed
        await settled_loop()
        assert service.worker.taken == [(ticket.id, 10 * 1024)]


async def test_a_worker_that_sends_more_than_there_is_room_for_is_killed() -> None:
    async with running(streaming(), stream_buffer=1024) as service:
        worker = service.worker
        greedy, other = service.stream(), service.stream()
        await until(lambda: len(worker.has) == 2)
        worker.emit([greedy.id], [b"a" * 5000])
        assert not worker.killed, "the piece that reaches the limit goes out whole"
        worker.emit([greedy.id], [b"b"])
        assert worker.killed
        assert await answer(greedy.ticket) == WORKER_DIED
        assert greedy.chunks == [b"a" * 5000]
        worker = await service.next_life(worker)
        await worker.gets_work()
        assert worker.has == [other.id]


async def test_what_is_taken_of_a_stream_that_has_ended_or_never_was_concerns_nobody() -> None:
    async with running(streaming(), stage("B_2"), routes=[[0], [1]]) as service:
        first, second = service.workers
        stream, plain = service.stream(), service.submit(route=1)
        await first.gets_work()
        first.reply(payloads=[b""])
        await answer(stream.ticket)
        for task_id in (stream.id, plain.id, 12345):
            service.credit(task_id, 10**6)
        await settled_loop()
        assert first.taken == second.taken == []


# -- the time of a stream ----------------------------------------------------------------------------------------------


async def test_a_stream_without_an_event_has_the_time_of_a_request() -> None:
    async with running(streaming(), timeout=0.02, event_timeout=100.0) as service:
        stream = service.stream()
        assert await answer(stream.ticket) == TIMED_OUT


async def test_each_event_gives_a_stream_the_time_to_its_next_one() -> None:
    clock = FakeClock()
    async with running(streaming(), clock=clock, timeout=0.02, event_timeout=0.05) as service:
        stream, silent = service.stream(), service.stream()
        await until(lambda: len(service.worker.has) == 2)
        clock.advance(0.01)
        service.worker.emit([stream.id], [b"a"])
        clock.advance(0.04)
        assert await answer(silent.ticket) == TIMED_OUT
        assert not stream.ticket.outcome.done(), "that was the time to its first event"
        service.worker.emit([stream.id], [b"b"])
        early = service.stream(timeout=0.02)
        clock.advance(0.04)
        assert await answer(early.ticket) == TIMED_OUT
        assert not stream.ticket.outcome.done()
        clock.advance(0.02)
        assert await answer(stream.ticket) == TIMED_OUT
        assert stream.chunks == [b"a", b"b"]
        assert service.metrics.stages[0].timeouts == 3
        await until(lambda: set(service.worker.cancelled) == {stream.id, silent.id, early.id})


async def test_the_time_to_the_next_event_may_be_shorter_than_that_to_the_first() -> None:
    clock = FakeClock()
    async with running(streaming(), clock=clock, timeout=1e6, event_timeout=0.01) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id], [b"a"])
        clock.advance(0.01)
        assert await answer(stream.ticket) == TIMED_OUT


async def test_a_stream_that_waits_for_its_client_has_the_time_of_a_stall(logged: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    limits: dict[str, float] = {"timeout": 1e6, "event_timeout": 0.01, "stall_timeout": 0.05}
    async with running(streaming(), clock=clock, stream_buffer=1024, **limits) as service:
        full, roomy = service.stream(), service.stream(name="roomy")
        await until(lambda: len(service.worker.has) == 2)
        service.worker.emit([full.id, roomy.id], [b"a" * 1024, b"a" * 1023])
        clock.advance(0.02)
        assert await answer(roomy.ticket) == TIMED_OUT
        assert not full.ticket.outcome.done()
        clock.advance(0.03)
        assert await answer(full.ticket) == STALLED
        assert STALLED.code == 408
        records = [record for record in logged.records if record.levelno == logging.WARNING]
        assert ["does not read" in record.getMessage() for record in records] == [False, True]
        assert told(records[0], "request_id", "stage") == ("roomy", "Echo_1")
        await until(lambda: len(service.worker.cancelled) == 2)


async def test_a_client_that_reads_slowly_is_given_time_with_each_piece_that_it_takes() -> None:
    clock = FakeClock()
    limits: dict[str, float] = {"timeout": 1e6, "event_timeout": 1e6, "stall_timeout": 0.02}
    async with running(streaming(), clock=clock, stream_buffer=1024, **limits) as service:
        slow, idle = service.stream(), service.stream()
        await until(lambda: len(service.worker.has) == 2)
        service.worker.emit([slow.id, idle.id], [b"a" * 1024] * 2)
        clock.advance(0.015)
        service.credit(slow.id, 1)
        clock.advance(0.015)
        assert await answer(idle.ticket) == STALLED
        assert not slow.ticket.outcome.done()
        clock.advance(0.005)
        assert await answer(slow.ticket) == STALLED


async def test_a_stream_that_has_room_again_has_the_time_to_its_next_event() -> None:
    clock = FakeClock()
    limits: dict[str, float] = {"timeout": 1e6, "event_timeout": 0.01, "stall_timeout": 1e6}
    async with running(streaming(), clock=clock, stream_buffer=1024, **limits) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id], [b"a" * 1024])
        clock.advance(1000.0)
        service.credit(stream.id, 1024)
        assert not stream.ticket.outcome.done()
        clock.advance(0.01)
        assert await answer(stream.ticket) == TIMED_OUT


async def test_what_a_client_takes_of_a_stream_with_room_gives_its_worker_no_more_time() -> None:
    clock = FakeClock()
    async with running(streaming(), clock=clock, timeout=1e6, event_timeout=0.02, stream_buffer=1024) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id], [b"a" * 1000])
        clock.advance(0.015)
        service.credit(stream.id, 1000)
        clock.advance(0.005)
        assert await answer(stream.ticket) == TIMED_OUT


# -- what is measured of streams ---------------------------------------------------------------------------------------


async def test_events_and_the_times_between_them_are_measured() -> None:
    clock = FakeClock()
    async with running(streaming(), clock=clock) as service:
        measured = service.metrics.stages[0]
        stream = service.stream()
        await service.worker.gets_work()
        clock.advance(0.5)
        assert measured.streams_open == 0
        service.worker.emit([stream.id], [b"a"])
        assert measured.streams_open == 1
        for gap in (1.0, 2.0):
            clock.advance(gap)
            service.worker.emit([stream.id], [b"b"])
        assert (measured.first_event.count, measured.first_event.total) == (1, 0.5)
        assert (measured.event_gap.count, measured.event_gap.total) == (2, 3.0)
        assert (measured.events, measured.streams_open) == (3, 1)
        service.worker.reply(payloads=[b""])
        assert await answer(stream.ticket) == b""
        assert measured.streams_open == 0


@pytest.mark.parametrize("end", ["answer", "error", "cancel", "time out", "crash", "too much", "stop"])
@pytest.mark.parametrize("events", [0, 3])
async def test_no_stream_is_counted_as_open_after_its_end(end: str, events: int) -> None:
    clock = FakeClock()
    async with running(streaming(max_attempts=1), clock=clock, timeout=100.0, event_timeout=100.0) as service:
        worker = service.worker
        stream = service.stream()
        await worker.gets_work()
        for _ in range(events):
            worker.emit([stream.id], [b"a"])
        assert service.metrics.stages[0].streams_open == bool(events)
        if end == "answer":
            worker.reply(payloads=[b""])
        elif end == "error":
            worker.reply(code=500, payloads=[b""])
        elif end == "cancel":
            service.coordinator.cancel(stream.id)
        elif end == "time out":
            service.stream(timeout=0.01)
            clock.advance(1000.0)
        elif end == "crash":
            worker.exit()
        elif end == "too much":
            worker.emit([stream.id] * 2, [b"a" * 10**6] * 2)
        else:
            await service.coordinator.stop(0.0)
        await answer(stream.ticket)
        assert service.metrics.stages[0].streams_open == 0


# -- deaths ------------------------------------------------------------------------------------------------------------


async def test_the_tasks_of_a_dead_worker_go_first_and_run_alone() -> None:
    async with running(stage(max_batch_size=2, max_wait=0.0)) as service:
        worker = service.worker
        tickets = [service.submit() for _ in range(2)]
        await worker.gets_work()
        tickets += [service.submit() for _ in range(2)]
        await until(lambda: len(worker.has) == 4)
        tickets += [service.submit() for _ in range(2)]
        worker.exit()
        worker = await service.next_life(worker)
        for ticket in tickets[:4]:
            await worker.gets_work()
            assert worker.has == [ticket.id]
            worker.reply()
            assert await answer(ticket) == b"re:%d" % ticket.id
        await worker.gets_work()
        assert worker.has == [ticket.id for ticket in tickets[4:]]


async def test_another_worker_takes_over_what_a_dead_one_had() -> None:
    async with running(stage(num=2)) as service:
        first, second = service.workers
        tickets = [service.submit() for _ in range(2)]
        await until(lambda: first.has and second.has)
        first.exit()
        second.reply()
        await second.gets_work()
        second.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"re:1", b"re:2"]


async def test_an_idle_worker_takes_over_at_once_what_a_dead_one_had() -> None:
    async with running(stage(num=2)) as service:
        first, second = service.workers
        service.launcher.on_launch = None
        ticket = service.submit()
        await first.gets_work()
        first.exit()
        await second.gets_work()
        second.reply()
        assert await answer(ticket) == b"re:1"


async def test_a_request_that_kills_two_workers_is_answered_500_and_no_other_is(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with running(stage(max_batch_size=4, max_wait=0.0)) as service:
        worker = service.worker
        tickets = [service.submit(b"poison" if n == 2 else b"fine", name=f"n{n}") for n in range(4)]
        deaths = 0
        while not all(ticket.outcome.done() for ticket in tickets):
            await worker.gets_work()
            if b"poison" in [worker.payload(task_id) for task_id in worker.has]:
                deaths += 1
                worker.exit()
                worker = await service.next_life(worker)
            else:
                worker.reply()
            await settled_loop()
        outcomes = [await answer(ticket) for ticket in tickets]
        assert outcomes == [b"re:fine", b"re:fine", WORKER_DIED, b"re:fine"]
        assert WORKER_DIED.code == 500
        assert deaths == 2
        (record,) = [record for record in logged.records if "answered 500" in record.getMessage()]
        assert told(record, "request_id", "stage") == ("n2", "Echo_1")


@pytest.mark.parametrize(
    "plan", [{"max_batch_size": 20}, {"concurrency": 20, "ordered": False}], ids=["batch", "async"]
)
async def test_tasks_that_are_to_run_alone_are_answered_as_soon_as_there_is_no_time_for_them(plan: Any) -> None:
    clock = FakeClock()
    async with running(stage(**plan), clock=clock, timeout=3.0, load_shedding=True) as service:
        worker = service.worker
        for _ in range(10):
            # A second each, however many there are together.
            tickets = [service.submit() for _ in range(20)]
            await until(lambda: len(worker.has) == 20)
            clock.advance(1.0)
            for ids in [worker.has] if "max_batch_size" in plan else [[task_id] for task_id in worker.has]:
                worker.reply(ids, seconds=1.0)
            assert [(await answer(ticket))[:3] for ticket in tickets] == [b"re:"] * 20
        began = clock.now
        tickets = [service.submit() for _ in range(20)]
        await until(lambda: len(worker.has) == 20)
        clock.advance(0.1)
        worker.exit()
        worker = await service.next_life(worker)
        newcomer = None
        for ticket in tickets[:2]:
            await worker.gets_work()
            assert worker.has == [ticket.id]
            newcomer = newcomer or service.submit()
            clock.advance(1.0)
            worker.reply(seconds=1.0)
            assert (await answer(ticket))[:3] == b"re:"
        # Those whose turn would end after their deadline are told so before it, and the worker has others to do.
        rest = [await answer(ticket) for ticket in tickets[2:]]
        assert {failure.code for failure in rest} == {408}
        assert clock.now == pytest.approx(began + 2.1)
        await worker.gets_work()
        assert newcomer is not None
        assert worker.has == [newcomer.id]
        clock.advance(0.8)
        worker.reply()
        assert (await answer(newcomer))[:3] == b"re:"


async def test_what_a_dead_worker_had_not_begun_comes_back_as_if_nothing_had_been() -> None:
    async with running(stage(max_batch_size=2, max_wait=0.0)) as service:
        worker = service.worker
        tickets = [service.submit() for _ in range(4)]
        await until(lambda: worker.sizes == [2, 2])
        worker.begun = 2
        worker.exit()
        worker = await service.next_life(worker)
        for ticket in tickets[:2]:
            await worker.gets_work()
            assert worker.has == [ticket.id], "these were begun, and each is alone"
            worker.reply()
        await worker.gets_work()
        assert worker.has == [ticket.id for ticket in tickets[2:]], "these are a batch as before"
        worker.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"re:%d" % n for n in range(1, 5)]


async def test_what_was_sent_ahead_keeps_its_attempts_through_any_number_of_deaths() -> None:
    clock = FakeClock()
    async with running(stage(max_attempts=1), clock=clock, timeout=1e6) as service:
        ticket = service.submit()
        worker = service.worker
        for _ in range(5):
            await worker.gets_work()
            worker.begun = 0
            # After a healthy spell, so that the next one comes at once.
            clock.advance(60.0)
            worker.exit()
            worker = await service.next_life(worker)
        await worker.gets_work()
        worker.reply()
        assert await answer(ticket) == b"re:1"


async def test_with_one_attempt_the_first_death_is_the_answer_but_not_for_what_was_sent_ahead() -> None:
    async with running(stage(max_batch_size=2, max_wait=0.0, max_attempts=1)) as service:
        worker = service.worker
        tickets = [service.submit() for _ in range(4)]
        await until(lambda: len(worker.has) == 4)
        worker.begun = 2
        worker.exit()
        assert [await answer(ticket) for ticket in tickets[:2]] == [WORKER_DIED, WORKER_DIED]
        worker = await service.next_life(worker)
        await worker.gets_work()
        worker.reply()
        assert [await answer(ticket) for ticket in tickets[2:]] == [b"re:3", b"re:4"]


async def test_what_a_worker_has_answered_before_its_end_is_answered_and_the_rest_is_run_again() -> None:
    async with running(stage(max_batch_size=3, max_wait=1.0)) as service:
        worker = service.worker
        tickets = [service.submit() for _ in range(3)]
        await worker.gets_work()
        worker.unread = [("results", Results(worker.has[:2], [200, 200], [b"a", b"b"], 0.1))]
        worker.exit()
        worker = await service.next_life(worker)
        await worker.gets_work()
        assert worker.has == [tickets[2].id]
        worker.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"a", b"b", b"re:3"]


async def test_a_task_starts_each_stage_with_all_its_attempts() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        ticket = service.submit(b"x")
        await first.gets_work()
        first.exit()
        first = await service.next_life(first)
        await first.gets_work()
        first.reply()
        await second.gets_work()
        second.exit()
        second = await service.next_life(second)
        await second.gets_work()
        second.reply()
        assert await answer(ticket) == b"re:re:x"


async def test_a_task_whose_client_has_left_is_not_run_again_after_a_death() -> None:
    async with running(stage()) as service:
        worker = service.worker
        ticket = service.submit()
        await worker.gets_work()
        service.coordinator.cancel(ticket.id)
        worker.exit()
        worker = await service.next_life(worker)
        await settled_loop()
        assert worker.given == []
        assert service.coordinator.statistics().stages[0].queued == 0


async def test_a_worker_that_answers_what_it_was_not_given_is_killed_and_its_tasks_run_elsewhere() -> None:
    async with running(stage(num=2)) as service:
        first, second = service.workers
        tickets = [service.submit(b"%d" % n) for n in range(2)]
        await until(lambda: first.has and second.has)
        first.reply_unasked(second.has)
        assert first.killed
        await settled_loop()
        assert not any(ticket.outcome.done() for ticket in tickets)
        second.reply()
        await until(lambda: any(worker.has for worker in service.workers))
        for worker in service.workers:
            worker.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"re:0", b"re:1"]


async def test_an_answer_that_comes_twice_is_an_answer_to_nothing() -> None:
    async with running(stage()) as service:
        worker = service.worker
        ticket = service.submit()
        await worker.gets_work()
        worker.reply()
        worker.reply_unasked([ticket.id])
        assert worker.killed
        assert await answer(ticket) == b"re:1"


async def test_no_task_is_lost_when_a_worker_answers_some_and_then_nonsense() -> None:
    async with running(stage(max_batch_size=4, max_wait=0.0)) as service:
        worker = service.worker
        tickets = [service.submit() for _ in range(4)]
        await worker.gets_work()
        worker.reply_unasked([tickets[0].id, 999])
        assert worker.killed
        worker = await service.next_life(worker)
        for ticket in tickets:
            await worker.gets_work()
            worker.reply()
            assert await answer(ticket) == b"re:%d" % ticket.id


async def test_garbage_from_a_worker_costs_the_worker_and_no_request() -> None:
    async with running(stage()) as service:
        worker = service.worker
        ticket = service.submit()
        await worker.gets_work()
        worker.close_pipe("broke its pipe (garbage came from it)")
        assert worker.killed
        worker = await service.next_life(worker)
        await worker.gets_work()
        worker.reply()
        assert await answer(ticket) == b"re:1"


async def test_a_pipe_that_breaks_while_tasks_are_sent_loses_none_of_them() -> None:
    async with running(stage(max_batch_size=2, max_wait=0.0)) as service:
        worker = service.worker

        def broken(tasks: Tasks) -> None:
            worker.close_pipe("broke its pipe (writing to it failed)")

        worker.send = broken  # type: ignore[method-assign]
        tickets = [service.submit() for _ in range(4)]
        worker = await service.next_life(worker)
        await until(lambda: len(worker.has) == 4)
        assert worker.sizes == [2, 2], "it had begun none of them"
        worker.reply()
        assert [await answer(ticket) for ticket in tickets] == [b"re:%d" % n for n in range(1, 5)]


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
async def test_a_worker_that_tells_a_time_that_is_none_does_no_harm(seconds: float) -> None:
    async with running(stage()) as service:
        worker = service.worker
        ticket = service.submit()
        await worker.gets_work()
        worker.reply(seconds=seconds)
        if worker.killed:
            worker = await service.next_life(worker)
            await worker.gets_work()
            worker.reply()
        assert await answer(ticket) == b"re:1"
        later = service.submit()
        await worker.gets_work()
        worker.reply()
        assert await answer(later) == b"re:2"


# -- a stage that is down ----------------------------------------------------------------------------------------------


async def test_a_stage_that_cannot_start_again_answers_503_at_once_and_recovers() -> None:
    async with running(stage()) as service:
        waiting = service.submit()
        await service.worker.gets_work()
        await let_start_fail(service)
        assert await answer(waiting) == STAGE_DOWN
        assert STAGE_DOWN.code == 503
        assert STAGE_DOWN.retry_after is not None
        assert await refusal(service.try_to_submit(0, b"", "refused")) == STAGE_DOWN
        (now,) = service.coordinator.statistics().stages
        assert (now.down, now.ready, now.queued) == (True, 0, 0)
        assert service.metrics.stages[0].rejected == 1
        await until(lambda: not service.coordinator.statistics().stages[0].down)
        ticket = service.submit(b"again")
        await service.worker.gets_work()
        service.worker.reply()
        assert await answer(ticket) == b"re:again"


async def test_only_routes_through_a_stage_that_is_down_are_refused() -> None:
    async with running(stage("A_1"), stage("B_2"), routes=[[0], [0, 1], [1]]) as service:
        first, _ = service.workers
        await let_start_fail(service, "B_2")
        assert await refusal(service.try_to_submit(1, b"", "")) == STAGE_DOWN
        assert await refusal(service.try_to_submit(2, b"", "")) == STAGE_DOWN
        ticket = service.submit(route=0)
        await first.gets_work()
        first.reply()
        await answer(ticket)


async def test_none_gives_its_place_to_a_call_for_a_stage_that_is_down() -> None:
    async with running(stage("A_1"), stage("B_2"), routes=[[0], [0, 1]], capacity=3) as service:
        first, _ = service.workers
        await let_start_fail(service, "B_2")
        tickets = [service.submit(route=0) for _ in range(3)]
        urgent = Call(service.coordinator.new_id(), 1, b"", "urgent", priority=9)
        caller = FutureOutcome()
        service.coordinator.submit(urgent, caller)
        assert (await caller.future).code == STAGE_DOWN.code
        while not all(ticket.outcome.done() for ticket in tickets):
            await first.gets_work()
            first.reply()
            await settled_loop()
        assert [await answer(ticket) for ticket in tickets] == [b"re:1", b"re:2", b"re:3"]


async def test_a_task_that_comes_to_a_stage_that_has_gone_down_meanwhile_is_answered_503_at_once() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, _ = service.workers
        ticket = service.submit()
        await first.gets_work()
        await let_start_fail(service, "B_2")
        first.reply()
        await settled_loop()
        assert service.coordinator.statistics().stages[1].down
        assert ticket.outcome.done()
        assert ticket.result == STAGE_DOWN


async def test_while_a_replacement_starts_requests_wait_for_it() -> None:
    async with running(stage()) as service:
        before = service.worker
        service.launcher.on_launch = None
        before.exit()
        await until(lambda: len(service.launcher.launched) == 2)
        ticket = service.submit()
        await settled_loop()
        service.worker.ready()
        await service.worker.gets_work()
        service.worker.reply()
        assert await answer(ticket) == b"re:1"


# -- the start ---------------------------------------------------------------------------------------------------------


async def test_a_stage_that_cannot_start_stops_the_whole_service_with_its_traceback() -> None:
    service = Service([stage("A_1"), stage("B_2", num=2)])

    def begin(worker: FakeWorker) -> None:
        if worker.spec.stage == "A_1":
            worker.ready()
        else:
            worker.fail_to_start("Traceback ...\nOSError: no weights")

    service.launcher.on_launch = begin
    with pytest.raises(StartupError, match=r"(?s)no worker of stage B_2 could be started.*OSError: no weights"):
        await service.coordinator.start()
    assert service.launcher.alive() == []
    (first,) = service.launcher.of("A_1")
    assert first.asked_to_stop
    assert not first.killed
    await settled_loop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_worker_that_was_still_loading_when_another_failed_is_ended_too() -> None:
    service = Service([stage("A_1"), stage("B_2")])

    def begin(worker: FakeWorker) -> None:
        if worker.spec.stage == "A_1":
            worker.stops_when_asked = False
        else:
            worker.fail_to_start("no weights")

    service.launcher.on_launch = begin
    with pytest.raises(StartupError, match="no weights"):
        await service.coordinator.start()
    (loading,) = service.launcher.of("A_1")
    assert loading.killed
    assert service.launcher.alive() == []
    await settled_loop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_refused_launch_is_a_startup_error() -> None:
    service = Service([stage()])
    service.launcher.refusal = StartupError("the worker class Local cannot be sent")
    with pytest.raises(StartupError, match="Local cannot be sent"):
        await service.coordinator.start()


async def test_calls_are_refused_until_every_stage_has_started() -> None:
    clock = FakeClock()
    service = Service([stage("A_1"), stage("B_2")], clock=clock)
    service.launcher.on_launch = lambda worker: worker.ready() if worker.spec.stage == "A_1" else None
    start = asyncio.ensure_future(service.coordinator.start())
    await until(lambda: len(service.launcher.launched) == 2)
    clock.now += 3.0
    assert await refusal(service.try_to_submit(0, b"", "early")) == LOADING
    assert LOADING.code == 503
    assert LOADING.retry_after is not None
    statistics = service.coordinator.statistics()
    assert statistics.loading
    assert [(place.state, place.seconds) for each in statistics.stages for place in each.places][1] == ("starting", 3.0)
    (last,) = service.launcher.of("B_2")
    last.ready()
    await start
    assert not service.coordinator.statistics().loading
    service.submit()
    assert service.coordinator.statistics().admitted == 1
    await service.coordinator.stop(0.0)


async def test_a_service_that_is_closed_while_it_starts_stays_closed() -> None:
    service = Service([stage()])
    service.launcher.on_launch = None
    start = asyncio.ensure_future(service.coordinator.start())
    await until(lambda: service.launcher.launched)
    service.coordinator.close()
    assert await refusal(service.try_to_submit(0, b"", "late")) == CLOSING
    service.launcher.launched[0].ready()
    await start
    assert await refusal(service.try_to_submit(0, b"", "later")) == CLOSING
    await service.coordinator.stop(0.0)


async def test_a_start_that_is_interrupted_leaves_nothing_running() -> None:
    service = Service([stage()])
    service.launcher.on_launch = None
    start = asyncio.ensure_future(service.coordinator.start())
    await until(lambda: service.launcher.launched)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert service.launcher.alive() == []


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_admitted_requests_finish_and_then_ends_the_workers() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        ticket = service.submit(b"x")
        await first.gets_work()
        stop = asyncio.ensure_future(service.coordinator.stop(100.0))
        await settled_loop()
        assert not stop.done()
        assert not first.asked_to_stop
        assert await refusal(service.try_to_submit(0, b"", "late")) == CLOSING
        first.reply()
        await second.gets_work()
        second.reply()
        assert await answer(ticket) == b"re:re:x"
        await asyncio.wait_for(stop, 10.0)
        assert first.asked_to_stop
        assert second.asked_to_stop
        assert not first.killed
        assert not second.killed


async def test_a_stop_waits_for_the_last_of_the_admitted_requests() -> None:
    async with running(stage()) as service:
        tickets = [service.submit() for _ in range(3)]
        stop = asyncio.ensure_future(service.coordinator.stop(100.0))
        for ticket in tickets:
            await settled_loop()
            assert not stop.done()
            assert not service.worker.asked_to_stop
            assert service.worker.has == [ticket.id]
            service.worker.reply()
            assert await answer(ticket) == b"re:%d" % ticket.id
        await asyncio.wait_for(stop, PATIENCE)


async def test_what_is_not_finished_within_the_grace_is_answered_503() -> None:
    async with running(stage()) as service:
        on_worker, waiting = service.submit(), service.submit()
        await service.worker.gets_work()
        await service.coordinator.stop(0.02)
        assert await answer(on_worker) == CLOSING
        assert await answer(waiting) == CLOSING
        assert service.launcher.alive() == []


async def test_a_batch_that_waits_to_fill_at_the_end_is_answered_503_and_leaves_no_timer() -> None:
    async with running(stage(max_batch_size=8, max_wait=100.0)) as service:
        ticket = service.submit()
        await settled_loop()
        await service.coordinator.stop(0.0)
        assert await answer(ticket) == CLOSING


async def test_a_worker_that_still_runs_a_task_nobody_waits_for_may_finish_it_and_close() -> None:
    async with running(stage()) as service:
        worker = service.worker
        worker.stops_when_asked = False
        ticket = service.submit()
        await worker.gets_work()
        service.coordinator.cancel(ticket.id)
        stop = asyncio.ensure_future(service.coordinator.stop(100.0))
        await until(lambda: worker.asked_to_stop)
        worker.reply()
        await settled_loop()
        assert not worker.killed
        worker.exit("exited with status 0")
        await asyncio.wait_for(stop, 10.0)


async def test_a_worker_that_does_not_stop_is_killed() -> None:
    async with running(stage()) as service:
        worker = service.worker
        worker.stops_when_asked = False
        await service.coordinator.stop(0.0)
        assert worker.asked_to_stop
        assert worker.killed


@pytest.mark.parametrize("answers", [False, True])
async def test_a_stop_that_is_cancelled_ends_at_once_and_leaves_no_worker(answers: bool) -> None:
    async with running(stage()) as service:
        worker = service.worker
        worker.stops_when_asked = False
        ticket = service.submit()
        await worker.gets_work()
        stop = asyncio.ensure_future(service.coordinator.stop(100.0))
        if answers:
            worker.reply()
            await until(lambda: worker.asked_to_stop)
        await settled_loop()
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(stop, PATIENCE)
        assert await answer(ticket) == (b"re:1" if answers else CLOSING)
        assert worker.killed
        assert service.launcher.alive() == []


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancellation_that_comes_in_any_turn_of_a_stop_is_not_lost(turns: int) -> None:
    async with running(stage()) as service:
        worker = service.worker
        service.submit()
        await worker.gets_work()
        stop = asyncio.ensure_future(service.coordinator.stop(100.0))
        await settled_loop()
        worker.reply()
        for _ in range(turns):
            await asyncio.sleep(0)
        came_in_time = stop.cancel()
        await asyncio.wait([stop], timeout=PATIENCE)
        assert stop.cancelled() == came_in_time
        assert service.launcher.alive() == []


async def test_a_replacement_that_is_due_is_not_waited_for_at_the_end() -> None:
    async with running(stage()) as service:
        await let_start_fail(service)
        await service.coordinator.stop(0.0)
        assert service.launcher.alive() == []


async def test_a_worker_that_dies_during_the_end_does_not_hold_it_up() -> None:
    async with running(stage()) as service:
        worker = service.worker
        ticket = service.submit()
        await worker.gets_work()
        stop = asyncio.ensure_future(service.coordinator.stop(100.0))
        await settled_loop()
        worker.exit()
        worker = await service.next_life(worker)
        await worker.gets_work()
        worker.reply()
        assert await answer(ticket) == b"re:1"
        await asyncio.wait_for(stop, 10.0)


async def test_stopping_twice_does_no_harm() -> None:
    async with running(stage()) as service:
        await service.coordinator.stop(0.0)
        await service.coordinator.stop(0.0)


async def test_abandoned_workers_are_killed_without_the_loop() -> None:
    async with running(stage(num=2)) as service:
        workers = service.workers
        service.coordinator.abandon()
        assert all(worker.killed and worker.reaped for worker in workers)


# -- numbers -----------------------------------------------------------------------------------------------------------


async def test_statistics_tell_what_each_stage_has() -> None:
    async with running(stage("A_1"), stage("B_2", num=2, max_batch_size=4, max_wait=0.0)) as service:
        first, *_ = service.workers
        for _ in range(3):
            service.submit()
        await first.gets_work()
        statistics = service.coordinator.statistics()
        assert (statistics.admitted, statistics.closing) == (3, False)
        places = [
            [(each.worker_id, each.state, each.in_flight) for each in stage.places] for stage in statistics.stages
        ]
        assert places == [[(1, "ready", 1)], [(1, "ready", 0), (2, "ready", 0)]]
        a, b = (replace(each, places=()) for each in statistics.stages)
        assert a == StageStatistics("A_1", 2, 1, 1, ready=1, workers=1, restarts=0, down=False)
        assert b == StageStatistics("B_2", 0, 0, 0, ready=2, workers=2, restarts=0, down=False, batch_size=4)
        first.reply()
        await until(lambda: service.coordinator.statistics().stages[1].in_flight)
        assert [now.in_flight for now in service.coordinator.statistics().stages] == [1, 1]


async def test_what_is_measured_is_what_the_workers_and_the_clock_say() -> None:
    clock = FakeClock()
    async with running(stage("A_1"), stage("B_2", max_batch_size=2, max_wait=0.0), clock=clock) as service:
        first, second = service.workers
        ticket, other = service.submit(), service.submit()
        clock.advance(0.5)
        first.reply(seconds=0.25)
        await first.gets_work()
        first.reply(seconds=0.25)
        await second.gets_work()
        while second.has:
            second.reply(seconds=2.0)
            await settled_loop()
        await answer(ticket)
        await answer(other)
        one, two = service.metrics.stages
        assert (one.worker(1).process_duration.count, one.worker(1).process_duration.total) == (2, 0.5)
        assert two.worker(1).batch_size.total == 2
        assert two.worker(1).process_duration.total == 2.0 * two.worker(1).batch_size.count
        assert (one.queue_wait.count, one.queue_wait.total) == (2, 0.5)
        assert two.queue_wait.total == 0.0
        assert service.coordinator.statistics().admitted == 0


async def test_statistics_show_queue_slots_workers_and_restarts() -> None:
    def gauges(service: Service) -> list[tuple[int, int, int, int]]:
        stages = service.coordinator.statistics().stages
        return [(now.queued, now.slots_in_use, now.ready, now.restarts) for now in stages]

    async with running(stage(concurrency=4, ordered=False), stage("B_2")) as service:
        worker, _ = service.workers
        for _ in range(7):
            service.submit()
        await until(lambda: len(worker.has) == 5)
        assert gauges(service) == [(2, 4, 1, 0), (0, 0, 1, 0)]
        assert service.coordinator.statistics().admitted == 7
        service.launcher.on_launch = None
        worker.exit()
        await until(lambda: len(service.launcher.launched) == 3)
        assert gauges(service)[0] == (7, 0, 0, 1)


async def test_numbers_for_calls_are_never_given_twice() -> None:
    async with running(stage()) as service:
        tickets = [service.submit() for _ in range(5)]
        assert [ticket.id for ticket in tickets] == [1, 2, 3, 4, 5]
        assert [service.coordinator.new_id() for _ in range(2)] == [6, 7]


# -- payloads that a link holds ----------------------------------------------------------------------------------------


async def test_a_held_result_goes_to_the_next_stage_as_it_is_and_to_the_client_as_bytes(crossing: bool) -> None:
    async with running(stage("One_1"), stage("Two_2")) as service:
        one, two = service.workers
        ticket = service.submit()
        between, last = Held(), Held(b"result")
        await one.gets_work()
        one.reply(payloads=[between])
        await two.gets_work()
        if crossing:
            assert (two.payload(ticket.id), between.drops) == (b"contents", 1), "it goes on as bytes"
        else:
            assert two.payload(ticket.id) is between
            assert between.drops == 0, "if this worker dies, another is given it"
        two.reply(payloads=[last])
        assert await answer(ticket) == b"result"
        assert (between.drops, last.drops) == (1, 1)


async def test_a_held_payload_is_there_for_the_next_worker_when_the_first_one_dies(crossing: bool) -> None:
    async with running(stage("One_1"), stage("Two_2")) as service:
        one, two = service.workers
        ticket, held = service.submit(), Held()
        await one.gets_work()
        one.reply(payloads=[held])
        await two.gets_work()
        two.exit()
        two = await service.next_life(two)
        await two.gets_work()
        assert (two.payload(ticket.id), held.drops) == ((b"contents", 1) if crossing else (held, 0))
        two.reply(payloads=[b""])
        assert held.drops == 1


async def test_nothing_is_held_of_a_task_that_nobody_waits_for() -> None:
    async with running(stage("One_1"), stage("Two_2")) as service:
        one, two = service.workers
        on_worker, late = Held(), Held()
        first = service.submit()
        await one.gets_work()
        one.reply(payloads=[on_worker])
        await two.gets_work()
        service.coordinator.cancel(first.id)
        assert on_worker.drops == 1
        two.reply(payloads=[late])
        assert late.drops == 1
        second = service.submit()
        await one.gets_work()
        service.coordinator.cancel(second.id)
        after = Held()
        one.reply(payloads=[after])
        assert (after.drops, on_worker.drops, late.drops) == (1, 1, 1)


@pytest.mark.parametrize("crossing", ["in one process"], indirect=True)
async def test_a_held_result_that_no_client_can_be_sent_is_answered_500_and_dropped(
    logged: pytest.LogCaptureFixture,
) -> None:
    class Pickle(Held):
        def read(self) -> bytes:
            raise LinkError("the answer to a client must be bytes")

    async with running(stage()) as service:
        ticket, held = service.submit(name="mine"), Pickle()
        await service.worker.gets_work()
        service.worker.reply(payloads=[held])
        assert await answer(ticket) == Failure(500, INTERNAL_ERROR_TEXT)
        assert held.drops == 1
        (record,) = [record for record in logged.records if record.levelno == logging.ERROR]
        assert told(record, "request_id") == ("mine",)
        assert "must be bytes" in record.getMessage()
