from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from common import told
from fake_port import (
    ENDED,
    INTERNAL,
    LEFT,
    PATIENCE,
    TOO_SLOW,
    UNUSUAL,
    Recorder,
    ServerEnd,
    data,
    hang,
    json_tasks,
    runner_of,
    served,
    tasks,
    until,
    worker_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import ClientError, MosecTimeoutError, ValidationError
from mosec_asgi.messages import INGRESS, Tasks
from mosec_asgi.mixin import MsgpackMixin
from mosec_asgi.streaming import FINISHED, Event, SSEWorker
from mosec_asgi.worker import Worker

LATE = 408


pytestmark = pytest.mark.usefixtures("logged")


def yielding(forward: Callable[[Any], Iterator[Any]], **members: Any) -> type[Worker]:
    """Return a worker whose `forward` is a generator."""
    return worker_of(forward, SSEWorker, **members)


def pushing(forward: Callable[[SSEWorker, Any], Any], **members: Any) -> type[Worker]:
    """Return a worker whose `forward` gets itself, and sends events."""
    return type("Made", (SSEWorker,), {"forward": forward, **members})


def count(item: int) -> Iterator[str]:
    """Yield the numbers below `item`."""
    yield from map(str, range(item))


# -- one stream --------------------------------------------------------------------------------------------------------


def test_each_yield_of_a_generator_is_an_event() -> None:
    server = served(yielding(count), json_tasks(3, 0, 1))
    assert server.events == {1: data("0", "1", "2"), 2: [], 3: data("0")}
    assert server.answers == {1: ENDED, 2: ENDED, 3: ENDED}


def test_events_are_sent_as_they_are_made() -> None:
    server = ServerEnd()

    def forward(item: Any) -> Iterator[str]:
        yield "a"
        until(lambda: server.events[1] == data("a"))
        yield "b"
        until(lambda: server.events[1] == data("a", "b"))

    served(yielding(forward), json_tasks(1), server=server)


def test_events_that_are_pushed_are_sent_as_they_are_made_and_what_forward_returns_is_ignored() -> None:
    server = ServerEnd()

    def forward(self: SSEWorker, item: Any) -> Any:
        self.send_stream_event("a")
        until(lambda: server.events[1] == data("a"))
        self.send_stream_event("b")
        return ["ignored", object()]

    served(pushing(forward), json_tasks(1), server=server)
    assert server.events[1] == data("a", "b")
    assert server.answers == {1: ENDED}


def test_an_event_may_be_text_bytes_or_have_fields_of_its_own() -> None:
    events = ["text\nof two lines", b"bytes", Event("x", event="token", id="7", retry=100)]
    expected = "data: text\ndata: of two lines\n\ndata: bytes\n\nevent: token\ndata: x\nid: 7\nretry: 100\n\n"
    assert served(yielding(lambda item: iter(events)), json_tasks(1)).texts(1) == expected

    def forward(self: SSEWorker, item: Any) -> None:
        for event in events:
            self.send_stream_event(event)  # type: ignore[arg-type]

    assert served(pushing(forward), json_tasks(1)).texts(1) == expected


def test_a_stream_of_another_mime_type_is_its_bare_bytes() -> None:
    worker = yielding(lambda item: iter([b"RIFF", "é", bytearray(b"\0")]), resp_mime_type="audio/wav")
    assert served(worker, json_tasks(1)).events[1] == [b"RIFF", "é".encode(), b"\0"]


def test_a_mixin_for_the_input_does_not_take_the_form_of_the_events_away() -> None:
    class Chat(MsgpackMixin, SSEWorker):
        def forward(self, item: Any) -> Iterator[Any]:
            yield from item

    assert served(Chat, tasks(b"\x92\xa1a\xa1b")).events[1] == data("a", "b")


def test_any_iterator_will_do() -> None:
    server = served(worker_of(lambda item: map(str, range(item)), SSEWorker), json_tasks(2))
    assert server.events[1] == data("0", "1")


def test_a_stream_can_be_finished_before_its_generator_which_is_closed() -> None:
    closed: list[bool] = []

    def forward(item: Any) -> Iterator[Any]:
        try:
            yield "a"
            yield FINISHED
            yield "b"
        finally:
            closed.append(True)

    server = served(yielding(forward), json_tasks(1))
    assert (server.events[1], server.answers, closed) == (data("a"), {1: ENDED}, [True])


def test_a_pushed_stream_can_be_finished_before_forward_is_over(logged: pytest.LogCaptureFixture) -> None:
    def forward(self: SSEWorker, item: Any) -> None:
        self.send_stream_event("a")
        self.send_stream_event(FINISHED)  # type: ignore[arg-type]
        until(lambda: server.answers == {1: ENDED})
        self.send_stream_event("b")

    server = ServerEnd()
    served(pushing(forward), json_tasks(1), server=server)
    assert server.events[1] == data("a")
    assert [record.getMessage() for record in logged.records] == ["an event after the end of its stream was dropped"]


def test_an_exception_in_an_events_place_is_the_end_of_its_stream() -> None:
    server = served(yielding(lambda item: iter(["a", ValidationError("no more"), "b"])), json_tasks(1))
    assert server.events[1] == data("a")
    assert server.answers == {1: (422, b"request validation error: no more")}


@pytest.mark.parametrize("event", ["\ud800", b"\xff", 7, Event(b"\xff")], ids=ascii)
def test_what_is_no_event_ends_the_stream_with_an_error(event: Any) -> None:
    server = served(yielding(lambda item: iter(["a", event, "b"])), json_tasks(1))
    assert server.events[1] == data("a")
    code, text = server.answers[1]
    assert code == 500
    assert text.startswith(b"encoding error: ")


def test_an_error_before_the_first_event_is_the_answer() -> None:
    def forward(item: int) -> Iterator[str]:
        if item == 2:
            raise ClientError("two")
        if item == 3:
            raise KeyError("a secret")
        yield "a"

    server = served(yielding(forward), json_tasks(1, 2, 3, 4))
    assert server.answers == {1: ENDED, 2: (400, b"bad request: two"), 3: INTERNAL, 4: ENDED}


def test_an_error_after_an_event_is_the_end_of_the_stream(logged: pytest.LogCaptureFixture) -> None:
    calls = Recorder()

    def forward(item: int) -> Iterator[str]:
        calls(item)
        yield "a"
        raise KeyError("a secret")

    server = served(yielding(forward), json_tasks(1))
    assert (server.events[1], server.answers, calls.calls) == (data("a"), {1: INTERNAL}, [1])
    (record,) = logged.records
    assert told(record, "request_id", "stage", "worker") == ("r1", "Made_1", 3)


def test_a_request_that_cannot_be_decoded_is_answered_and_the_next_one_streams() -> None:
    server = served(yielding(count), tasks(b"{", b"1"))
    assert [code for code, _ in server.answers.values()] == [400, 200]
    assert server.events == {1: [], 2: data("0")}


# -- batches -----------------------------------------------------------------------------------------------------------


def test_in_a_batch_events_are_sent_by_place_or_as_a_list() -> None:
    def forward(batch: list[int]) -> Iterator[Any]:
        yield 1, "x"
        yield ["a", None, "c"]
        yield 0, b"b"
        yield [None, None, None]

    server = served(yielding(forward), json_tasks(1, 2, 3), max_batch_size=4)
    assert server.events == {1: data("a", "b"), 2: data("x"), 3: data("c")}
    assert server.answers == {1: ENDED, 2: ENDED, 3: ENDED}
    # The events of one list are one frame.
    assert len(server.frames) == 3 + 3


def test_in_a_batch_events_are_pushed_by_place() -> None:
    def forward(self: SSEWorker, batch: list[int]) -> None:
        for index, item in enumerate(batch):
            self.send_stream_event(f"{item}", index)
            self.send_stream_event(f"{item}", index=index)

    server = served(pushing(forward), json_tasks(7, 8), max_batch_size=4)
    assert server.events == {1: data("7", "7"), 2: data("8", "8")}


def test_a_stream_of_a_batch_ends_as_soon_as_it_is_finished_or_failed() -> None:
    def forward(batch: list[int]) -> Iterator[Any]:
        yield ["a", "b", "c"]
        yield [FINISHED, ClientError("no"), "d"]
        until(lambda: server.answers == {1: ENDED, 2: (400, b"bad request: no")})
        yield 2, "e"

    server = ServerEnd()
    served(yielding(forward), json_tasks(1, 2, 3), server=server, max_batch_size=4)
    assert server.events == {1: data("a"), 2: data("b"), 3: data("c", "d", "e")}
    assert server.answers[3] == ENDED


def test_a_generator_is_closed_when_all_streams_of_its_batch_have_ended() -> None:
    closed: list[bool] = []

    def forward(batch: list[int]) -> Iterator[Any]:
        try:
            yield 0, FINISHED
            yield 1, FINISHED
            raise AssertionError("nobody is left")
        finally:
            closed.append(True)

    server = served(yielding(forward), json_tasks(1, 2), max_batch_size=4)
    assert (closed, server.answers) == ([True], {1: ENDED, 2: ENDED})


def test_an_item_that_cannot_be_decoded_is_answered_before_the_streams_of_the_others_end() -> None:
    seen = Recorder()

    def forward(batch: list[int]) -> Iterator[Any]:
        until(lambda: [code for code, _ in server.answers.values()] == [400])
        seen(batch)
        yield 1, "x"

    server = ServerEnd()
    served(yielding(forward), tasks(b"1", b"{", b"3"), server=server, max_batch_size=4)
    assert seen.calls == [[1, 3]]
    assert server.events == {1: [], 2: [], 3: data("x")}
    assert [server.answers[number][0] for number in (1, 2, 3)] == [200, 400, 200]


@pytest.mark.parametrize("event", ["a", ["a"], (0, "a", 1), None], ids=repr)
def test_what_does_not_say_whose_it_is_is_a_fault_of_the_worker_that_is_not_tried_again(event: Any) -> None:
    calls = Recorder()

    def forward(batch: list[int]) -> Iterator[Any]:
        calls(batch)
        yield event

    server = served(yielding(forward), json_tasks(1, 2), max_batch_size=4)
    assert {code for code, _ in server.answers.values()} == {500}
    assert all(text.startswith(b"internal error: ") for _, text in server.answers.values())
    assert len(calls.calls) == 1


@pytest.mark.parametrize("error", UNUSUAL)
def test_of_a_batch_of_generators_one_that_raises_ends_alone(error: type[BaseException]) -> None:
    def events(item: str) -> Iterator[str]:
        yield "a"
        if item == "raises":
            raise error
        yield "b"

    worker = worker_of(lambda batch: list(map(events, batch)), SSEWorker)
    server = served(worker, json_tasks("fine", "raises", "fine"), max_batch_size=3)
    assert server.events == {1: data("a", "b"), 2: data("a"), 3: data("a", "b")}
    assert server.answers == {1: ENDED, 2: INTERNAL, 3: ENDED}


def test_an_event_for_an_item_that_does_not_exist_is_dropped(logged: pytest.LogCaptureFixture) -> None:
    def forward(batch: list[int]) -> Iterator[Any]:
        yield -1, "a"
        yield 2, "b"
        yield 1, "c"

    server = served(yielding(forward), json_tasks(1, 2), max_batch_size=4)
    assert server.events == {1: [], 2: data("c")}
    assert [record.levelname for record in logged.records] == ["ERROR", "ERROR"]


def test_an_event_after_the_end_of_its_stream_is_dropped(logged: pytest.LogCaptureFixture) -> None:
    def forward(batch: list[int]) -> Iterator[Any]:
        yield 0, FINISHED
        yield 0, "late"
        yield 1, "a"

    server = served(yielding(forward), json_tasks(1, 2), max_batch_size=4)
    assert server.events == {1: [], 2: data("a")}
    assert [record.getMessage() for record in logged.records] == ["an event after the end of its stream was dropped"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.lists(
                st.one_of(
                    st.tuples(st.integers(0, size - 1), st.sampled_from(["a", "b", "end", "fail"])),
                    st.lists(st.sampled_from([None, "a", "b", "end", "fail"]), min_size=size, max_size=size),
                ),
                max_size=8,
            ),
        )
    )
)
def test_each_stream_gets_its_own_events_up_to_its_own_end(script: tuple[int, list[Any]]) -> None:
    size, steps = script
    made = {"end": FINISHED, "fail": ClientError("no"), None: None}
    expected: dict[int, list[bytes]] = {number: [] for number in range(1, size + 1)}
    ends: dict[int, Any] = {}
    for step in steps:
        for index, what in [step] if isinstance(step, tuple) else enumerate(step):
            if what in made and what is not None:
                ends.setdefault(index + 1, ENDED if what == "end" else (400, b"bad request: no"))
            elif what is not None and index + 1 not in ends:
                expected[index + 1] += data(what)

    def event(what: Any) -> Any:
        return made.get(what, what)

    def forward(batch: list[int]) -> Iterator[Any]:
        for step in steps:
            yield (step[0], event(step[1])) if isinstance(step, tuple) else [event(what) for what in step]

    server = served(yielding(forward), json_tasks(*range(size)), max_batch_size=4)
    assert server.events == expected
    assert server.answers == {number: ends.get(number, ENDED) for number in range(1, size + 1)}


