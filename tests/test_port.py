from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_port import chunks_of, tasks, until
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.inside.ending import Ending
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.arena import PAGE
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.reference import Span
from mosec_asgi.ipc.shm import SharedMemory
from mosec_asgi.messages import Cancels, Chunks, Credits, Results, Tasks
from mosec_asgi.pool.process.port import READ_SIZE, SocketPort


class Pipe:
    """A port, and the bare socket at the other end of its pipe."""

    def __init__(self) -> None:
        self.server, self.worker = socket.socketpair()
        self.page = ProgressPage()
        self.port = SocketPort(self.worker, self.page)
        self._decoder = frames.Decoder()

    def close(self) -> None:
        self.server.close()
        self.worker.close()
        self.page.close()

    def send(self, *sent: frames.Frame | bytes) -> None:
        self.server.sendall(b"".join(map(encoded, sent)))

    def end(self) -> None:
        self.server.shutdown(socket.SHUT_WR)

    def next_ids(self) -> list[int] | None:
        frame = self.port.next_tasks()
        return None if frame is None else list(frame.ids)

    def said(self) -> list[frames.Frame]:
        """Return what the worker has said by now."""
        self.server.setblocking(False)
        try:
            while data := self.server.recv(1 << 20):
                self._decoder.receive_data(data)
        except BlockingIOError:
            pass
        return list(iter(self._decoder.next_frame, None))


def encoded(frame: frames.Frame | bytes) -> bytes:
    if isinstance(frame, bytes):
        return frame
    if isinstance(frame, Tasks):
        return frames.encode_tasks(frame)
    if isinstance(frame, Cancels):
        return frames.encode_cancels(frame)
    if isinstance(frame, frames.Freed):
        return frames.encode_blocks(frame)
    assert isinstance(frame, Credits)
    return frames.encode_credits(frame)


def results(*ids: int) -> Results:
    return Results(ids, [200] * len(ids), [b"done"] * len(ids), 0.0)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_tasks_come_in_order_frame_by_frame(pipe: Pipe) -> None:
    pipe.send(tasks(b"a", b"b"), tasks(b"c", first=3))
    frame = pipe.port.next_tasks()
    assert frame is not None
    assert (list(frame.ids), frame.request_ids, frame.payloads) == ([1, 2], ["r1", "r2"], [b"a", b"b"])
    assert pipe.next_ids() == [3]


def test_the_next_tasks_are_waited_for(pipe: Pipe) -> None:
    def send_later() -> None:
        until(lambda: waiting.is_set())
        pipe.send(tasks(b"late"))

    waiting = threading.Event()
    sender = threading.Thread(target=send_later)
    sender.start()
    waiting.set()
    assert pipe.next_ids() == [1]
    sender.join()


def test_after_the_end_of_the_stream_there_are_no_more_tasks(pipe: Pipe) -> None:
    pipe.send(tasks(b"a"), tasks(b"b", first=2))
    pipe.end()
    assert [pipe.next_ids(), pipe.next_ids(), pipe.next_ids(), pipe.next_ids()] == [[1], [2], None, None]
    assert pipe.port.ended


def test_a_server_that_is_gone_is_the_end_of_the_stream(pipe: Pipe) -> None:
    pipe.port.ready()
    # What it has not read makes the socket tell of a reset.
    pipe.server.close()
    assert pipe.next_ids() is None
    assert pipe.port.ended


def test_polling_takes_in_what_is_there_and_waits_for_nothing(pipe: Pipe) -> None:
    pipe.port.poll()
    assert not pipe.port.tasks
    pipe.send(tasks(b"a"), tasks(b"b", first=2))
    pipe.port.poll()
    assert [list(frame.ids) for frame in pipe.port.tasks] == [[1], [2]]
    assert not pipe.port.ended
    pipe.end()
    pipe.port.poll()
    pipe.port.poll()
    assert pipe.port.ended


