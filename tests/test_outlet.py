from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from common import told
from fake_port import ENDED, INTERNAL, TOO_SLOW, ServerEnd, data, json_tasks, spec_of, until, worker_of

from mosec_asgi.errors import ClientError, WrongShape
from mosec_asgi.inside.codec import LEFT, Codec
from mosec_asgi.inside.loading import load
from mosec_asgi.inside.outlet import Outlet
from mosec_asgi.streaming import FINISHED, Event, SSEWorker


class Bench:
    """An outlet with the streams of tasks 1 to 4 open, and the server's end that hears them."""

    def __init__(self, server: ServerEnd, mime_type: str = "text/event-stream") -> None:
        worker = worker_of(lambda data: data, SSEWorker, resp_mime_type=mime_type)
        spec = spec_of(worker, stream_buffer=server.buffer)
        made = load(spec)
        self.server = server
        self.port = server.port
        self.outlet = Outlet(made, spec, Codec(made, spec), server.port)
        server.send(json_tasks(1, 2, 3, 4))
        assert self.port.wait_for_tasks()
        for task_id in range(1, 5):
            self.outlet.open(task_id, f"r{task_id}")

    def put(self, *events: tuple[int, Any]) -> None:
        """Put events into streams, and send them."""
        for task_id, event in events:
            self.outlet.put(task_id, event)
        self.outlet.flush()

    def said(self) -> None:
        """Wait until the server has heard all that was sent."""
        self.outlet.open(5, "r5")
        self.server._flows[5] = self.server._flows[4]
        self.outlet.end(5, ENDED)
        until(lambda: 5 in self.server.answers)
        del self.server.answers[5]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ServerEnd() as server:
        yield Bench(server)


@pytest.fixture
def small() -> Iterator[Bench]:
    """Streams that 20 bytes fill, to clients that do not read."""
    with ServerEnd(buffer=20, reads=False) as server:
        yield Bench(server)


# -- events ------------------------------------------------------------------------------------------------------------


def test_events_that_are_put_in_together_go_out_as_one_frame(bench: Bench) -> None:
    bench.put((1, "a"), (3, "b"), (2, Event("c", id="7")))
    bench.said()
    assert [bench.server.texts(number) for number in (1, 2, 3)] == ["data: a\n\n", "data: c\nid: 7\n\n", "data: b\n\n"]
    assert len(bench.server.frames) == 2


def test_several_events_of_one_stream_keep_their_order(bench: Bench) -> None:
    bench.put((1, "a"), (2, "x"), (1, "b"), (1, "c"))
    bench.said()
    assert bench.server.events[1] == data("a", "b", "c")
    assert bench.server.events[2] == data("x")


def test_nothing_goes_out_before_it_is_flushed(bench: Bench) -> None:
    bench.outlet.put(1, "a")
    bench.said()
    # What ends a stream flushes, too.
    assert bench.server.events[1] == data("a")
    bench.outlet.flush()
    bench.said()
    assert bench.server.events[1] == data("a")


def test_a_raw_stream_is_its_bytes_and_an_empty_piece_is_none() -> None:
    with ServerEnd() as server:
        bench = Bench(server, "audio/wav")
        bench.put((1, b"RIFF"), (2, b""), (1, ""), (1, "é"))
        bench.said()
        assert server.events == {1: [b"RIFF", "é".encode()], 2: [], 3: [], 4: []}
        # It counts as begun all the same.
        assert bench.outlet.has_begun([2])


def test_a_stream_has_begun_with_its_first_event(bench: Bench) -> None:
    assert not bench.outlet.has_begun([1, 2])
    bench.put((1, "a"))
    assert bench.outlet.has_begun([1])
    assert bench.outlet.has_begun([2, 1])
    assert not bench.outlet.has_begun([2, 3])
    assert not bench.outlet.has_begun([])


@pytest.mark.parametrize("event", ["\ud800", b"\xff", None, 7, {"a": 1}], ids=repr)
def test_what_is_no_event_ends_its_stream_alone(bench: Bench, event: Any) -> None:
    bench.put((1, "a"), (1, event), (2, "b"))
    bench.said()
    assert bench.server.events[1] == data("a")
    assert bench.server.events[2] == data("b")
    ((task_id, (code, text)),) = bench.server.answers.items()
    assert (task_id, code) == (1, 500)
    assert text.startswith(b"encoding error: ")
    assert not bench.outlet.is_open(1)


