from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from common import told
from fake_port import (
    ENDED,
    INTERNAL,
    LEFT,
    TOO_SLOW,
    ServerEnd,
    data,
    hang,
    json_tasks,
    runner_of,
    served,
    tasks,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import ClientError, MosecTimeoutError, ServerError
from mosec_asgi.streaming import ContinuousWorker, Event

LATE = 408


pytestmark = pytest.mark.usefixtures("logged")


class Countdown(ContinuousWorker):
    """Streams the numbers from what it is asked down to 1, and keeps a diary.

    Its slots are numbers, of which the lowest free one is taken. A test changes what it does by overriding a method.
    """

    def __init__(self) -> None:
        self.left: dict[Hashable, int] = {}
        self.diary: list[tuple[Any, ...]] = []

    def admit(self, item: int) -> Hashable:
        slot = next(number for number in range(99) if number not in self.left)
        self.left[slot] = item
        self.diary.append(("admit", item, slot))
        return slot

    def step(self) -> Iterable[tuple[Hashable, Any]]:
        self.diary.append(("step", *sorted(self.left)))  # type: ignore[type-var]
        for slot in self.left:
            if not self.left[slot]:
                yield slot, self.FINISHED
            else:
                yield slot, self.event(slot)
                self.left[slot] -= 1

    def event(self, slot: Hashable) -> Any:
        return f"{self.left[slot]}"

    def evict(self, slot: Hashable) -> None:
        del self.left[slot]
        self.diary.append(("evict", slot))

    @property
    def most(self) -> int:
        """The most slots that took part in a step."""
        return max(len(entry) - 1 for entry in self.diary if entry[0] == "step")


def serve(
    worker: type[Countdown], *work: Any, server: ServerEnd | None = None, slots: int = 4, **options: Any
) -> tuple[ServerEnd, Countdown]:
    """Serve tasks, and return the server's end and the worker; no slot may be left taken."""
    made: list[Countdown] = []
    initialise = worker.__init__

    def note(self: Countdown) -> None:
        initialise(self)
        made.append(self)

    noted = type(worker.__name__, (worker,), {"__init__": note})
    server = served(noted, *work, server=server, max_batch_size=slots, **options)
    assert made[0].left == {}, "a slot was not freed"
    return server, made[0]


def numbers(first: int) -> list[bytes]:
    """Return the events of a request for `first`."""
    return data(*(f"{number}" for number in range(first, 0, -1)))


# -- requests come and go ----------------------------------------------------------------------------------------------


def test_requests_that_are_there_share_each_step_and_each_ends_in_its_own_time() -> None:
    server, worker = serve(Countdown, json_tasks(3, 1, 2))
    assert server.events == {1: numbers(3), 2: numbers(1), 3: numbers(2)}
    assert list(server.answers.items()) == [(2, ENDED), (3, ENDED), (1, ENDED)]
    steps = [entry[1:] for entry in worker.diary if entry[0] == "step"]
    assert steps == [(0, 1, 2), (0, 1, 2), (0, 2), (0,)]


def test_the_events_of_a_step_are_one_frame() -> None:
    server, _ = serve(Countdown, json_tasks(2, 2, 2))
    assert len(server.frames) == 2 + 3


def test_a_request_that_comes_joins_at_the_next_step() -> None:
    server = ServerEnd()

    def join(number: int, payload: bytes) -> None:
        if payload == data("9")[0]:
            server.send(json_tasks(1, first=2))

    class Patient(Countdown):
        def event(self, slot: Hashable) -> Any:
            if slot == 0 and self.left[0] == 8:
                # The next step finds the second request in the pipe.
                until(lambda: server._sent == 2)
            return super().event(slot)

    server.on_event = join
    _, worker = serve(Patient, json_tasks(9), server=server)
    assert list(server.answers) == [2, 1]
    assert (server.events[1], server.events[2]) == (numbers(9), numbers(1))
    assert worker.most == 2


def test_no_more_requests_than_slots_take_part_and_the_others_wait_in_order() -> None:
    server, worker = serve(Countdown, json_tasks(2, 1, 1, 1, 1), slots=2)
    assert worker.most == 2
    assert [entry[1] for entry in worker.diary if entry[0] == "admit"] == [2, 1, 1, 1, 1]
    assert sorted(server.answers) == [1, 2, 3, 4, 5]


def test_a_slot_that_is_freed_is_taken_again_at_the_next_step() -> None:
    _, worker = serve(Countdown, json_tasks(1, 3, 1), slots=2)
    freed = worker.diary.index(("evict", 0))
    assert worker.diary[freed + 1 : freed + 3] == [("admit", 1, 0), ("step", 0, 1)]


def test_requests_that_wait_are_begun_when_they_are_admitted() -> None:
    begun: list[int] = []
    server = ServerEnd()

    class Noting(Countdown):
        def admit(self, item: int) -> Hashable:
            begun.append(server.begun().begun)
            return super().admit(item)

    serve(Noting, json_tasks(1, 1), json_tasks(1, 1, first=3), server=server, slots=3)
    assert begun == [1, 2, 3, 4]


def test_requests_that_come_together_are_together_in_their_first_step() -> None:
    """The second frame is on its way while the first one is taken in."""
    server = ServerEnd()
    _, worker = serve(Countdown, json_tasks(2), json_tasks(2, first=2), server=server)
    assert next(entry for entry in worker.diary if entry[0] == "step") == ("step", 0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.integers(1, 4), st.integers(1, 4))
def test_each_request_gets_its_own_events_whatever_joins_and_leaves(asked: list[int], slots: int, size: int) -> None:
    work = [json_tasks(*asked[n : n + size], first=n + 1) for n in range(0, len(asked), size)]
    server, worker = serve(Countdown, *work, slots=slots)
    assert server.events == {number: numbers(item) for number, item in enumerate(asked, 1)}
    assert set(server.answers.values()) == {ENDED}
    assert worker.most <= slots


@pytest.mark.parametrize("slot", ["a name", ("a", 1), None, 7.5], ids=repr)
def test_a_slot_is_anything_that_can_be_looked_up(slot: Hashable) -> None:
    class Single(Countdown):
        def admit(self, item: int) -> Hashable:
            self.left[slot] = item
            return slot

        def step(self) -> Iterable[tuple[Hashable, Any]]:
            return list(super().step())

    server, _ = serve(Single, json_tasks(2, 1), slots=1)
    assert server.events == {1: numbers(2), 2: numbers(1)}


def test_an_event_may_have_fields_of_its_own() -> None:
    class Fields(Countdown):
        def event(self, slot: Hashable) -> Any:
            return Event(super().event(slot), event="token")

    server, _ = serve(Fields, json_tasks(1))
    assert server.texts(1) == "event: token\ndata: 1\n\n"


# -- requests that fail ------------------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_decoded_or_admitted_fails_alone() -> None:
    class Picky(Countdown):
        def admit(self, item: int) -> Hashable:
            if item == 7:
                raise ClientError("not seven")
            if item == 8:
                raise KeyError("a secret")
            return super().admit(item)

    server, worker = serve(Picky, tasks(b"2", b"{", b"7", b"8", b"1"), slots=2)
    assert server.answers.pop(2)[0] == 400
    assert server.answers == {1: ENDED, 3: (400, b"bad request: not seven"), 4: INTERNAL, 5: ENDED}
    assert (server.events[1], server.events[5]) == (numbers(2), numbers(1))
    # Nobody is evicted who was not admitted.
    assert [entry for entry in worker.diary if entry[0] != "step"] == [
        ("admit", 2, 0),
        ("admit", 1, 1),
        ("evict", 1),
        ("evict", 0),
    ]


def test_so_does_an_item_whose_decoding_takes_too_long() -> None:
    def deserialize(self: Countdown, data: bytes) -> int:
        if int(data) == 2:
            hang()
        return int(data)

    worker = type("Made", (Countdown,), {"deserialize": deserialize})
    server = served(worker, json_tasks(1, 2, 3), max_batch_size=3, timeout=0.2)
    assert server.answers.pop(2)[0] == LATE
    assert server.answers == {1: ENDED, 3: ENDED}


def test_an_admission_that_takes_too_long_fails_alone() -> None:
    class Slow(Countdown):
        def admit(self, item: int) -> Hashable:
            if item == 7:
                hang()
            return super().admit(item)

    server, _ = serve(Slow, json_tasks(7, 1), timeout=0.1)
    assert [server.answers[number][0] for number in (1, 2)] == [LATE, 200]


def test_a_slot_that_another_request_has_is_a_fault_of_the_worker_and_the_other_goes_on() -> None:
    class Careless(Countdown):
        def admit(self, item: int) -> Hashable:
            if item == 7:
                return 0
            return super().admit(item)

    server, worker = serve(Careless, json_tasks(2, 7, 1))
    code, text = server.answers[2]
    assert code == 500
    assert text == b"internal error: admit returned the slot 0, which another request has"
    assert (server.events[1], server.events[3]) == (numbers(2), numbers(1))
    assert worker.diary.count(("evict", 0)) == 1


def test_an_exception_in_an_events_place_ends_its_stream_alone() -> None:
    class Picky(Countdown):
        def event(self, slot: Hashable) -> Any:
            return ClientError("no two") if self.left[slot] == 2 else super().event(slot)

    server, _ = serve(Picky, json_tasks(3, 1))
    assert server.answers == {1: (400, b"bad request: no two"), 2: ENDED}
    assert (server.events[1], server.events[2]) == (data("3"), numbers(1))


@pytest.mark.parametrize(
    "event",
    [
        "\ud800",
        7,
        None,
        Event("x", id="\ud800"),
    ],
    ids=ascii,
)
def test_what_is_no_event_ends_its_stream_alone(event: Any) -> None:
    class Wrong(Countdown):
        def event(self, slot: Hashable) -> Any:
            return event if self.left[slot] == 2 else super().event(slot)

    server, _ = serve(Wrong, json_tasks(3, 1))
    assert server.answers[1][0] == 500
    assert server.answers[1][1].startswith(b"encoding error: ")
    assert server.answers[2] == ENDED


def failing_step(error: BaseException | Callable[[], None]) -> type[Countdown]:
    """Return a worker whose second step fails, and whose later ones do not."""

    class Failing(Countdown):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            if [entry[0] for entry in self.diary].count("step") == 1:
                self.diary.append(("step",))
                if isinstance(error, BaseException):
                    raise error
                error()
            return list(super().step())

    return Failing


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ClientError("no"), (400, b"bad request: no")),
        (KeyError("a secret"), INTERNAL),
        (MosecTimeoutError("gave up"), (408, b"mosec timeout error: gave up")),
    ],
    ids=repr,
)
def test_a_step_that_raises_ends_all_streams_and_those_that_come_after_are_served(
    error: BaseException, answer: tuple[int, bytes], logged: pytest.LogCaptureFixture
) -> None:
    server, _ = serve(failing_step(error), json_tasks(3, 4, 1), slots=2)
    assert server.answers == {1: answer, 2: answer, 3: ENDED}
    assert (server.events[1], server.events[2], server.events[3]) == (data("3"), data("4"), numbers(1))
    (record,) = logged.records
    assert told(record, "request_id", "stage", "worker") == ("r1 r2", "Made_1", 3)


