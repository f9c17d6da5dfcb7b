"""What happens at a stage is told by one call to those who listen, and by none where nobody does."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fakes import FakeWorker, answer, new_task, running, settled_loop, stage

from mosec_asgi.messages import Results
from mosec_asgi.observing.observer import ObservedTask, StageEvents, StageObserver

EVENTS = [name for name, _ in inspect.getmembers(StageObserver, inspect.isfunction) if not name.startswith("_")]
# What each event carries beside the time.
CARRIED = {name: len(inspect.signature(getattr(StageObserver, name)).parameters) - 1 for name in EVENTS}


def listener_to(*events: str) -> tuple[StageObserver, list[tuple[Any, ...]]]:
    """Return an observer that hears these events only, and what it has heard."""
    heard: list[tuple[Any, ...]] = []

    def method(event: str) -> Any:
        return lambda self, *what: heard.append((event, *what))

    return type("Listener", (StageObserver,), {event: method(event) for event in events})(), heard


def test_there_is_a_hook_for_each_event_and_no_other() -> None:
    assert sorted(StageEvents.__annotations__) == sorted(EVENTS)
    assert len(EVENTS) == 13


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_that_nobody_listens_to_is_none(event: str) -> None:
    assert getattr(StageEvents(), event) is None
    deaf = StageEvents([StageObserver(), StageObserver()])
    assert getattr(deaf, event) is None


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_with_one_listener_is_its_own_method(event: str) -> None:
    listener, heard = listener_to(event)
    events = StageEvents([StageObserver(), listener])
    assert getattr(events, event) == getattr(listener, event), "nothing stands between"
    assert [name for name in EVENTS if getattr(events, name) is not None] == [event]
    what = tuple(range(CARRIED[event]))
    getattr(events, event)(*what)
    assert heard == [(event, *what)]


@pytest.mark.parametrize("event", EVENTS)
def test_several_listeners_hear_each_event_once_and_in_their_order(event: str) -> None:
    order: list[str] = []
    observers = []
    for name in ("first", "second", "third"):
        method = lambda self, *what, name=name: order.append(name)  # noqa: E731
        observers.append(type(name, (StageObserver,), {event: method})())
    observers.insert(1, StageObserver())
    getattr(StageEvents(observers), event)(*range(CARRIED[event]))
    assert order == ["first", "second", "third"]


def test_a_listener_by_inheritance_is_one() -> None:
    listener, heard = listener_to("arrived")
    heir = type("Heir", (type(listener),), {})()
    told = StageEvents([heir]).arrived
    assert told is not None
    told(new_task(1, 0.0), 0.5)
    assert [event for event, *_ in heard] == ["arrived"]


# -- what a service tells ----------------------------------------------------------------------------------------------


class Diary(StageObserver):
    """Hears all events; writes each down once."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def refused(self, code: int, reason: str, now: float) -> None:
        self.heard.append(("refused", code, reason))

    def arrived(self, task: ObservedTask, now: float) -> None:
        self.heard.append(("arrived", task.id))

    def sent(self, worker_id: int, tasks: Any, now: float) -> None:
        self.heard.append(("sent", worker_id, [task.id for task in tasks]))

    def answered(self, worker_id: int, tasks: Any, seconds: float, wanted: int, now: float) -> None:
        self.heard.append(("answered", worker_id, [task.id for task in tasks], seconds, wanted))

    def chunk(self, task: ObservedTask, since: float | None, now: float) -> None:
        self.heard.append(("chunk", task.id, since is None))

    def stream_ended(self, task: ObservedTask, now: float) -> None:
        self.heard.append(("stream_ended", task.id))

    def timed_out(self, task: ObservedTask, now: float) -> None:
        self.heard.append(("timed_out", task.id))

    def cancelled(self, task: ObservedTask, now: float) -> None:
        self.heard.append(("cancelled", task.id))

    def settled(self, task: ObservedTask, code: int, now: float) -> None:
        self.heard.append(("settled", task.id, code))


pytestmark = pytest.mark.usefixtures("logged")