# -- what a generator yields -------------------------------------------------------------------------------------------


def test_without_batching_whatever_is_yielded_is_an_event(bench: Bench) -> None:
    bench.outlet.put_yielded("a", [1], batched=False)
    bench.outlet.put_yielded(Event("b"), [1], batched=False)
    bench.said()
    assert bench.server.events[1] == data("a", "b")


def test_with_batching_an_event_says_whose_it_is_by_its_place_in_the_batch(bench: Bench) -> None:
    bench.outlet.put_yielded((1, "a"), [4, 2], batched=True)
    bench.outlet.put_yielded((0, "b"), [4, 2], batched=True)
    bench.said()
    assert (bench.server.events[2], bench.server.events[4]) == (data("a"), data("b"))


def test_with_batching_a_list_has_an_event_or_none_for_each_item(bench: Bench) -> None:
    bench.outlet.put_yielded(["a", None, "c"], [3, 2, 1], batched=True)
    bench.outlet.put_yielded([None, None, None], [3, 2, 1], batched=True)
    bench.said()
    assert (bench.server.events[3], bench.server.events[2], bench.server.events[1]) == (data("a"), [], data("c"))


@pytest.mark.parametrize("event", [[], ["a"], ["a", "b", "c"]], ids=len)
def test_a_list_of_the_wrong_length_names_both_lengths(bench: Bench, event: list[str]) -> None:
    with pytest.raises(WrongShape, match=f"a list of {len(event)} events for 2 items"):
        bench.outlet.put_yielded(event, [1, 2], batched=True)


@pytest.mark.parametrize("event", ["a", ("a", 0), (0, "a", 1), (0.0, "a"), {0: "a"}, None, FINISHED], ids=repr)
def test_what_does_not_say_whose_it_is_is_told_by_its_type(bench: Bench, event: Any) -> None:
    with pytest.raises(WrongShape, match=rf"yields \(index, event\) or a list .* not {type(event).__name__}"):
        bench.outlet.put_yielded(event, [1, 2], batched=True)


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_an_event_for_an_item_that_does_not_exist_is_dropped_and_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture, index: int
) -> None:
    bench.outlet.put_at(index, "a", [1, 2])
    bench.said()
    assert all(not events for events in bench.server.events.values())
    (record,) = caplog.records
    assert record.getMessage() == f"an event for item {index} of a batch of 2 was dropped"
    assert (record.levelname, *told(record, "stage", "worker")) == ("ERROR", "Made_1", 3)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_finished_stream_has_ended_well_after_its_events(bench: Bench) -> None:
    bench.put((1, "a"), (1, FINISHED))
    bench.said()
    assert bench.server.events[1] == data("a")
    assert bench.server.answers == {1: ENDED}
    assert [bench.outlet.is_open(number) for number in (1, 2)] == [False, True]


def test_an_exception_in_an_events_place_ends_its_stream_with_that_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put((1, "a"), (1, ClientError("too long")), (2, KeyError("a secret")), (3, "c"))
    bench.said()
    assert bench.server.answers == {1: (400, b"bad request: too long"), 2: INTERNAL}
    assert [bench.server.events[number] for number in (1, 2, 3)] == [data("a"), [], data("c")]
    assert [told(record, "request_id") for record in caplog.records if record.levelno >= 30] == [("r2",)]


def test_a_fault_of_several_streams_ends_those_that_are_open_and_is_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put((2, FINISHED))
    bench.outlet.fail([1, 2, 3], KeyError("a secret"))
    bench.outlet.fail([1, 2, 3], KeyError("another"))
    bench.said()
    assert bench.server.answers == {2: ENDED, 1: INTERNAL, 3: INTERNAL}
    (record,) = caplog.records
    assert told(record, "request_id") == ("r1 r3",)


def test_an_event_after_the_end_is_dropped_and_logged_until_its_call_is_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put((1, FINISHED), (1, "late"), (1, FINISHED))
    assert [record.getMessage() for record in caplog.records] == [
        "an event after the end of its stream was dropped"
    ] * 2
    bench.said()
    assert (bench.server.answers, bench.server.events[1]) == ({1: ENDED}, [])