# -- culprits ----------------------------------------------------------------------------------------------------------


def test_a_batch_that_fails_before_its_first_event_costs_only_its_culprits() -> None:
    calls = Recorder()

    def forward(batch: list[int]) -> Iterator[Any]:
        calls(list(batch))
        for item in batch:
            if item < 0:
                raise ClientError(f"{item} is negative")
        for index, item in enumerate(batch):
            yield index, f"{item}"

    server = served(yielding(forward), json_tasks(1, -2, 3, 4), max_batch_size=4)
    assert server.answers == {1: ENDED, 2: (400, b"bad request: -2 is negative"), 3: ENDED, 4: ENDED}
    assert server.events == {1: data("1"), 2: [], 3: data("3"), 4: data("4")}
    assert calls.calls == [[1, -2, 3, 4], [1, -2], [3, 4], [1], [-2]]


def test_the_parts_of_a_batch_push_by_their_own_places() -> None:
    def forward(self: SSEWorker, batch: list[int]) -> None:
        if -2 in batch:
            raise ClientError("no")
        for index, item in enumerate(batch):
            self.send_stream_event(f"{item}", index)

    server = served(pushing(forward), json_tasks(1, -2, 3, 4), max_batch_size=4)
    assert server.events == {1: data("1"), 2: [], 3: data("3"), 4: data("4")}