def test_a_step_that_takes_too_long_ends_all_streams() -> None:
    server, _ = serve(failing_step(hang), json_tasks(3, 4, 1), slots=2, timeout=0.1)
    assert [server.answers[number][0] for number in (1, 2, 3)] == [LATE, LATE, 200]


def test_each_step_has_the_whole_time() -> None:
    class Slow(Countdown):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            hang(0.4)
            return list(super().step())

    server, _ = serve(Slow, json_tasks(4), timeout=1.0)
    assert server.answers == {1: ENDED}


@pytest.mark.parametrize("result", [None, 7, [7], [(0,)], [(0, "a", "b")], [([], "a")]], ids=repr)
def test_a_step_that_does_not_say_whose_its_events_are_ends_all_streams(result: Any) -> None:
    class Wrong(Countdown):
        def step(self) -> Any:
            return result

    server, _ = serve(Wrong, json_tasks(1, 1))
    assert server.answers == {1: INTERNAL, 2: INTERNAL}


def test_an_event_for_a_slot_that_nobody_has_is_dropped_and_logged(logged: pytest.LogCaptureFixture) -> None:
    class Generous(Countdown):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            yield 77, "for nobody"
            yield from super().step()

    server, _ = serve(Generous, json_tasks(1))
    assert server.events == {1: numbers(1)}
    assert {record.getMessage() for record in logged.records} == {
        "step gave an event for the slot 77, which nobody has"
    }