def test_waiting_ends_when_something_comes(pipe: Pipe) -> None:
    began = time.monotonic()
    sender = threading.Thread(target=pipe.send, args=(tasks(b"a"),))
    sender.start()
    pipe.port.wait(30.0)
    sender.join()
    assert pipe.port.tasks
    assert time.monotonic() - began < 20.0


def test_waiting_ends_after_its_time_and_does_not_begin_after_the_end(pipe: Pipe) -> None:
    pipe.port.wait(0.001)
    assert not pipe.port.tasks
    pipe.end()
    began = time.monotonic()
    pipe.port.wait(30.0)
    pipe.port.wait(30.0)
    assert pipe.port.ended
    assert time.monotonic() - began < 20.0


def test_a_pipe_with_a_high_number_is_waited_for_as_any_other(pipe: Pipe) -> None:
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1500:
        pytest.skip("this system allows no such number")
    # What a worker gets that is replaced while its server has a thousand connections.
    os.dup2(pipe.worker.fileno(), 1500)
    with socket.socket(fileno=1500) as sock:
        port = SocketPort(sock, pipe.page)
        pipe.send(tasks(b"a"))
        port.wait(30.0)
        assert port.tasks


@settings(max_examples=60, deadline=None)
@given(
    sent=st.lists(
        st.one_of(
            st.builds(lambda n, size: tasks(b"x" * size, first=n), st.integers(1, 9), st.integers(0, 99)),
            st.builds(Cancels, st.lists(st.integers(1, 9), max_size=3)),
            st.builds(lambda n: Credits([n], [n]), st.integers(1, 9)),
        ),
        max_size=6,
    ),
    data=st.data(),
)
def test_frames_cut_anywhere_are_taken_in_whole(sent: list[frames.Frame], data: st.DataObject) -> None:
    stream = b"".join(map(encoded, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pipe = Pipe()
    try:
        for chunk in chunks_of(stream, cuts):
            pipe.send(chunk)
            pipe.port.poll()
        expected = [frame for frame in sent if isinstance(frame, Tasks)]
        assert [list(frame.ids) for frame in pipe.port.tasks] == [list(frame.ids) for frame in expected]
        assert [frame.payloads for frame in pipe.port.tasks] == [list(frame.payloads) for frame in expected]
        held: set[int] = set()
        cancelled: set[int] = set()
        for frame in sent:
            if isinstance(frame, Tasks):
                held |= set(frame.ids)
            elif isinstance(frame, Cancels):
                cancelled |= held.intersection(frame.ids)
        assert pipe.port.cancelled == cancelled
    finally:
        pipe.close()


def test_a_frame_larger_than_a_read_is_taken_in_whole(pipe: Pipe) -> None:
    large = os.urandom(3 * READ_SIZE + 17)
    sender = threading.Thread(target=pipe.send, args=(tasks(large), Cancels([1])))
    sender.start()
    frame = pipe.port.next_tasks()
    sender.join()
    assert frame is not None
    assert frame.payloads == [large]


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage" * 10,
        frames.encode_ready(),
        frames.encode_failed("x"),
        frames.encode_results(results(1)),
        frames.encode_chunks(Chunks([1], [b"x"])),
    ],
    ids=["garbage", "ready", "failed", "results", "events"],
)
@pytest.mark.parametrize("method", ["next_tasks", "poll"])
def test_what_is_no_frame_for_a_worker_is_an_error(pipe: Pipe, garbage: bytes, method: str) -> None:
    pipe.send(garbage)
    with pytest.raises(frames.FrameError):
        getattr(pipe.port, method)()


# -- cancelled tasks ---------------------------------------------------------------------------------------------------


def test_a_task_whose_client_has_left_is_cancelled_until_it_is_answered(pipe: Pipe) -> None:
    pipe.send(tasks(b"a", b"b"), Cancels([2]))
    pipe.port.poll()
    assert pipe.port.cancelled == {2}
    assert [pipe.port.has_left(1), pipe.port.has_left(2)] == [False, True]
    pipe.port.answer(results(2))
    assert pipe.port.cancelled == set()