async def test_each_stage_tells_what_has_happened_there_once() -> None:
    diaries = [Diary(), Diary()]
    async with running(stage("A_1"), stage("B_2"), observers=[diaries]) as service:
        first, second = service.workers
        ticket = service.submit()
        first.reply(seconds=0.5)
        await second.gets_work()
        second.reply(code=422, payloads=[b"no"], seconds=0.25)
        await answer(ticket)
        one, two = diaries
        assert one.heard == [("arrived", 1), ("sent", 1, [1]), ("answered", 1, [1], 0.5, 1)]
        assert two.heard == [("arrived", 1), ("sent", 1, [1]), ("settled", 1, 422), ("answered", 1, [1], 0.25, 1)]


async def test_refusals_timeouts_and_those_who_leave_are_told_where_they_happen() -> None:
    diaries = [Diary(), Diary()]
    async with running(stage("A_1"), stage("B_2"), capacity=2, observers=[diaries]) as service:
        first, _ = service.workers
        leaves = service.submit()
        late = service.submit(timeout=0.005)
        service.try_to_submit(0, b"", "one too many")
        service.coordinator.cancel(leaves.id)
        await answer(late)
        one, two = diaries
        told = [entry for entry in one.heard if entry[0] not in ("arrived", "sent")]
        assert told == [
            ("refused", 429, "capacity"),
            ("cancelled", leaves.id),
            ("settled", leaves.id, 499),
            ("timed_out", late.id),
            ("settled", late.id, 408),
        ]
        assert two.heard == []
        await settled_loop()
        first.reply()
        assert one.heard[-1] == ("answered", 1, [leaves.id], 0.01, 0), "nobody waited for it"
        service.coordinator.close()
        service.try_to_submit(0, b"", "")
        assert one.heard[-1] == ("refused", 503, "closing")


async def test_the_life_of_a_stream_is_told() -> None:
    diary = Diary()
    async with running(stage(streams=True, ordered=False, concurrency=4), observers=[[diary]]) as service:
        stream = service.stream()
        await service.worker.gets_work()
        service.worker.emit([stream.id, stream.id], [b"a", b"b"])
        service.worker.reply(payloads=[b""])
        await answer(stream.ticket)
        assert diary.heard[2:] == [
            ("chunk", 1, True),
            ("chunk", 1, False),
            ("stream_ended", 1),
            ("settled", 1, 200),
            ("answered", 1, [1], 0.01, 1),
        ]


class Ends(StageObserver):
    """Hears of answers before anything follows from them, and of workers that end."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def came(self, worker_id: int, tasks: Any, results: Results, now: float) -> None:
        self.heard.append(("came", worker_id, [task.id for task in tasks], list(results.codes)))

    def lost(self, worker_id: int, tasks: Any, now: float) -> None:
        self.heard.append(("lost", worker_id, [(task.id, task.attempts) for task in tasks]))

    def settled(self, task: ObservedTask, code: int, now: float) -> None:
        self.heard.append(("settled", task.id, code))


async def test_answers_are_told_before_what_follows_from_them_and_lost_tasks_with_their_attempts() -> None:
    ends = Ends()
    async with running(stage(), observers=[[ends]]) as service:
        ticket = service.submit()
        await service.worker.gets_work()
        dead = service.worker
        dead.exit()
        replacement = await service.next_life(dead)
        await replacement.gets_work()
        replacement.reply()
        await answer(ticket)
    assert ends.heard == [("lost", 1, [(1, 1)]), ("came", 1, [1], [200]), ("settled", 1, 200)]


async def test_a_batch_is_told_in_one_call() -> None:
    diary = Diary()
    async with running(stage(max_batch_size=3, max_wait=100.0), observers=[[diary]]) as service:
        for _ in range(3):
            service.submit()
        await service.worker.gets_work()
        worker: FakeWorker = service.worker
        worker.reply()
        assert diary.heard[3:] == [
            ("sent", 1, [1, 2, 3]),
            *(("settled", number, 200) for number in (1, 2, 3)),
            ("answered", 1, [1, 2, 3], 0.01, 3),
        ]