def test_an_event_after_the_end_of_its_stream_is_dropped_and_logged(logged: pytest.LogCaptureFixture) -> None:
    class Late(Countdown):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            for slot, event in super().step():
                yield slot, event
                if event is self.FINISHED:
                    yield slot, "late"

    server, _ = serve(Late, json_tasks(1))
    assert (server.events, server.answers) == ({1: numbers(1)}, {1: ENDED})
    assert [record.getMessage() for record in logged.records] == ["an event after the end of its stream was dropped"]


@pytest.mark.parametrize(
    "fault",
    [ValueError("stuck"), ServerError("stuck"), MosecTimeoutError("stuck")],
    ids=lambda error: type(error).__name__,
)
def test_an_eviction_that_fails_is_logged_and_costs_nobody_anything(
    fault: BaseException, logged: pytest.LogCaptureFixture
) -> None:
    class Sticky(Countdown):
        def evict(self, slot: Hashable) -> None:
            super().evict(slot)
            raise fault

    server, _ = serve(Sticky, json_tasks(1, 2))
    assert set(server.answers.values()) == {ENDED}
    assert [record.levelname for record in logged.records] == ["WARNING", "WARNING"]
    assert all(record.getMessage().startswith("evict failed: ") for record in logged.records)


# -- clients -----------------------------------------------------------------------------------------------------------