def test_a_batch_that_fails_after_an_event_is_not_run_again() -> None:
    calls = Recorder()

    def forward(batch: list[int]) -> Iterator[Any]:
        calls(list(batch))
        yield 1, "a"
        raise ClientError("no")

    server = served(yielding(forward), json_tasks(1, 2, 3), max_batch_size=4)
    assert server.answers == dict.fromkeys((1, 2, 3), (400, b"bad request: no"))
    assert server.events[2] == data("a")
    assert len(calls.calls) == 1


def test_a_batch_that_fails_after_the_end_of_a_stream_that_had_events_is_not_run_again() -> None:
    calls = Recorder()

    def forward(batch: list[int]) -> Iterator[Any]:
        calls(list(batch))
        yield 0, "a"
        yield 0, FINISHED
        raise ClientError("no")

    server = served(yielding(forward), json_tasks(1, 2), max_batch_size=4)
    assert calls.calls == [[1, 2]]
    assert server.events == {1: data("a"), 2: []}
    assert server.answers == {1: ENDED, 2: (400, b"bad request: no")}


def test_a_stream_whose_client_has_left_is_not_run_again_for_the_culprits_of_its_batch() -> None:
    calls = Recorder()

    def forward(self: SSEWorker, batch: list[int]) -> None:
        calls(list(batch))
        if len(batch) == 4:
            server.cancel(1)
            until(lambda: self.is_cancelled(0))
            # An event for nobody, at which the stream is found to have no client.
            self.send_stream_event("x", 7)
        if 2 in batch:
            raise ClientError("two")

    server = ServerEnd()
    served(pushing(forward), json_tasks(1, 2, 3, 4), server=server, max_batch_size=4)
    assert calls.calls[0] == [1, 2, 3, 4]
    assert not [call for call in calls.calls[1:] if 1 in call]
    assert server.answers == {1: LEFT, 2: (400, b"bad request: two"), 3: ENDED, 4: ENDED}