def test_a_cancel_that_comes_too_late_is_forgotten(pipe: Pipe) -> None:
    pipe.send(tasks(b"a"))
    pipe.port.poll()
    pipe.port.answer(results(1))
    pipe.send(Cancels([1, 77]))
    pipe.port.poll()
    assert pipe.port.cancelled == set()


def test_tasks_that_wait_are_handed_over_with_what_has_come_behind_them(pipe: Pipe) -> None:
    pipe.send(tasks(b"a"), tasks(b"b", first=2))
    assert pipe.next_ids() == [1]
    pipe.send(Cancels([2]))
    assert pipe.next_ids() == [2]
    assert pipe.port.cancelled == {2}


def test_nobody_waits_for_an_answered_task_nor_for_any_after_the_end(pipe: Pipe) -> None:
    pipe.send(tasks(b"a", b"b"))
    pipe.port.poll()
    pipe.port.answer(results(1))
    assert [pipe.port.has_left(1), pipe.port.has_left(2)] == [True, False]
    pipe.end()
    pipe.port.poll()
    assert pipe.port.has_left(2)


# -- sending -----------------------------------------------------------------------------------------------------------


def test_what_a_worker_says_is_frames(pipe: Pipe) -> None:
    pipe.send(tasks(b"a", b"b"))
    pipe.port.poll()
    pipe.port.ready()
    pipe.port.emit([1, 2, 1], [b"one", b"two", b"three"])
    pipe.port.answer(results(2, 1))
    ready, events, answered = pipe.said()
    assert ready == frames.Ready()
    assert isinstance(events, Chunks)
    assert (list(events.ids), events.payloads) == ([1, 2, 1], [b"one", b"two", b"three"])
    assert isinstance(answered, Results)
    assert list(answered.ids) == [2, 1]


def test_why_a_worker_could_not_start_is_said(pipe: Pipe) -> None:
    pipe.port.failed("Traceback: no weights")
    assert pipe.said() == [frames.Failed("Traceback: no weights")]


def test_bytes_of_a_stream_are_outstanding_until_the_client_has_taken_them(pipe: Pipe) -> None:
    pipe.send(tasks(b"a", b"b"))
    pipe.port.poll()
    pipe.port.emit([1, 2, 1], [b"four", b"x", b"seven.."])
    assert [pipe.port.outstanding(1), pipe.port.outstanding(2), pipe.port.outstanding(3)] == [11, 1, 0]
    pipe.send(Credits([1, 2], [5, 1]))
    pipe.port.poll()
    assert [pipe.port.outstanding(1), pipe.port.outstanding(2)] == [6, 0]
    pipe.port.answer(results(1))
    # Credit that comes after the end is nobody's.
    pipe.send(Credits([1, 9], [6, 1]))
    pipe.port.poll()
    assert [pipe.port.outstanding(1), pipe.port.outstanding(9)] == [0, 0]


def test_nothing_is_kept_for_tasks_that_are_answered(pipe: Pipe) -> None:
    for number in range(1, 50):
        pipe.send(tasks(b"a", first=number), Cancels([number]))
        pipe.port.poll()
        pipe.port.tasks.clear()
        pipe.port.emit([number], [b"event"])
        pipe.port.answer(results(number))
        pipe.send(Cancels([number]), Credits([number], [5]))
        pipe.port.poll()
    assert (pipe.port._held, pipe.port.cancelled, pipe.port._outstanding) == (set(), set(), {})


def test_what_is_said_to_a_server_that_is_gone_ends_the_stream_without_an_error(pipe: Pipe) -> None:
    pipe.send(tasks(b"a"))
    pipe.port.poll()
    pipe.server.close()
    pipe.port.emit([1], [b"x"])
    pipe.port.answer(results(1))
    pipe.port.answer(results(2))
    assert pipe.port.ended