def test_a_request_whose_client_leaves_frees_its_slot_before_the_next_step() -> None:
    server = ServerEnd()

    class Endless(Countdown):
        def event(self, slot: Hashable) -> Any:
            if self.left[slot] == 8:
                server.cancel(1)
                until(lambda: server.port.poll() or server.port.cancelled)  # type: ignore[func-returns-value]
            return super().event(slot)

    _, worker = serve(Endless, json_tasks(9, 2), server=server)
    assert server.answers == {1: LEFT, 2: ENDED}
    assert server.events[2] == numbers(2)
    steps = [entry[1:] for entry in worker.diary if entry[0] == "step"]
    assert steps[:3] == [(0, 1), (0, 1), (1,)]


def test_a_request_whose_client_leaves_while_it_waits_is_not_admitted() -> None:
    with ServerEnd() as server:
        server.send(json_tasks(1, 1, 1))
        server.cancel(2)
        with runner_of(Countdown, server, max_batch_size=1) as runner:
            runner.serve()
            worker = runner._worker  # type: ignore[attr-defined]
    assert server.answers == {1: ENDED, 2: LEFT, 3: ENDED}
    assert [entry[0] for entry in worker.diary].count("admit") == 2
    assert server.progress.begun == 3


def test_a_client_that_does_not_read_loses_its_stream_and_the_others_go_on() -> None:
    class Long(Countdown):
        def event(self, slot: Hashable) -> Any:
            return "." * 40 if slot == 0 else super().event(slot)

    server = ServerEnd(buffer=60, reads=False)
    server.on_event = lambda number, payload: server.take(2, len(payload)) if number == 2 else None

    class Waiting(Long):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            events = list(super().step())
            # The second client reads what it gets.
            until(lambda: server.port.poll() or server.port.outstanding(2) < 30)  # type: ignore[func-returns-value]
            return events

    _, worker = serve(Waiting, json_tasks(9, 5), server=server)
    assert server.answers == {1: TOO_SLOW, 2: ENDED}
    assert (server.events[1], server.events[2]) == (data("." * 40) * 2, numbers(5))
    assert worker.diary.count(("evict", 0)) == 1