def test_a_failed_batch_is_told_once_for_each_fault(logged: pytest.LogCaptureFixture) -> None:
    def forward(batch: list[int]) -> Iterator[Any]:
        for item in batch:
            if item < 0:
                raise ClientError(f"{item}")
        yield 0, "a"

    served(yielding(forward), json_tasks(-1, 2, -3), max_batch_size=4)
    assert [told(record, "request_id") for record in logged.records] == [("r1",), ("r3",)]


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_stream_may_take_longer_than_each_of_its_events() -> None:
    def forward(item: Any) -> Iterator[str]:
        for number in range(9):
            hang(0.25)
            yield f"{number}"

    def push(self: SSEWorker, item: Any) -> None:
        for number in range(9):
            hang(0.25)
            self.send_stream_event(f"{number}")

    for worker in (yielding(forward), pushing(push)):
        server = served(worker, json_tasks(1), timeout=2.0)
        assert (len(server.events[1]), server.answers) == (9, {1: ENDED})


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_an_event_that_takes_too_long_ends_the_streams(max_batch_size: int) -> None:
    cleaned: list[bool] = []

    def forward(item: Any) -> Iterator[Any]:
        try:
            yield "a" if max_batch_size == 1 else (0, "a")
            hang()
        finally:
            cleaned.append(True)

    server = served(yielding(forward), json_tasks(1), max_batch_size=max_batch_size, timeout=0.05)
    assert server.events[1] == data("a")
    assert server.answers[1][0] == LATE
    assert cleaned == [True]


