"""A stage by itself: scripted workers below it, an owner that writes down what it hears above, and time by hand."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakes import FakeClock, FakeLauncher, FakeLoop, FakeWorker, Held, new_task, settled_loop, stage, told

from mosec_asgi.batching.busy_poll import POLL_SECONDS
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.stage import GRACE_SECONDS, LOOK_SECONDS, Stage
from mosec_asgi.batching.task import Event, State, Task
from mosec_asgi.errors import (
    INTERNAL_ERROR,
    STAGE_DOWN,
    TIMED_OUT,
    TOO_LONG,
    UNSEEN,
    WORKER_DIED,
    Failure,
    describe,
    too_slow,
)
from mosec_asgi.messages import EGRESS, EXAMPLE, INGRESS, Cancels, LinkError, Payload, Results, Tasks
from mosec_asgi.observing.metrics import StageMetrics

TIMEOUT = 5.0  # seconds that a worker may take for one step
STUCK = TIMEOUT + GRACE_SECONDS
# A stage that streams, several streams at a time on each worker.
STREAMS: dict[str, Any] = {"streams": True, "ordered": False, "concurrency": 4}


class Bench:
    """A stage with all that it talks to; the owner of its tasks."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.loop = FakeLoop(self.clock)
        self.launcher = FakeLauncher()
        plan = stage(timeout=TIMEOUT, **options)
        self.metrics = StageMetrics(plan.name, batched=plan.batch_size > 1, streams=plan.streams)
        self.stage = Stage(
            plan,
            [self.metrics],
            self,
            self.launcher,
            self.clock,
            self.loop,  # type: ignore[arg-type]
        )
        # What the owner has heard, by the tasks' numbers.
        self.answers: dict[int, tuple[int, Payload]] = {}
        self.failures: dict[int, Failure] = {}
        self.pieces: list[tuple[int, bytes]] = []
        # It takes no piece of these streams.
        self.refused: set[int] = set()
        # It says that these come too late, and was asked so.
        self.late: set[int] = set()
        self.asked: list[tuple[int, int, float]] = []
        # No task's deadline is before that, it says.
        self.earliest_deadline = -math.inf
        self._numbers = itertools.count(1)

    # -- the owner ---------------------------------------------------------------------------------------------------

    def answered(self, task: Task, code: int, payload: Payload, now: float, among: int = 1) -> None:
        assert now == self.clock.now
        self.answers[task.id] = (code, payload)
        task.settle()

    def streamed(self, task: Task, chunk: bytes, now: float) -> None:
        assert now == self.clock.now
        assert task.state is State.SENT
        if task.id in self.refused:
            raise LinkError(f"sent more of the stream of task {task.id} than there was room for")
        assert task.flow is not None
        assert task.flow.came(len(chunk), now)
        self.pieces.append((task.id, chunk))

    def failed(self, task: Task, failure: Failure) -> None:
        self.failures[task.id] = failure
        self.stage.drop(task)
        task.settle()

    def timed_out(self, task: Task, failure: Failure = TIMED_OUT) -> None:
        self.failed(task, failure)

    def is_late(self, task: Task, together: int, now: float) -> bool:
        self.asked.append((task.id, together, now))
        return task.id in self.late

    def too_late(self, task: Task, now: float) -> None:
        self.failed(task, TOO_LONG)

    # -- the test ----------------------------------------------------------------------------------------------------

    @property
    def worker(self) -> FakeWorker:
        """The only worker that lives."""
        (worker,) = self.launcher.alive()
        return worker

    def start(self) -> None:
        """Let all workers be ready."""
        self.stage.pool.start()
        for worker in self.launcher.alive():
            worker.ready()
        self.loop.turn()

    def submit(self, count: int = 1, *, streams: bool = False) -> list[Task]:
        """Let tasks come, in one turn."""
        tasks = []
        for _ in range(count):
            number = next(self._numbers)
            flow = Flow(1024) if streams else None
            now = self.clock.now
            task = new_task(number, now, payload=b"%d" % number, request_id=f"request-{number}", flow=flow)
            tasks.append(task)
            self.stage.enqueue(task, now)
        return tasks

    def leave(self, task: Task) -> None:
        """Let a client leave, as the coordinator does."""
        self.stage.drop(task)
        task.settle()

    async def replaced(self, before: FakeWorker) -> FakeWorker:
        """Let a worker that was killed be gone and its successor be ready; return that one."""
        await settled_loop()
        assert before.exited
        self.loop.advance(0.0)
        worker = self.launcher.launched[-1]
        worker.ready()
        self.loop.turn()
        return worker


@asynccontextmanager
async def bench(**options: Any) -> AsyncIterator[Bench]:
    """Start a stage; nothing of it may be left at the end."""
    made = Bench(**options)
    made.start()
    yield made
    made.stage.pool.ask_to_stop()
    made.stage.pool.kill_all("the test is over")
    await settled_loop()
    made.stage.stop_timers()
    made.loop.turn()
    assert made.launcher.alive() == []
    assert made.loop.timers == []


pytestmark = pytest.mark.usefixtures("logged")


# -- turns -------------------------------------------------------------------------------------------------------------