def test_an_event_of_a_stream_that_was_ended_for_the_worker_goes_nowhere(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """By its client's leaving, or by an error: the worker cannot know."""
    bench.outlet.end(1, LEFT)
    bench.put((1, "late"), (77, "nobody's"))
    bench.said()
    assert bench.server.events[1] == []
    assert not caplog.records


def test_the_time_of_a_stream_is_that_from_its_opening(bench: Bench) -> None:
    bench.put((1, FINISHED))
    bench.said()
    assert bench.server.results[0].seconds > 0


# -- clients -----------------------------------------------------------------------------------------------------------


def test_streams_whose_clients_have_left_are_dropped(bench: Bench) -> None:
    assert bench.outlet.drop_left([1, 2, 3]) == []
    bench.server.cancel(1, 3, 4)
    until(lambda: bench.port.poll() or bench.port.cancelled)  # type: ignore[func-returns-value]
    assert bench.outlet.drop_left([1, 2, 3]) == [1, 3]
    assert bench.outlet.drop_left([1, 2, 3]) == []
    bench.said()
    assert bench.server.answers == {1: LEFT, 3: LEFT}
    assert [bench.outlet.is_open(number) for number in (1, 2, 3, 4)] == [False, True, False, True]


def test_a_stream_has_room_until_its_buffer_is_full_and_again_once_its_client_has_read(small: Bench) -> None:
    assert small.outlet.has_room(1)
    small.put((1, "a" * 10))
    assert small.outlet.has_room(1)
    # The event that fills it goes out whole.
    small.put((1, "b" * 30))
    assert not small.outlet.has_room(1)
    assert small.outlet.has_room(2)
    until(lambda: len(small.server.events[1]) == 2)
    small.server.take_all(1)
    until(lambda: small.port.poll() or small.outlet.has_room(1))  # type: ignore[func-returns-value]


def test_an_event_that_finds_no_room_ends_its_stream_and_no_other(small: Bench) -> None:
    small.put((1, "a" * 30), (2, "x"))
    small.put((1, "b"), (2, "y"))
    small.said()
    assert small.server.events[1] == data("a" * 30)
    assert small.server.events[2] == data("x", "y")
    assert small.server.answers == {1: TOO_SLOW}


def test_two_events_of_one_step_have_the_room_of_one_after_the_other(small: Bench) -> None:
    small.put((1, "a" * 30), (1, "b"))
    small.said()
    assert small.server.events[1] == data("a" * 30)
    assert small.server.answers == {1: TOO_SLOW}


# -- threads -----------------------------------------------------------------------------------------------------------


def test_events_of_several_threads_are_all_sent_and_each_whole(bench: Bench) -> None:
    def push(task_id: int) -> None:
        for number in range(200):
            bench.put((task_id, f"{number}"))

    threads = [threading.Thread(target=push, args=(task_id,)) for task_id in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.said()
    for task_id in (1, 2, 3):
        assert bench.server.events[task_id] == data(*map(str, range(200)))


@pytest.mark.parametrize("repeat", range(5))
def test_a_stream_that_several_threads_end_at_once_has_one_end(bench: Bench, repeat: int) -> None:
    barrier = threading.Barrier(4)
    faults: list[BaseException] = []

    def end(how: int) -> None:
        try:
            barrier.wait()
            if how == 0:
                bench.outlet.fail([1, 2, 3, 4], ClientError("no"))
            elif how == 1:
                bench.put(*((task_id, FINISHED) for task_id in (1, 2, 3, 4)))
            elif how == 2:
                bench.outlet.drop_left([1, 2, 3, 4])
            else:
                for task_id in (1, 2, 3, 4):
                    if bench.outlet.is_open(task_id):
                        bench.outlet.end(task_id, ENDED)
        except BaseException as error:
            faults.append(error)

    bench.server.cancel(1, 2, 3, 4)
    until(lambda: bench.port.poll() or bench.port.cancelled)  # type: ignore[func-returns-value]
    threads = [threading.Thread(target=end, args=(how,)) for how in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    until(lambda: len(bench.server.answers) == 4)