def test_a_push_that_does_not_come_in_time_ends_the_stream() -> None:
    def forward(self: SSEWorker, item: Any) -> None:
        self.send_stream_event("a")
        hang()

    server = served(pushing(forward), json_tasks(1, 2), timeout=0.05)
    assert (server.events[1], server.answers[1][0], server.answers[2][0]) == (data("a"), LATE, LATE)


def test_a_batch_that_takes_too_long_before_its_first_event_fails_without_being_run_again() -> None:
    calls = Recorder()

    def forward(batch: list[int]) -> Iterator[Any]:
        calls(batch)
        hang()
        yield 0, "a"

    server = served(yielding(forward), json_tasks(1, 2), max_batch_size=4, timeout=0.05)
    assert [code for code, _ in server.answers.values()] == [LATE, LATE]
    assert len(calls.calls) == 1


def test_asking_for_clients_gives_a_stream_no_more_time() -> None:
    def forward(self: SSEWorker, item: Any) -> None:
        self.send_stream_event("a")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.is_cancelled()

    began = time.monotonic()
    assert served(pushing(forward), json_tasks(1), timeout=0.1).answers[1][0] == LATE
    assert time.monotonic() - began < PATIENCE / 2


def test_forward_may_raise_the_timeout_itself() -> None:
    def forward(item: Any) -> Iterator[Any]:
        yield "a"
        raise MosecTimeoutError("gave up")

    assert served(yielding(forward), json_tasks(1)).answers == {1: (408, b"mosec timeout error: gave up")}


# -- clients that read slowly ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["yields", "pushes"])
def test_an_only_stream_waits_for_its_client_without_spending_its_time(kind: str) -> None:
    made: list[int] = []

    def forward(item: Any) -> Iterator[str]:
        for number in range(4):
            made.append(number)
            yield "x" * 100

    def push(self: SSEWorker, item: Any) -> None:
        for number in range(4):
            made.append(number)
            self.send_stream_event("x" * 100)

    def read_late() -> None:
        until(lambda: server.events.get(1))
        time.sleep(0.4)
        ahead.append(len(made))
        server.take_all(1)

    ahead: list[int] = []
    server = ServerEnd(buffer=50, reads=False)
    client = threading.Thread(target=read_late)
    client.start()
    served(yielding(forward) if kind == "yields" else pushing(push), json_tasks(1), server=server, timeout=0.2)
    client.join()
    assert server.events[1] == data("x" * 100) * 4
    assert server.answers == {1: ENDED}
    # At most the one that waits was made ahead.
    assert ahead[0] <= 2


def test_a_worker_that_waits_for_a_client_gives_signs_of_life() -> None:
    def read_late() -> None:
        until(lambda: server.events.get(1))
        before = server.begun().beats
        until(lambda: server.begun().beats > before + 2, "it seems to be stuck")
        server.take_all(1)

    server = ServerEnd(buffer=50, reads=False)
    client = threading.Thread(target=read_late)
    client.start()
    served(yielding(lambda item: iter(["x" * 100] * 2)), json_tasks(1), server=server)
    client.join()
    assert server.answers == {1: ENDED}