async def test_a_task_that_finds_the_stage_idle_is_sent_at_once_and_others_at_the_end_of_the_turn() -> None:
    async with bench(concurrency=4, ordered=False) as b:
        b.submit(3)
        assert b.worker.sizes == [1]
        b.loop.turn()
        assert b.worker.sizes == [1, 2]
        assert b.loop.turn() == 0, "one turn is enough"


async def test_answers_of_one_turn_lead_to_one_message_of_new_tasks() -> None:
    async with bench(concurrency=4, ordered=False) as b:
        b.submit(8)
        b.loop.turn()
        assert b.worker.sizes == [1, 4]
        for task_id in b.worker.has[:3]:
            b.worker.reply([task_id])
        b.loop.turn()
        assert b.worker.sizes == [1, 4, 3]


async def test_answers_while_nothing_waits_lead_to_no_turn() -> None:
    async with bench() as b:
        b.submit()
        b.worker.reply()
        assert b.loop.turn() == 0


async def test_where_tasks_stand_in_their_pipeline_goes_with_them() -> None:
    async with bench(concurrency=8, ordered=False) as b:
        expected = []
        for stages, position, example, flags in (
            ((0,), 0, False, INGRESS | EGRESS),
            ((0, 1), 0, False, INGRESS),
            ((1, 0, 2), 1, False, 0),
            ((1, 0), 1, False, EGRESS),
            ((0,), 0, True, EXAMPLE | EGRESS),
            ((1, 0), 1, True, EGRESS),
        ):
            task = new_task(len(expected) + 1, b.clock.now, stages=stages, example=example)
            for _ in range(position):
                task.step(Event.DISPATCH)
                task.advance(b"", b.clock.now)
            b.stage.enqueue(task, b.clock.now)
            expected.append(flags)
        b.loop.turn()
        assert [flag for tasks in b.worker.sent for flag in tasks.flags] == expected


async def test_of_tasks_that_have_come_together_none_is_sent_before_the_one_that_has_most_right() -> None:
    async with bench() as b:
        for number, priority in ((1, -2), (2, 3), (3, 0)):
            task = new_task(number, b.clock.now)
            task.priority = priority
            b.stage.enqueue(task, b.clock.now, 3)
        assert b.worker.given == []
        b.loop.turn()
        assert b.worker.given == [2]


async def test_a_task_that_comes_alone_is_sent_at_once_and_one_after_a_crowd_waits_for_the_turns_end() -> None:
    async with bench() as b:
        b.submit()
        assert len(b.worker.given) == 1, "the first one"
        b.worker.reply(seconds=0.0001)
        b.submit()
        assert len(b.worker.given) == 2, "one after another"
        b.worker.reply(seconds=0.0001)
        b.submit(3)
        b.loop.turn()
        b.worker.reply(seconds=0.0001)
        b.loop.turn()
        b.worker.reply(seconds=0.0001)
        given = len(b.worker.given)
        b.submit()
        assert len(b.worker.given) == given, "others may come in the same turn, as they did before"
        b.loop.turn()
        assert len(b.worker.given) == given + 1


def quick_tasks(b: Bench, count: int) -> list[Task]:
    """Let tasks come one by one to a worker that does each in no time."""
    tasks: list[Task] = []
    for _ in range(count):
        tasks += b.submit()
        # The answer is looked for in the next turn: nobody is answered before he has done asking.
        assert b.worker.has == [tasks[-1].id]
        b.loop.turn()
        if b.worker.has:
            b.worker.reply(seconds=0.0)
    return tasks


async def test_the_answer_to_a_task_that_comes_alone_to_a_quick_worker_is_looked_for() -> None:
    async with bench() as b:
        quick_tasks(b, 1)
        assert b.worker.polls == [], "it was not known to be quick"
        b.worker.seen = True
        (task,) = quick_tasks(b, 1)
        assert b.worker.polls == [POLL_SECONDS]
        assert task.state is State.SETTLED
        assert b.loop.turn() == 0


async def test_a_task_whose_answer_was_looked_for_in_vain_is_answered_all_the_same() -> None:
    async with bench() as b:
        tasks = quick_tasks(b, 3)
        assert b.worker.polls == [POLL_SECONDS], "and not again so soon"
        assert {task.state for task in tasks} == {State.SETTLED}


async def test_a_look_that_other_work_has_ended_was_not_in_vain() -> None:
    async with bench() as b:
        b.worker.seen = None
        quick_tasks(b, 4)
        assert b.worker.polls == 3 * [POLL_SECONDS]


async def test_no_answer_is_looked_for_while_others_wait_or_batches_form() -> None:
    async with bench(max_batch_size=2) as b:
        for _ in range(4):
            b.clock.now += 10
            b.submit()
            b.loop.turn()
            b.worker.reply(seconds=0.0)
        assert b.worker.polls == []
    async with bench() as b:
        quick_tasks(b, 1)
        b.submit(2)
        b.loop.turn()
        assert b.worker.polls == [POLL_SECONDS], "for the first, which was alone when it came"
        b.worker.reply(seconds=0.0)


# -- clients that leave ------------------------------------------------------------------------------------------------