def test_frames_of_several_threads_are_not_torn() -> None:
    pipe = Pipe()
    count, each = 4, 60
    # Longer than a socket takes at once.
    payloads = [bytes([number]) * 300_000 for number in range(count)]

    def emit(number: int) -> None:
        for _ in range(each):
            pipe.port.emit([number], [payloads[number]])

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(count)]
    received: list[tuple[int, bool]] = []
    decoder = frames.Decoder()
    try:
        for thread in threads:
            thread.start()
        while len(received) < count * each:
            decoder.receive_data(pipe.server.recv(1 << 20))
            while (frame := decoder.next_frame()) is not None:
                assert isinstance(frame, Chunks)
                received += [(n, body == payloads[n]) for n, body in zip(frame.ids, frame.payloads, strict=True)]
    finally:
        for thread in threads:
            thread.join()
        pipe.close()
    assert sorted(received) == [(number, True) for number in range(count) for _ in range(each)]


def test_threads_that_look_into_the_pipe_while_the_next_tasks_are_waited_for_take_nothing_apart() -> None:
    """As one does that sends an event of a stream after `forward` has returned."""
    pipe = Pipe()
    stop = threading.Event()
    faults: list[frames.FrameError] = []

    def look() -> None:
        try:
            while not stop.is_set():
                pipe.port.poll()
        except frames.FrameError as error:
            faults.append(error)

    def send() -> None:
        rest = memoryview(b"".join(encoded(tasks(b"x" * 200_000, first=number)) for number in range(1, count + 1)))
        while rest:
            rest = rest[pipe.server.send(rest[:9000]) :]
        pipe.end()

    count = 100
    threads = [threading.Thread(target=work) for work in (look, look, send)]
    for thread in threads:
        thread.start()
    got: list[Any] = []
    try:
        while (ids := pipe.next_ids()) is not None:
            got += ids
    finally:
        stop.set()
        # What is left lets the sender come to its end.
        while pipe.worker.recv(1 << 20):
            pass
        for thread in threads:
            thread.join()
        pipe.close()
    assert not faults
    assert got == list(range(1, count + 1))


# -- shared memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sharing(pipe: Pipe) -> Iterator[tuple[Pipe, Mapped]]:
    """A pipe whose worker shares memory with the server, and its end of that."""
    memory = SharedMemory(1 << 20, 1)
    pipe.port.memory = Mapped(memory.open_worker().share)
    yield pipe, pipe.port.memory
    memory.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")
def test_before_an_answer_it_is_said_what_is_kept_and_before_a_wait_what_no_more(
    sharing: tuple[Pipe, Mapped],
) -> None:
    pipe, mapped = sharing
    view = mapped.view(Span(PAGE, 5))
    pipe.port.answer(results(1))
    kept, answer = pipe.said()
    assert (kept, answer.__class__) == (frames.Kept((PAGE,)), Results)
    del view
    pipe.send(tasks(b"a"))
    assert pipe.next_ids() == [1]
    assert pipe.said() == [frames.Released((PAGE,))]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")
def test_what_the_server_says_is_free_is_written_again(sharing: tuple[Pipe, Mapped]) -> None:
    pipe, mapped = sharing
    span = mapped.put(bytes(1 << 20))
    assert span is not None
    assert mapped.put(b"x") is None
    pipe.send(frames.Freed([span.begin]), tasks(b"a"))
    pipe.next_ids()
    assert mapped.put(b"x") == (span.begin, 1)


def test_a_worker_without_shared_memory_has_nothing_to_be_freed(pipe: Pipe) -> None:
    pipe.send(frames.Freed([0]))
    with pytest.raises(frames.FrameError, match="not Freed"):
        pipe.port.next_tasks()


def test_a_pipe_that_breaks_in_the_middle_of_a_frame_ends_the_worker(pipe: Pipe) -> None:
    # Full, and not to be waited for: what is sent is cut off anywhere.
    pipe.worker.setblocking(False)
    with pytest.raises(Ending, match="writing to the server failed"):
        pipe.port.emit([1], [b"x" * 10_000_000])
    assert pipe.port.ended


def test_a_child_of_the_worker_says_nothing_through_its_pipe(pipe: Pipe) -> None:
    pipe.port.disown()
    pipe.port.answer(results(1))
    pipe.port.poll()
    assert pipe.said() == []
    assert pipe.next_ids() is None