def test_in_a_batch_a_client_that_does_not_read_loses_its_stream_and_the_others_go_on() -> None:
    def forward(batch: list[int]) -> Iterator[Any]:
        for number in range(6):
            yield [f"{number}" + "." * 30 if index == 0 else f"{number}" for index in range(len(batch))]
            if number:
                until(lambda number=number: len(server.events[2]) == number + 1)  # type: ignore[misc]

    server = ServerEnd(buffer=70, reads=False)
    # The second client reads.
    server.on_event = lambda number, payload: server.take(2, len(payload)) if number == 2 else None
    served(yielding(forward), json_tasks(1, 2), server=server, max_batch_size=4)
    assert server.events[1] == data("0" + "." * 30, "1" + "." * 30)
    assert server.events[2] == data(*map(str, range(6)))
    assert server.answers == {1: TOO_SLOW, 2: ENDED}


def test_a_client_that_leaves_while_its_stream_waits_for_it_ends_it() -> None:
    closed: list[bool] = []

    def forward(item: Any) -> Iterator[str]:
        try:
            while True:
                yield "x" * 100
        finally:
            closed.append(True)

    server = ServerEnd(buffer=50, reads=False, on_event=lambda number, payload: server.cancel(number))
    served(yielding(forward), json_tasks(1), server=server)
    assert (len(server.events[1]), server.answers, closed) == (1, {1: LEFT}, [True])


@pytest.mark.parametrize("kind", ["yields", "pushes"])
def test_the_end_of_the_server_ends_the_waiting_for_a_client(kind: str) -> None:
    def forward(self: SSEWorker, item: Any) -> None:
        while not self.is_cancelled():
            self.send_stream_event("x" * 100)

    server = ServerEnd(buffer=50, reads=False, on_event=lambda number, payload: server.end())
    worker = yielding(lambda item: iter(["x" * 100] * 3)) if kind == "yields" else pushing(forward)
    with server, runner_of(worker, server) as runner:
        server.send(json_tasks(1))
        runner.serve()


def test_several_threads_that_push_into_one_stream_all_wait_for_its_client() -> None:
    def forward(self: SSEWorker, item: Any) -> None:
        faults: list[BaseException] = []

        def push(name: str) -> None:
            try:
                for number in range(5):
                    self.send_stream_event(f"{name}{number}" + "." * 100)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=push, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]

    def take(number: int, payload: bytes) -> None:
        time.sleep(0.005)
        server.take(number, len(payload))

    server = ServerEnd(buffer=50, reads=False, on_event=take)
    served(pushing(forward), json_tasks(1), server=server)
    assert server.answers == {1: ENDED}
    assert sorted(server.events[1]) == sorted(data(*(f"{name}{n}" + "." * 100 for name in "abc" for n in range(5))))


# -- clients that leave ------------------------------------------------------------------------------------------------


def test_a_generator_whose_client_leaves_is_closed_and_cleans_up() -> None:
    closed: list[str] = []

    def forward(item: Any) -> Iterator[str]:
        try:
            while True:
                yield "a"
                until(lambda: server.port.poll() or server.port.cancelled)  # type: ignore[func-returns-value]
        finally:
            closed.append("closed")

    server = ServerEnd(on_event=lambda number, payload: server.cancel(number))
    served(yielding(forward), json_tasks(1), server=server)
    assert closed == ["closed"]
    assert server.answers == {1: LEFT}
    assert len(server.events[1]) <= 2


def test_a_generator_of_a_batch_is_closed_only_when_all_its_clients_have_left() -> None:
    closed: list[int] = []

    def forward(batch: list[int]) -> Iterator[Any]:
        try:
            for number in range(10_000):
                yield [f"{number}"] * 3
                time.sleep(0.001)
        finally:
            closed.append(number)

    def leave(task_id: int, payload: bytes) -> None:
        if payload == data(f"{5 * task_id}")[0]:
            server.cancel(task_id)

    server = ServerEnd(on_event=leave)
    served(yielding(forward), json_tasks(1, 2, 3), server=server, max_batch_size=4)
    assert server.answers == {1: LEFT, 2: LEFT, 3: LEFT}
    assert list(server.answers) == [1, 2, 3], "each as soon as its client had left"
    (last,) = closed
    assert 15 <= last < 9_999
    assert len(server.events[1]) < len(server.events[3])