async def test_the_worker_is_told_once_in_a_turn_of_all_that_nobody_waits_for_any_more() -> None:
    async with bench(num=2, concurrency=4, ordered=False) as b:
        tasks = b.submit(8)
        b.loop.turn()
        first, second = b.launcher.launched
        for task in tasks[:6]:
            b.leave(task)
        assert first.cancelled + second.cancelled == []
        b.loop.turn()
        for worker, has in ((first, {1, 3, 5}), (second, {2, 4, 6})):
            assert set(worker.cancelled) == has
            assert [type(message) for message in worker.heard].count(Cancels) == 1
        b.leave(tasks[6])
        b.loop.turn()
        assert sorted(first.cancelled) == [1, 3, 5, 7], "each is told once"
        assert len(second.cancelled) == 3


async def test_a_worker_hears_of_those_who_left_before_it_gets_new_tasks() -> None:
    async with bench(concurrency=2, ordered=False) as b:
        tasks = b.submit(2)
        b.loop.turn()
        b.leave(tasks[1])
        b.worker.reply([tasks[0].id])
        b.submit(1)
        b.loop.turn()
        assert [type(message).__name__ for message in b.worker.heard] == ["Tasks", "Tasks", "Cancels", "Tasks"]


async def test_a_task_that_waits_is_dropped_and_no_worker_hears_of_it() -> None:
    async with bench() as b:
        _, second, third = b.submit(3)
        b.loop.turn()
        b.leave(second)
        b.worker.reply()
        b.loop.turn()
        assert b.worker.given == [1, third.id]
        assert b.worker.cancelled == []


async def test_the_answer_to_a_task_that_nobody_waits_for_goes_nowhere_and_makes_room() -> None:
    async with bench() as b:
        first, second = b.submit(2)
        b.leave(first)
        b.loop.turn()
        b.worker.reply()
        b.loop.turn()
        assert b.answers == {}
        assert b.worker.has == [second.id]


async def test_when_a_task_that_others_wait_behind_leaves_they_go_in_the_same_turn() -> None:
    async with bench(num=2) as b:
        one, other = b.launcher.launched
        for worker in (one, other):
            # Quick enough for a wide window.
            b.submit()
            worker.reply(seconds=0.00001)
        _, lone = b.submit(2)
        b.loop.turn()
        assert (len(one.has), other.has) == (1, [lone.id])
        other.exit()
        b.loop.turn()
        (late,) = b.submit()
        b.loop.turn()
        assert list(b.stage.scheduler.queue.waiting()) == [lone, late]
        b.leave(lone)
        b.loop.turn()
        assert one.has[1:] == [late.id]


async def test_a_worker_that_dies_in_the_turn_in_which_a_client_leaves_is_told_nothing() -> None:
    async with bench(num=2, concurrency=2, ordered=False) as b:
        tasks = b.submit(2)
        b.loop.turn()
        one, other = b.launcher.launched
        for task in tasks:
            b.leave(task)
        one.exit()
        b.loop.turn()
        assert (one.cancelled, other.cancelled) == ([], [2])


async def test_a_worker_that_was_asked_to_stop_is_told_nothing_more() -> None:
    async with bench(**STREAMS) as b:
        gone, stays = b.submit(2, streams=True)
        b.loop.turn()
        b.worker.stops_when_asked = False
        b.leave(gone)
        b.stage.credit(stays, 300)
        b.stage.pool.ask_to_stop()
        b.loop.turn()
        assert (b.worker.cancelled, b.worker.taken) == ([], [])


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_answers_are_handed_to_the_owner_with_their_status() -> None:
    async with bench(concurrency=2, ordered=False) as b:
        first, second = b.submit(2)
        b.loop.turn()
        b.worker.reply([second.id], code=422, payloads=[b"no"])
        b.worker.reply([first.id])
        assert b.answers == {1: (200, b"re:1"), 2: (422, b"no")}


@pytest.mark.parametrize(
    "ids", [[2, 1], [1, 1], [1, 99], [99], [1, 2, 2]], ids=["out of order", "twice", "unknown", "only unknown", "more"]
)
async def test_a_worker_that_answers_what_it_has_not_is_killed_and_nothing_of_it_is_believed(ids: list[int]) -> None:
    async with bench(max_batch_size=2) as b:
        b.submit(2)
        b.loop.turn()
        worker = b.worker
        worker.reply_unasked(ids)
        assert worker.killed
        assert b.answers == {}
        worker = await b.replaced(worker)
        for number in (1, 2):
            assert worker.has == [number]
            worker.reply()
            b.loop.turn()
        assert b.answers == {1: (200, b"re:1"), 2: (200, b"re:2")}


async def test_the_payloads_of_answers_that_nobody_waits_for_or_that_are_refused_are_given_back() -> None:
    async with bench(max_batch_size=3) as b:
        first, second, _ = b.submit(3)
        b.loop.turn()
        b.leave(first)
        unwanted, wanted = Held(), Held()
        b.worker.reply([1, 2], payloads=[unwanted, wanted])
        assert (unwanted.drops, wanted.drops) == (1, 0)
        assert b.answers == {second.id: (200, wanted)}
        refused = [Held(), Held()]
        b.worker.say("results", Results([3, 99], [200, 200], refused, 0.1))
        assert b.worker.killed
        assert [payload.drops for payload in refused] == [1, 1]
        await settled_loop()


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_results_whose_columns_differ_in_length_cost_the_worker_and_nothing_else() -> None:
    async with bench() as b:
        (task,) = b.submit()
        worker = b.worker
        worker.say("results", Results([task.id], [200, 200], [b"1"], 0.01))
        assert worker.killed
        assert b.answers == {}
        again = await b.replaced(worker)
        again.reply()
        assert list(b.answers) == [task.id]


