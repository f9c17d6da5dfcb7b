"""An actor's end of its connection: what it says of its progress, and when."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mosec_asgi.ipc import frames
from mosec_asgi.messages import EGRESS, INGRESS, Results, Tasks
from mosec_asgi.pool.ray.port import RayPort


class Ends:
    """A port, and the server's end of its connection."""

    def __init__(self) -> None:
        self.server, theirs = socket.socketpair()
        self.server.settimeout(10.0)
        self.port = RayPort(theirs)
        self.sock = theirs
        self.decoder = frames.Decoder()

    def give(self, *ids: int) -> None:
        count = len(ids)
        tasks = Tasks(ids, [INGRESS | EGRESS] * count, ["a"] * count, [b"1"] * count)
        self.server.sendall(frames.encode_tasks(tasks))

    def heard(self) -> list[frames.Frame]:
        """Return what the server hears, without waiting."""
        self.server.setblocking(False)
        try:
            self.decoder.receive_data(self.server.recv(1 << 16))
        except BlockingIOError:
            return []
        found = []
        while (frame := self.decoder.next_frame()) is not None:
            found.append(frame)
        return found

    def answer(self, *ids: int) -> None:
        self.port.answer(Results(ids, (200,) * len(ids), (b"1",) * len(ids), 0.0))


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.server.close()
    ends.sock.close()


def begun(heard: list[frames.Frame]) -> list[int]:
    return [frame.begun for frame in heard if isinstance(frame, frames.Noted)]


def test_what_is_begun_is_known_before_it_runs(ends: Ends) -> None:
    ends.give(1)
    assert ends.port.next_tasks() is not None
    ends.port.progress.begin()
    assert begun(ends.heard()) == [1]
    ends.answer(1)
    ends.give(2)
    assert ends.port.next_tasks() is not None
    # Sent ahead, and not begun: it keeps its count if the worker dies now.
    assert not begun(ends.heard())
    ends.port.progress.begin()
    assert begun(ends.heard()) == [2]


def test_tasks_that_run_without_a_pause_are_begun_by_one_note(ends: Ends) -> None:
    ends.port.at_once = True
    ends.give(1, 2, 3)
    ends.give(4)
    assert ends.port.next_tasks() is not None
    for _ in range(3):
        ends.port.progress.begin()
    assert begun(ends.heard()) == [3]


def test_an_answer_goes_with_the_note_of_what_follows_at_once(ends: Ends) -> None:
    ends.port.at_once = True
    ends.give(1)
    ends.give(2)
    ends.port.next_tasks()
    ends.port.progress.begin()
    ends.port.poll()
    ends.heard()
    ends.answer(1)
    assert ends.heard() == []
    ends.port.next_tasks()
    first, second = ends.heard()
    assert isinstance(first, Results)
    assert second == frames.Noted(2, first_memory(second))
    # Nothing follows: it is sent at once.
    ends.answer(2)
    assert [type(frame) for frame in ends.heard()] == [Results]


def first_memory(frame: frames.Frame) -> int:
    assert isinstance(frame, frames.Noted)
    assert frame.memory > 0
    return frame.memory


def test_an_answer_in_the_middle_of_a_message_is_sent_at_once(ends: Ends) -> None:
    ends.port.at_once = True
    ends.give(1, 2)
    ends.give(3)
    ends.port.next_tasks()
    ends.port.poll()
    ends.heard()
    ends.answer(1)
    assert [type(frame) for frame in ends.heard()] == [Results]


def test_steps_are_told_from_time_to_time(ends: Ends) -> None:
    ends.port.progress.beat()
    assert begun(ends.heard()) == [0]
    for _ in range(10):
        ends.port.progress.beat()
    assert len(ends.heard()) < 3


def test_the_end_that_the_server_has_told_is_in_good_order(ends: Ends) -> None:
    ends.give(1)
    ends.server.sendall(frames.encode_finish())
    assert ends.port.next_tasks() is not None
    assert ends.port.next_tasks() is None
    assert not ends.port.forsaken


def test_one_that_it_has_not_told_is_not(ends: Ends) -> None:
    ends.server.close()
    assert ends.port.next_tasks() is None
    assert ends.port.forsaken


def test_a_frame_that_is_none_for_a_worker_is_refused(ends: Ends) -> None:
    ends.server.sendall(frames.encode_ready())
    with pytest.raises(frames.FrameError, match="an actor is sent tasks"):
        ends.port.next_tasks()