def test_a_pushed_stream_can_ask_whether_its_client_has_left() -> None:
    def forward(self: SSEWorker, batch: list[int]) -> None:
        self.send_stream_event("a", 1)
        until(lambda: self.is_cancelled(1))
        assert not self.is_cancelled(0)
        self.send_stream_event("for nobody", 1)
        self.send_stream_event("b", 0)

    server = ServerEnd(on_event=lambda number, payload: server.cancel(2) if number == 2 else None)
    served(pushing(forward), json_tasks(1, 2), server=server, max_batch_size=4)
    assert server.answers == {1: ENDED, 2: LEFT}
    assert server.events[1] == data("b")


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_stream_whose_client_left_before_it_was_begun_is_not_run(max_batch_size: int) -> None:
    calls = Recorder()

    def forward(item: Any) -> Iterator[Any]:
        calls(item)
        return
        yield

    with ServerEnd() as server:
        server.send(json_tasks(1, 2, 3))
        server.cancel(2)
        with runner_of(yielding(forward), server, max_batch_size=max_batch_size) as runner:
            runner.serve()
    assert server.answers == {1: ENDED, 2: LEFT, 3: ENDED}
    assert calls.calls == ([1, 3] if max_batch_size == 1 else [[1, 3]])
    assert server.progress.begun == 3


# -- closing -----------------------------------------------------------------------------------------------------------


def closing(how: Callable[[], None]) -> type[Worker]:
    """Return a worker whose generator does something when it is closed."""

    def forward(item: Any) -> Iterator[Any]:
        try:
            yield FINISHED
        finally:
            how()

    return yielding(forward)