async def test_tasks_that_cannot_be_sent_are_answered_and_stay_with_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(tasks: Tasks) -> None:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    async with bench() as b:
        worker = b.worker
        monkeypatch.setattr(worker, "send", fail)
        (task,) = b.submit()
        assert b.failures == {}, "nobody is answered while he asks"
        b.loop.turn()
        assert b.failures == {task.id: INTERNAL_ERROR}
        assert worker.killed
        (record,) = [record for record in caplog.records if "could not be sent" in record.getMessage()]
        assert told(record, "request_id") == (task.request_id,)
        (other,) = b.submit()
        again = await b.replaced(worker)
        again.reply()
        assert list(b.answers) == [other.id]


async def test_pieces_of_streams_are_handed_on_in_their_order() -> None:
    async with bench(**STREAMS) as b:
        first, second = b.submit(2, streams=True)
        b.loop.turn()
        b.worker.emit([1, 2, 1, 1], [b"a", b"x", b"b", b"c"])
        b.worker.emit([2, 1], [b"y", b"d"])
        assert [chunk for number, chunk in b.pieces if number == first.id] == [b"a", b"b", b"c", b"d"]
        assert [chunk for number, chunk in b.pieces if number == second.id] == [b"x", b"y"]


async def test_events_of_a_stage_that_does_not_stream_cost_the_worker() -> None:
    async with bench(concurrency=4, ordered=False) as b:
        b.submit(1, streams=True)
        worker = b.worker
        worker.emit([1], [b"event"])
        assert worker.killed
        assert b.pieces == []
        assert (await b.replaced(worker)).has == [1]


@pytest.mark.parametrize("wrong", ["unknown", "answered", "another's", "waiting"])
async def test_events_of_a_task_that_a_worker_does_not_have_cost_the_worker(wrong: str) -> None:
    async with bench(num=2, streams=True, ordered=False) as b:
        tasks = b.submit(3, streams=True)
        b.loop.turn()
        worker, _ = b.launcher.launched
        if wrong == "answered":
            worker.reply()
        worker.emit([{"unknown": 99, "answered": 1, "another's": 2, "waiting": 3}[wrong]], [b"event"])
        assert worker.killed
        assert b.pieces == []
        assert [task.flow.events for task in tasks if task.flow] == [0, 0, 0]


async def test_pieces_of_a_stream_that_nobody_waits_for_go_nowhere() -> None:
    async with bench(**STREAMS) as b:
        first, _ = b.submit(2, streams=True)
        b.loop.turn()
        b.leave(first)
        b.worker.emit([1, 2], [b"a", b"b"])
        assert b.pieces == [(2, b"b")]
        assert not b.worker.killed


async def test_a_piece_that_the_owner_does_not_take_costs_the_worker() -> None:
    async with bench(**STREAMS) as b:
        tasks = b.submit(3, streams=True)
        b.loop.turn()
        worker = b.worker
        b.refused = {2}
        worker.emit([1, 2, 3], [b"a", b"b", b"c"])
        assert worker.killed
        assert b.pieces == [(1, b"a")]
        assert b.failures == {1: WORKER_DIED}, "its stream has begun, and is not run again"
        assert list(b.stage.scheduler.queue.waiting()) == tasks[1:]
        await settled_loop()


async def test_what_clients_have_taken_is_added_up_and_told_once_in_a_turn() -> None:
    async with bench(num=2, **STREAMS) as b:
        tasks = b.submit(4, streams=True)
        b.loop.turn()
        first, second = b.launcher.launched
        for task, size in zip([*tasks, tasks[0]], [300, 400, 500, 600, 7], strict=True):
            b.stage.credit(task, size)
        assert first.taken + second.taken == []
        b.loop.turn()
        assert (first.taken, second.taken) == ([(1, 307), (3, 500)], [(2, 400), (4, 600)])
        assert len(first.heard) - len(first.sent) == 1, "in one message"
        b.stage.credit(tasks[0], 1)
        b.loop.turn()
        assert first.taken[2:] == [(1, 1)], "what was told is not told again"


async def test_what_clients_have_taken_of_streams_that_no_worker_has_is_told_to_nobody() -> None:
    async with bench(**STREAMS) as b:
        (task,) = b.submit(1, streams=True)
        b.worker.emit([1], [b"event"])
        b.worker.reply(payloads=[b""])
        b.stage.credit(task, 300)
        assert b.loop.turn() == 0
        (task,) = b.submit(1, streams=True)
        b.stage.credit(task, 300)
        b.worker.exit()
        b.loop.turn()
        assert b.launcher.launched[0].taken == []


# -- deaths ------------------------------------------------------------------------------------------------------------


async def test_begun_tasks_of_a_dead_worker_run_alone_and_those_sent_ahead_as_before() -> None:
    async with bench(max_batch_size=2) as b:
        b.submit(4)
        b.loop.turn()
        worker = b.worker
        assert worker.sizes == [2, 2]
        worker.begun = 1
        worker.exit()
        worker = await b.replaced(worker)
        assert worker.has == [1]
        worker.reply()
        b.loop.turn()
        assert worker.sizes == [1, 2], "the others are a batch again, whatever the first one's fate was"