def test_two_events_of_one_step_go_out_in_order_as_long_as_there_is_room() -> None:
    class Twice(Countdown):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            for slot, event in super().step():
                yield slot, event
                if event is not self.FINISHED:
                    yield slot, f"{event} again"

    server, _ = serve(Twice, json_tasks(2, 1))
    assert server.events == {1: data("2", "2 again", "1", "1 again"), 2: data("1", "1 again")}


# -- its life ----------------------------------------------------------------------------------------------------------


def test_every_step_is_a_sign_of_life() -> None:
    beats: list[int] = []
    server = ServerEnd()

    class Noting(Countdown):
        def step(self) -> Iterable[tuple[Hashable, Any]]:
            beats.append(server.begun().beats)
            return list(super().step())

    serve(Noting, json_tasks(5), server=server)
    assert beats == sorted(set(beats))
    assert len(beats) == 6


def test_answered_tasks_are_told_to_the_worker_with_their_payloads_however_they_ended() -> None:
    told_of: list[bytes] = []

    class Told(Countdown):
        def admit(self, item: int) -> Hashable:
            if item == 7:
                raise ClientError("not seven")
            return super().admit(item)

        def _answered(self, payloads: Sequence[bytes]) -> None:
            told_of.extend(payloads)

    with ServerEnd() as server:
        server.send(tasks(b"1", b"{", b"7", b"2", b"9"))
        server.cancel(5)
        with runner_of(Told, server, max_batch_size=4) as runner:
            runner.serve()
    assert sorted(told_of) == [b"1", b"2", b"7", b"9", b"{"]


def test_at_the_end_of_the_stream_the_slots_are_freed_and_the_worker_is_closed() -> None:
    notes: list[Any] = []
    server = ServerEnd()

    class Endless(Countdown):
        def event(self, slot: Hashable) -> Any:
            server.end()
            return "again"

        def step(self) -> Iterator[tuple[Hashable, Any]]:
            for slot in self.left:
                yield slot, self.event(slot)

        def evict(self, slot: Hashable) -> None:
            super().evict(slot)
            notes.append(slot)

        def close(self) -> None:
            notes.append("closed")

    serve(Endless, json_tasks(1, 1), server=server, answers=False)
    assert notes == [0, 1, "closed"]
    assert server.answers == {}


def test_an_idle_worker_waits_for_its_next_request() -> None:
    def on_answer(number: int) -> None:
        if number == 1:
            time.sleep(0.1)
            server.send(json_tasks(2, first=2))

    server = ServerEnd(on_answer=on_answer)
    _, worker = serve(Countdown, json_tasks(1), server=server)
    assert (server.events[1], server.events[2]) == (numbers(1), numbers(2))
    assert [entry[0] for entry in worker.diary].count("step") == 2 + 3


def test_a_rehearsal_is_one_request_that_nobody_hears_of(logged: pytest.LogCaptureFixture) -> None:
    with ServerEnd() as server, runner_of(Countdown, server, max_batch_size=4) as runner:
        runner.rehearse(3)
        worker = runner._worker  # type: ignore[attr-defined]
        assert worker.left == {}
        assert [entry[0] for entry in worker.diary] == ["admit", "step", "step", "step", "step", "evict"]
    assert server.frames == []
    assert not logged.records