def test_an_error_of_the_cleaning_up_is_logged_and_costs_nobody_anything(logged: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("no cleaning up")

    assert served(closing(fail), json_tasks(1, 2)).answers == {1: ENDED, 2: ENDED}
    messages = [record.getMessage() for record in logged.records]
    assert messages == ["closing a stream of forward failed: ValueError('no cleaning up')"] * 2


def test_a_cleaning_up_that_takes_too_long_is_interrupted(logged: pytest.LogCaptureFixture) -> None:
    assert served(closing(hang), json_tasks(1, 2), timeout=0.05).answers == {1: ENDED, 2: ENDED}
    assert len(logged.records) == 2


def test_a_generator_that_will_not_be_closed_is_logged(logged: pytest.LogCaptureFixture) -> None:
    def forward(item: Any) -> Iterator[Any]:
        try:
            yield FINISHED
        except GeneratorExit:
            yield "I go on"

    assert served(yielding(forward), json_tasks(1)).answers == {1: ENDED}
    (record,) = logged.records
    assert "generator ignored GeneratorExit" in record.getMessage()


# -- warm-up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_the_events_of_a_rehearsal_go_nowhere(max_batch_size: int, logged: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []

    def push(self: SSEWorker, item: Any) -> None:
        self.send_stream_event("a")
        assert not self.is_cancelled()
        self.send_stream_event("b")
        ran.append("pushed")

    def forward(item: Any) -> Iterator[Any]:
        yield "a" if max_batch_size == 1 else (0, "a")
        yield FINISHED if max_batch_size == 1 else (0, FINISHED)
        ran.append("yielded")

    for worker in (pushing(push), yielding(forward)):
        with ServerEnd() as server, runner_of(worker, server, max_batch_size=max_batch_size) as runner:
            runner.rehearse([1] if max_batch_size > 1 else 1)
            server.send(json_tasks(2))
            runner.serve()
        assert len(server.events[1]) == (2 if worker is not None and ran[-1] == "pushed" else 1)
    assert ran[:2] == ["pushed", "pushed"]
    assert "yielded" in ran
    assert not logged.records


def test_a_rehearsal_raises_what_forward_raises() -> None:
    def forward(item: Any) -> Iterator[Any]:
        yield "a"
        raise ValueError("no such layer")

    with (
        ServerEnd() as server,
        runner_of(yielding(forward), server) as runner,
        pytest.raises(ValueError, match="no such layer"),
    ):
        runner.rehearse(1)


# -- before the last stage ---------------------------------------------------------------------------------------------

MIDDLE = {"next_stages": ("Last_2",)}


def passed(server: ServerEnd) -> dict[int, Any]:
    """Return what a worker before the last stage has passed on; the text where it has failed."""
    return {
        task: pickle.loads(payload) if code == 200 else (code, payload)
        for task, (code, payload) in server.answers.items()
    }


def middle_tasks(*values: Any) -> Tasks:
    made = json_tasks(*values)
    return made._replace(flags=[INGRESS] * len(values))


def test_before_the_last_stage_what_is_pushed_goes_out_at_once_and_what_is_returned_is_passed_on() -> None:
    server = ServerEnd()

    def forward(self: SSEWorker, item: int) -> int:
        self.send_stream_event("a")
        until(lambda: server.events[item] == data("a"))
        self.send_stream_event("b")
        assert item not in server.answers
        return item * 10

    served(pushing(forward), middle_tasks(1, 2), server=server, **MIDDLE)
    assert server.events == {1: data("a", "b"), 2: data("a", "b")}
    assert passed(server) == {1: 10, 2: 20}


def test_before_the_last_stage_events_have_the_form_of_the_stream_that_the_last_one_answers_with() -> None:
    def forward(self: SSEWorker, item: int) -> int:
        self.send_stream_event("a")
        return item

    server = served(pushing(forward), middle_tasks(1), event_type="text/plain", **MIDDLE)
    assert server.events == {1: [b"a"]}


def test_before_the_last_stage_a_batch_pushes_by_place() -> None:
    def forward(self: SSEWorker, batch: list[int]) -> list[int]:
        for index, item in enumerate(batch):
            self.send_stream_event(f"{item}", index)
        return [item * 10 for item in batch]

    server = served(pushing(forward), middle_tasks(7, 8), max_batch_size=4, **MIDDLE)
    assert server.events == {1: data("7"), 2: data("8")}
    assert passed(server) == {1: 70, 2: 80}


def test_before_the_last_stage_a_batch_that_has_sent_an_event_is_not_run_again() -> None:
    calls: list[list[int]] = []

    def forward(self: SSEWorker, batch: list[int]) -> list[int]:
        calls.append(batch)
        if 1 in batch:
            self.send_stream_event("begun", batch.index(1))
        raise ClientError("no")

    server = served(pushing(forward), middle_tasks(1, 2), max_batch_size=4, **MIDDLE)
    assert calls == [[1, 2]]
    assert passed(server) == dict.fromkeys((1, 2), (400, b"bad request: no"))
    calls.clear()
    served(pushing(forward), middle_tasks(3, 4), max_batch_size=4, **MIDDLE)
    assert len(calls) > 1, "where none has, its parts are"


def test_before_the_last_stage_a_client_that_does_not_read_fails_alone_in_a_batch_and_is_waited_for_else() -> None:
    def forward(self: SSEWorker, batch: Any) -> Any:
        for _ in range(3):
            self.send_stream_event("x" * 600)
        return batch

    server = ServerEnd(buffer=1024, reads=False)
    served(pushing(forward), middle_tasks(1, 2), server=server, max_batch_size=2, **MIDDLE)
    assert passed(server) == {1: TOO_SLOW, 2: 2}
    assert len(server.events[1]) == 2
    server = served(pushing(forward), middle_tasks(1, 2), server=ServerEnd(buffer=1024), **MIDDLE)
    assert passed(server) == {1: 1, 2: 2}
    assert [len(server.events[task]) for task in (1, 2)] == [3, 3]


@pytest.mark.parametrize(("event", "why"), [(3, "an event must be text"), (FINISHED, "cannot be ended before")])
def test_before_the_last_stage_an_event_that_is_none_fails_its_task_alone(event: Any, why: str) -> None:
    def forward(self: SSEWorker, batch: list[int]) -> list[int]:
        self.send_stream_event(event, 0)
        return batch

    server = served(pushing(forward), middle_tasks(1, 2), max_batch_size=4, **MIDDLE)
    failed, good = passed(server).values()
    assert (failed[0], good) == (500, 2)
    assert why in failed[1].decode()


def test_before_the_last_stage_an_example_sends_no_events() -> None:
    class Warm(SSEWorker):
        example = 1

        def forward(self, item: int) -> int:
            self.send_stream_event("warm")
            return item

    with ServerEnd() as server, runner_of(Warm, server, **MIDDLE) as runner:
        runner.rehearse(1)
        assert server.events == {}