async def test_what_a_dead_worker_had_goes_to_one_that_has_nothing_in_the_same_turn() -> None:
    async with bench(num=2) as b:
        b.submit()
        one, other = b.launcher.launched
        one.exit()
        b.loop.turn()
        assert other.has == [1]


async def test_a_task_that_as_many_workers_died_of_as_it_has_attempts_is_answered_500(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with bench(max_attempts=3) as b:
        b.submit()
        for attempt in range(3):
            assert b.failures == {}
            worker = b.worker
            assert worker.has == [1]
            b.clock.advance(60.0)
            worker.exit()
            if attempt < 2:
                await b.replaced(worker)
        assert b.failures == {1: WORKER_DIED}
        assert WORKER_DIED.code == 500
        (record,) = [record for record in logged.records if "answered 500" in record.getMessage()]
        assert told(record, "request_id", "stage", "worker") == ("request-1", "Echo_1", 1)
        assert b.stage.scheduler.queued == 0


async def test_a_task_that_nobody_waits_for_ends_with_its_worker() -> None:
    async with bench(num=2) as b:
        first, _ = b.submit(2)
        b.loop.turn()
        b.leave(first)
        b.launcher.launched[0].exit()
        b.loop.turn()
        assert (b.stage.scheduler.queued, b.stage.scheduler.in_flight, b.failures) == (0, 1, {})


async def test_a_stream_that_has_sent_an_event_ends_with_its_worker_and_is_not_run_again(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with bench(max_attempts=9, **STREAMS) as b:
        b.submit(2, streams=True)
        b.loop.turn()
        worker = b.worker
        worker.emit([1], [b"event"])
        worker.exit()
        assert b.failures == {1: WORKER_DIED}
        assert any("in the middle of this stream" in record.getMessage() for record in logged.records)
        worker = await b.replaced(worker)
        assert worker.has == [2]


async def test_a_stream_that_has_sent_nothing_runs_again_alone_until_its_first_event() -> None:
    async with bench(**STREAMS) as b:
        b.submit(1, streams=True)
        b.worker.exit()
        worker = await b.replaced(b.launcher.launched[0])
        b.submit(2, streams=True)
        b.loop.turn()
        assert worker.has == [1]
        worker.emit([1], [b"event"])
        b.loop.turn()
        assert worker.has == [1, 2, 3]
        assert b.pieces == [(1, b"event")]
        worker.emit([1], [b"another"])
        assert b.loop.turn() == 0, "it is proven once"


async def test_a_stream_that_nobody_waits_for_any_more_is_proven_by_its_first_event_as_well() -> None:
    async with bench(**STREAMS) as b:
        (task,) = b.submit(1, streams=True)
        b.worker.exit()
        worker = await b.replaced(b.launcher.launched[0])
        b.leave(task)
        b.submit(2, streams=True)
        b.loop.turn()
        assert worker.has == [1]
        worker.emit([1], [b"event"])
        b.loop.turn()
        assert worker.has == [1, 2, 3]


async def test_a_proven_stream_that_dies_after_all_does_not_take_those_that_joined_it_with_it() -> None:
    async with bench(**STREAMS) as b:
        b.submit(1, streams=True)
        b.worker.exit()
        worker = await b.replaced(b.launcher.launched[0])
        worker.emit([1], [b"event"])
        b.submit(2, streams=True)
        b.loop.turn()
        worker.begun = 2
        b.clock.advance(60.0)
        worker.exit()
        assert b.failures == {1: WORKER_DIED}
        assert [task.alone for task in b.stage.scheduler.queue.waiting()] == [True, False]


async def test_a_pipe_that_breaks_at_the_first_of_two_batches_loses_neither() -> None:
    async with bench(max_batch_size=2) as b:
        worker = b.worker

        def broken(tasks: Tasks) -> None:
            worker.close_pipe("writing to it failed")

        worker.send = broken  # type: ignore[method-assign]
        b.submit(4)
        b.loop.turn()
        worker = await b.replaced(worker)
        assert worker.sizes == [2, 2]


async def test_a_pipe_that_breaks_at_a_lone_task_of_a_quick_worker_does_not_lose_it() -> None:
    async with bench() as b:
        quick_tasks(b, 1)
        worker = b.worker
        worker.send = lambda tasks: worker.close_pipe("writing to it failed")  # type: ignore[method-assign]
        b.submit()
        assert worker.polls == [], "there is nobody to answer"
        worker = await b.replaced(worker)
        assert worker.sizes == [1]


# -- workers that are stuck --------------------------------------------------------------------------------------------


async def test_a_worker_that_does_nothing_beyond_its_time_is_killed_and_what_it_had_begun_is_answered_408(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with bench(max_batch_size=2) as b:
        b.submit(4)
        b.loop.turn()
        worker = b.worker
        assert worker.sizes == [2, 2]
        worker.begun = 2
        b.loop.advance(STUCK)
        assert not worker.killed
        b.loop.advance(2 * LOOK_SECONDS)
        assert worker.killed
        assert b.failures == dict.fromkeys((1, 2), describe(too_slow(b.stage.plan.timeout, UNSEEN)))
        assert "raise `timeout` (seconds) of its stage" in b.failures[1].text
        worker = await b.replaced(worker)
        assert worker.sizes == [2], "what was sent ahead is a batch as before"
        assert worker.has == [3, 4]
        assert worker.cancelled == []
        (message,) = [r.getMessage() for r in logged.records if r.levelno == logging.ERROR]
        assert "it was stuck: it did nothing for 6 s" in message


async def test_a_worker_that_steps_may_take_as_long_as_it_likes() -> None:
    async with bench() as b:
        b.submit()
        for _ in range(20):
            b.loop.advance(TIMEOUT)
            b.worker.beats += 1
        assert not b.worker.killed


async def test_a_worker_with_nothing_to_do_is_not_looked_at() -> None:
    async with bench() as b:
        b.submit()
        b.worker.reply()
        b.loop.advance(LOOK_SECONDS)
        assert b.loop.timers == []
        looks = b.worker.looks
        b.loop.advance(100 * STUCK)
        assert b.worker.looks == looks
        b.submit()
        b.loop.advance(STUCK / 2)
        assert b.worker.looks > looks
        assert not b.worker.killed


async def test_of_two_busy_workers_only_the_stuck_one_is_killed() -> None:
    async with bench(num=2) as b:
        b.submit(2)
        b.loop.turn()
        one, other = b.launcher.launched
        while not one.killed:
            b.loop.advance(1.0)
            other.beats += 1
        b.loop.advance(5 * STUCK / 10)
        assert not other.killed
        assert b.failures == {1: describe(too_slow(TIMEOUT, UNSEEN))}
        await settled_loop()


async def test_a_stuck_worker_is_killed_though_nobody_waits_for_what_it_has() -> None:
    async with bench() as b:
        first, second = b.submit(2)
        b.loop.turn()
        b.leave(first)
        worker = b.worker
        b.loop.advance(STUCK + 2 * LOOK_SECONDS)
        assert worker.killed
        assert b.failures == {}
        worker = await b.replaced(worker)
        assert worker.has == [second.id]


async def test_a_stuck_worker_that_had_begun_nothing_costs_no_task_anything() -> None:
    async with bench(max_attempts=1) as b:
        b.submit()
        worker = b.worker
        worker.begun = 0
        b.loop.advance(STUCK + 2 * LOOK_SECONDS)
        assert worker.killed
        assert b.failures == {}
        assert (await b.replaced(worker)).has == [1]


async def test_the_successor_of_a_stuck_worker_is_watched_as_well() -> None:
    async with bench() as b:
        for number in (1, 2, 3):
            b.submit()
            worker = b.worker
            b.loop.advance(STUCK + 2 * LOOK_SECONDS)
            assert worker.killed
            assert b.failures[number] == describe(too_slow(TIMEOUT, UNSEEN))
            b.clock.advance(60.0)
            await settled_loop()
            b.loop.advance(1.0)
            b.worker.ready()


# -- a stage that is down ----------------------------------------------------------------------------------------------


async def let_it_go_down(b: Bench) -> None:
    """Let the only worker die, and its replacement fail to start."""
    b.worker.exit()
    b.loop.advance(0.0)
    b.worker.fail_to_start("no weights")
    assert b.stage.pool.down


async def test_all_that_waits_is_answered_when_the_stage_goes_down() -> None:
    async with bench() as b:
        b.submit(3)
        b.loop.turn()
        await let_it_go_down(b)
        assert b.failures == {1: STAGE_DOWN, 2: STAGE_DOWN, 3: STAGE_DOWN}
        assert STAGE_DOWN.code == 503
        assert b.stage.scheduler.queued == 0


async def test_a_task_that_comes_while_the_stage_is_down_is_answered_at_once() -> None:
    async with bench() as b:
        await let_it_go_down(b)
        b.submit()
        assert b.failures == {1: STAGE_DOWN}
        assert b.stage.scheduler.queued == 0


# -- waiting for a batch -----------------------------------------------------------------------------------------------


async def test_a_batch_leaves_when_its_oldest_has_waited_and_the_wait_of_the_next_begins_anew() -> None:
    async with bench(max_batch_size=4, max_wait=1.0) as b:
        b.submit(2)
        b.loop.advance(0.999)
        assert b.worker.sent == []
        b.loop.advance(0.001)
        assert b.worker.sizes == [2]
        b.worker.reply()
        b.submit()
        b.loop.advance(0.5)
        b.submit()
        b.loop.advance(0.499)
        assert b.worker.sizes == [2]
        b.loop.advance(0.001)
        assert b.worker.sizes == [2, 2]


async def test_a_timer_that_fires_a_little_early_is_set_again() -> None:
    async with bench(max_batch_size=4, max_wait=1.0) as b:
        b.submit()
        b.loop.turn()
        (wake,) = b.loop.timers
        b.clock.advance(0.9999)
        wake.cancelled = True
        wake.callback()
        b.loop.turn()
        assert b.worker.sent == []
        b.loop.advance(0.001)
        assert b.worker.sizes == [1]


async def test_a_batch_that_has_left_leaves_no_timer_of_its_wait() -> None:
    async with bench(max_batch_size=2, max_wait=1.0) as b:
        b.submit()
        b.loop.turn()
        (wake,) = b.loop.timers
        b.submit()
        b.loop.turn()
        assert b.worker.sizes == [2]
        assert wake.cancelled


async def test_stopped_timers_do_not_fire() -> None:
    async with bench(num=2, max_batch_size=2, max_wait=1.0) as b:
        b.submit(3)
        b.loop.turn()
        assert len(b.loop.timers) == 2
        b.stage.stop_timers()
        assert b.loop.timers == []
        b.stage.stop_timers()


# -- what is measured --------------------------------------------------------------------------------------------------


async def test_each_task_counts_into_the_measured_times_of_its_worker() -> None:
    async with bench(num=2) as b:
        b.submit(3)
        b.loop.turn()
        b.clock.advance(2.0)
        one, other = b.launcher.launched
        one.reply(seconds=0.5)
        other.reply(seconds=0.25)
        b.loop.turn()
        first, second = b.metrics.worker(1), b.metrics.worker(2)
        assert (first.process_duration.count, first.process_duration.total) == (1, 0.5)
        assert (second.process_duration.count, second.process_duration.total) == (1, 0.25)
        assert (b.metrics.queue_wait.count, b.metrics.queue_wait.total) == (3, 2.0)
        assert first.batch_size.count == first.batch_duration.count == 0


async def test_answers_of_one_message_share_its_time_without_batching_and_are_one_measurement_with_it() -> None:
    async with bench(concurrency=4, ordered=False) as b:
        b.submit(4)
        b.loop.turn()
        b.worker.reply(seconds=2.0)
        measured = b.metrics.worker(1).process_duration
        assert (measured.count, measured.total) == (4, 2.0)
        assert measured.buckets() != []
        assert measured.counts[-1] == 0, "half a second each"
    async with bench(max_batch_size=4) as b:
        b.submit(4)
        b.loop.turn()
        b.worker.reply(seconds=2.0)
        measured = b.metrics.worker(1).process_duration
        assert (measured.count, measured.total) == (1, 2.0)


async def test_the_wait_of_a_task_counts_from_its_arrival_at_the_stage() -> None:
    async with bench() as b:
        task = new_task(1, b.clock.now, stages=(1, 0))
        task.step(Event.DISPATCH)
        b.clock.advance(5.0)
        task.advance(b"", b.clock.now)
        b.stage.enqueue(task, b.clock.now)
        assert (b.metrics.queue_wait.count, b.metrics.queue_wait.total) == (1, 0.0)


async def test_the_size_of_a_batch_and_the_time_in_which_it_was_formed_are_measured() -> None:
    async with bench(max_batch_size=4, max_wait=1.0) as b:
        b.submit(2)
        b.loop.advance(0.5)
        b.submit()
        b.loop.advance(0.5)
        measured = b.metrics.worker(1)
        assert (measured.batch_size.count, measured.batch_size.total) == (1, 3)
        assert (measured.batch_duration.count, measured.batch_duration.total) == (1, 1.0)


def gauges(b: Bench) -> tuple[int, int, int, int]:
    """Return what waits, what runs, the workers that are ready, and the restarts."""
    scheduler, pool = b.stage.scheduler, b.stage.pool
    return scheduler.queued, scheduler.loads.slots_in_use, pool.ready, pool.restarts


async def test_the_gauges_are_those_of_the_queue_and_the_pool() -> None:
    async with bench(concurrency=4, ordered=False) as b:
        b.submit(7)
        b.loop.turn()
        assert gauges(b) == (2, 4, 1, 0)
        b.worker.exit()
        assert gauges(b) == (7, 0, 0, 1)


async def test_the_backlog_is_what_waits_at_the_measured_speed() -> None:
    async with bench() as b:
        b.submit(21)
        b.loop.turn()
        assert b.stage.admission.backlog(b.clock()) == 0.0, "nothing is known yet"
        for _ in range(10):
            b.clock.advance(0.2)
            b.worker.reply(seconds=0.2)
            b.loop.turn()
        assert b.stage.scheduler.queued == 10
        assert b.stage.admission.backlog(b.clock()) == pytest.approx(2.0)
        while b.worker.has:
            b.clock.advance(0.2)
            b.worker.reply(seconds=0.2)
            b.loop.turn()
        assert b.stage.admission.backlog(b.clock()) == 0.0


async def test_a_trickle_of_requests_does_not_make_a_stage_look_slow() -> None:
    async with bench(num=2) as b:
        for _ in range(20):
            b.submit()
            b.clock.advance(1.0)
            for worker in b.launcher.alive():
                if worker.has:
                    worker.reply(seconds=1.0)
            b.clock.advance(100.0)
        b.submit(12)
        b.loop.turn()
        assert b.stage.scheduler.queued == 10
        assert b.stage.admission.backlog(b.clock()) == pytest.approx(5.0), "each worker does one in a second"


async def test_what_was_measured_under_load_stays_true_through_quiet_times() -> None:
    async with bench() as b:
        for gap in (0.0, 3600.0, 100.0):
            b.clock.advance(gap)
            b.submit(9)
            b.loop.turn()
            while b.worker.has:
                b.clock.advance(0.25)
                b.worker.reply(seconds=0.25)
                b.loop.turn()
            # A lonely one, which waits for nothing.
            b.clock.advance(gap)
            b.submit()
            b.clock.advance(0.25)
            b.worker.reply(seconds=0.25)
        b.submit(9)
        b.loop.turn()
        assert b.stage.admission.backlog(b.clock()) == 2.0


@pytest.mark.parametrize("how", ["leave", "time out", "stage down"])
async def test_a_quiet_hour_after_those_that_waited_have_gone_unanswered_does_not_count(how: str) -> None:
    async with bench() as b:
        b.submit(9)
        b.loop.turn()
        while b.worker.has:
            b.clock.advance(0.25)
            b.worker.reply(seconds=0.25)
            b.loop.turn()
        waiting = b.submit(3)
        b.loop.turn()
        b.worker.exit()
        if how == "stage down":
            b.loop.advance(0.0)
            b.worker.fail_to_start("no weights")
        else:
            for task in waiting:
                b.leave(task) if how == "leave" else b.timed_out(task)
        b.loop.turn()
        b.clock.advance(3600.0)
        b.loop.advance(10.0)
        b.worker.ready()
        b.submit(9)
        b.loop.turn()
        while len(b.worker.given) < 9:
            b.clock.advance(0.25)
            b.worker.reply(seconds=0.25)
            b.loop.turn()
        b.submit(8)
        assert b.stage.admission.backlog(b.clock()) == pytest.approx(2.0)


async def test_a_batch_that_waits_to_fill_is_no_backlog() -> None:
    async with bench(max_batch_size=4, max_wait=100.0) as b:
        for _ in range(3):
            b.submit()
            b.loop.advance(100.0)
            b.clock.advance(0.1)
            b.worker.reply(seconds=0.1)
        b.submit(3)
        b.loop.turn()
        assert b.stage.admission.backlog(b.clock()) < 0.1, "less than a batch takes"


async def test_a_task_that_is_late_is_dropped_before_a_worker_is_given_it() -> None:
    async with bench(max_batch_size=4, max_wait=0.0) as b:
        b.submit(8)
        b.loop.turn()
        waiting = b.submit(3)
        b.stage.admission.margin = math.inf
        b.late = {waiting[1].id}
        b.loop.turn()
        assert b.asked == [], "the worker has no room"
        b.worker.reply(b.worker.has[:4])
        b.loop.turn()
        assert b.asked == [(task.id, 3, b.clock.now) for task in waiting]
        assert b.failures == {waiting[1].id: TOO_LONG}
        b.worker.reply(b.worker.has[:4])
        b.loop.turn()
        assert b.worker.has == [waiting[0].id, waiting[2].id]


async def test_a_lonely_task_that_may_be_late_is_not_answered_while_it_is_being_submitted() -> None:
    async with bench() as b:
        b.stage.admission.margin = math.inf
        b.late = {1}
        b.submit()
        assert (b.failures, b.worker.given) == ({}, [])
        b.loop.turn()
        assert b.failures == {1: TOO_LONG}
        assert b.worker.given == []
        b.stage.admission.margin = -math.inf
        b.loop.turn()
        b.submit()
        assert b.worker.given == [2], "it has time enough, and is sent at once"


async def test_who_has_time_enough_is_not_asked_about() -> None:
    async with bench() as b:
        tasks = b.submit(3)
        b.stage.admission.margin = tasks[0].deadline - b.clock.now
        b.loop.turn()
        assert b.asked == []


async def test_none_is_looked_at_while_all_deadlines_are_far() -> None:
    async with bench() as b:
        task = b.submit(2)[0]
        b.late.add(task.id)
        b.stage.admission.margin = task.deadline - b.clock.now + 1.0
        b.earliest_deadline = task.deadline + 1.0
        b.loop.turn()
        assert b.asked == []


async def test_a_stage_measures_how_long_a_worker_takes_for_what_it_had_begun() -> None:
    async with bench() as b:
        b.submit(4)
        for _ in range(3):
            b.loop.turn()
            b.clock.advance(0.5)
            b.worker.reply(seconds=0.1)
        admission = b.stage.admission
        admission.refresh(b.clock())
        assert admission.times.mean == pytest.approx(0.5), "as the server sees it"


async def test_only_the_first_event_of_a_stream_is_a_first_event() -> None:
    async with bench(streams=True, ordered=False, concurrency=4) as b:
        (left, *others) = b.submit(4, streams=True)
        b.loop.turn()
        b.leave(left)
        for _ in range(20):
            b.clock.advance(0.25)
            b.worker.emit([left.id], [b"a"])
        admission = b.stage.admission
        b.worker.emit([task.id for task in others], [b"a"] * 3)
        b.worker.reply(payloads=[b""] * 4)
        admission.refresh(b.clock())
        assert admission.own(1e9, 1) == pytest.approx(5.0), "three of the four came after 5 s"


async def test_a_stage_says_how_things_stand() -> None:
    async with bench() as b:
        b.submit(3)
        b.loop.turn()
        expected = "<Stage Echo_1 <Scheduler queued=2 sent=1 workers=1> <Supervisor Echo_1 1 of 1 ready>>"
        assert repr(b.stage) == expected
