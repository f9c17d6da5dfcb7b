"""The link to a worker process: messages here, frames and shared memory on the way. The test is the process."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from fakes import settled_loop, until
from lives import Heard

from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.reference import Kind, Span
from mosec_asgi.ipc.shm import SharedMemory, SharedPayload
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.pool.link import WorkerLink
from mosec_asgi.pool.process.link import ProcessLink
from mosec_asgi.pool.process.watched import WatchedProcess

SIZE = 16 * LARGE
BODY = bytes(range(256)) * (LARGE // 256)
memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")


class FakeProcess:
    """Stands in for the process that is watched."""

    pid = 1234

    def __init__(self) -> None:
        self.killed = False
        self.reaped: list[float] = []
        self.exit: Callable[[], None]

    def watch(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]) -> None:
        self.exit = on_exit

    def kill(self) -> None:
        self.killed = True

    def reap(self, timeout: float) -> None:
        self.reaped.append(timeout)

    def describe_exit(self) -> str:
        return "exited with status 3"


class Pair:
    """A link, and the worker's end of it."""

    def __init__(self, memory: SharedMemory | None = None) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.process = FakeProcess()
        self.page = ProgressPage()
        self.memory = memory
        self.account = None if memory is None else memory.open_worker()
        # The worker's end of the memory.
        self.mapped = None if self.account is None else Mapped(self.account.share)
        self.events = Heard()
        self.gone: list[tuple[int, bool]] = []
        self.link = ProcessLink(
            cast("WatchedProcess", self.process),
            ours,
            self.page,
            self.account,
            self.events,
            asyncio.get_running_loop(),
            busy_polls=False,
            on_gone=lambda pid: self.gone.append((pid, ("exited",) in self.events.said)),
        )
        self._decoder = frames.Decoder()

    @property
    def heard(self) -> list[frames.Frame]:
        """What the worker is told and has not yet taken in."""
        try:
            while data := self.theirs.recv(1 << 20):
                self._decoder.receive_data(data)
        except (BlockingIOError, ConnectionResetError):
            # Nothing more has come; or it never will, as the link has closed the pipe with something in it.
            return list(iter(self._decoder.next_frame, None))
        return list(iter(self._decoder.next_frame, None))

    async def says(self, *encoded: bytes) -> list[tuple[Any, ...]]:
        """Let the worker say something; return what the link reports."""
        before = len(self.events.said)
        self.theirs.sendall(b"".join(encoded))
        await until(lambda: len(self.events.said) > before)
        await settled_loop()
        return self.events.said[before:]

    def put(self, data: bytes) -> Span:
        """Let the worker write to its memory."""
        assert self.mapped is not None
        span = self.mapped.put(data)
        assert span is not None
        return span

    def close(self) -> None:
        self.theirs.close()
        self.process.exit()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    made.close()


@pytest.fixture
async def sharing() -> AsyncIterator[Pair]:
    """A pair that shares memory."""
    memory = SharedMemory(SIZE, 2)
    made = Pair(memory)
    yield made
    made.close()
    assert memory.in_use == 0, "the end of a worker gives back what it needed"
    memory.close()


def tasks(*payloads: bytes | SharedPayload) -> Tasks:
    """Return tasks with the numbers from 1."""
    ids = list(range(1, len(payloads) + 1))
    return Tasks(ids, [0] * len(ids), [f"request-{number}" for number in ids], payloads)


def in_memory(*spans: Span) -> bytes:
    """Return the frame of results that lie in shared memory, from task 1 on."""
    ids = list(range(1, len(spans) + 1))
    places = [reference.pack(Kind.BYTES, [span]) for span in spans]
    return frames.encode_results(Results(ids, [frames.IN_MEMORY] * len(ids), places, 0.1))


# -- messages ----------------------------------------------------------------------------------------------------------


async def test_a_process_link_is_a_worker_link(pair: Pair) -> None:
    link: WorkerLink = pair.link
    assert (link.name, link.describe_exit()) == ("process 1234", "exited with status 3")


async def test_what_the_pool_says_is_what_the_worker_hears(pair: Pair) -> None:
    pair.link.send(Tasks([1, 2], [3, 0], ["a", "b"], [b"one", b"two"]))
    pair.link.cancel(Cancels([1]))
    pair.link.credit(Credits([2], [500]))
    sent, cancels, credits = pair.heard
    assert isinstance(sent, Tasks)
    assert [list(column) for column in sent] == [[1, 2], [3, 0], ["a", "b"], [b"one", b"two"], []]
    assert isinstance(cancels, Cancels)
    assert list(cancels.ids) == [1]
    assert isinstance(credits, Credits)
    assert (list(credits.ids), list(credits.sizes)) == ([2], [500])


async def test_what_the_worker_says_is_reported_in_order(pair: Pair) -> None:
    said = await pair.says(
        frames.encode_ready(),
        frames.encode_chunks(Chunks([1, 1], [b"a", b"b"])),
        frames.encode_results(Results([1, 2], [200, 422], [b"", b"no"], 0.25)),
        frames.encode_failed("OSError: no weights"),
    )
    assert [event for event, *_ in said] == ["ready", "chunks", "results", "failed"]
    assert [list(column) for column in said[1][1]] == [[1, 1], [b"a", b"b"]]
    *columns, seconds, _, _ = said[2][1]
    assert ([list(column) for column in columns], seconds) == ([[1, 2], [200, 422], [b"", b"no"]], 0.25)
    assert said[3] == ("failed", "OSError: no weights")


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (frames.encode_tasks(tasks(b"")), "Tasks"),
        (frames.encode_cancels(Cancels([1])), "Cancels"),
        (frames.encode_credits(Credits([1], [1])), "Credits"),
        (frames.encode_blocks(frames.Freed([0])), "Freed"),
    ],
)
async def test_a_worker_that_says_what_only_a_server_may_has_broken_its_pipe(
    pair: Pair, sent: bytes, name: str
) -> None:
    said = await pair.says(sent, frames.encode_ready())
    assert said == [("closed", f"broke its pipe (a worker does not send {name})")]


async def test_garbage_breaks_the_pipe_and_what_follows_is_not_heard(pair: Pair) -> None:
    ((event, reason),) = await pair.says(b"\xff" * 100, frames.encode_ready())
    assert event == "closed"
    assert reason.startswith("broke its pipe (garbage came from it: no frame")


async def test_a_pipe_that_ends_in_order_has_no_reason(pair: Pair) -> None:
    pair.theirs.shutdown(socket.SHUT_WR)
    await until(lambda: pair.events.said)
    assert pair.events.said == [("closed", "")]


async def test_a_pipe_that_ends_within_a_frame_is_broken(pair: Pair) -> None:
    pair.theirs.sendall(frames.encode_ready()[:5])
    pair.theirs.close()
    await until(lambda: pair.events.said)
    assert pair.events.said == [("closed", "broke its pipe (it was closed in the middle of a frame, 5 bytes in)")]


async def test_a_write_that_fails_is_reported_after_send_has_returned(pair: Pair) -> None:
    pair.theirs.close()
    pair.link.send(tasks(b"x"))
    pair.link.send(tasks(b"x"))
    assert pair.events.said == []
    await until(lambda: pair.events.said)
    await settled_loop()
    ((event, reason),) = pair.events.said
    assert event == "closed"
    assert "broke its pipe (" in reason


async def test_finish_ends_the_workers_pipe_and_its_last_words_are_heard(pair: Pair) -> None:
    pair.link.send(tasks(b"x"))
    pair.link.finish()
    assert len(pair.heard) == 1
    assert pair.theirs.recv(1) == b"", "the end"
    (said,) = await pair.says(frames.encode_results(Results([1], [200], [b"y"], 0.0)))
    assert said[0] == "results"


async def test_after_its_close_a_link_says_nothing_and_reports_nothing_but_the_exit(pair: Pair) -> None:
    pair.theirs.sendall(frames.encode_ready())
    pair.link.close()
    pair.link.close()
    pair.link.send(tasks(b"x"))
    pair.link.cancel(Cancels([1]))
    pair.link.credit(Credits([1], [1]))
    pair.link.finish()
    pair.link.drain()
    assert pair.link.busy_poll(0.0) is False
    await settled_loop()
    assert (pair.heard, pair.events.said) == ([], [])
    pair.process.exit()
    assert pair.events.said == [("exited",)]


async def test_a_listener_may_close_the_link_in_the_middle_of_a_report(pair: Pair) -> None:
    pair.events.ready = lambda: (pair.events.said.append(("ready",)), pair.link.close())[0]  # type: ignore[method-assign]
    said = await pair.says(frames.encode_ready() * 2)
    assert said == [("ready",)]


# -- the process -------------------------------------------------------------------------------------------------------


async def test_how_far_the_worker_has_come_is_known_until_its_exit_has_been_told(pair: Pair) -> None:
    pair.page.begin(3)
    pair.page.beat()
    assert pair.link.progress() == Progress(3, 2)
    seen: list[Progress] = []
    pair.events.exited = lambda: seen.append(pair.link.progress())  # type: ignore[method-assign]
    pair.process.exit()
    assert seen == [Progress(3, 2)]
    with pytest.raises(ValueError, match="released"):
        pair.page.read()


async def test_its_last_words_can_be_had_when_its_exit_is_told(pair: Pair) -> None:
    pair.theirs.sendall(frames.encode_ready() + frames.encode_results(Results([1], [200], [b"x"], 0.1)))
    pair.link.drain()
    assert [event for event, *_ in pair.events.said] == ["ready", "results"]


async def test_the_number_of_a_process_that_has_ended_is_told_after_all_have_heard_of_its_end(pair: Pair) -> None:
    pair.process.exit()
    assert pair.gone == [(1234, True)]


async def test_after_its_exit_the_link_keeps_neither_its_listener_nor_the_pipe(pair: Pair) -> None:
    pair.process.exit()
    assert pair.theirs.recv(1) == b""
    listener = weakref.ref(pair.events)
    pair.events = Heard()
    gc.disable()
    try:
        assert listener() is None
    finally:
        gc.enable()


async def test_a_link_kills_and_reaps_its_process(pair: Pair) -> None:
    pair.link.kill()
    assert (pair.process.killed, pair.events.said) == (True, [])
    pair.link.reap(0.5)
    assert pair.process.reaped == [0.5]
    with pytest.raises(ValueError, match="released"):
        pair.page.read()


# -- shared memory -----------------------------------------------------------------------------------------------------


@memfd
async def test_a_large_payload_goes_through_the_memory_beside_small_ones(sharing: Pair) -> None:
    sharing.link.send(tasks(b"small", BODY))
    (sent,) = sharing.heard
    assert isinstance(sent, Tasks)
    assert list(sent.flags) == [0, frames.SHARED]
    assert sent.payloads[0] == b"small"
    description = sent.payloads[1]
    assert isinstance(description, bytes)
    assert sharing.mapped is not None
    assert sharing.mapped.read(reference.unpack(description).spans[0]) == BODY


@memfd
async def test_what_a_task_lies_in_is_free_when_it_is_answered(sharing: Pair) -> None:
    sharing.link.send(tasks(BODY))
    assert sharing.memory is not None
    assert sharing.memory.in_use == LARGE
    await sharing.says(frames.encode_results(Results([1], [200], [b""], 0.1)))
    assert sharing.memory.in_use == 0


@memfd
async def test_a_large_result_is_held_until_it_is_dropped_and_the_worker_is_told_with_its_next_tasks(
    sharing: Pair,
) -> None:
    span = sharing.put(BODY)
    ((_, results),) = await sharing.says(in_memory(span))
    (held,) = results.payloads
    assert isinstance(held, SharedPayload)
    assert (list(results.codes), held.read()) == ([200], BODY)
    sharing.link.send(tasks(b"x"))
    assert [type(frame) for frame in sharing.heard] == [Tasks], "it is still needed"
    held.drop()
    sharing.link.send(tasks(b"x"))
    freed, sent = sharing.heard
    assert isinstance(freed, frames.Freed)
    assert isinstance(sent, Tasks)
    assert list(freed.blocks) == [span.begin]


@memfd
async def test_a_held_result_goes_to_another_worker_as_its_place(sharing: Pair) -> None:
    ((_, results),) = await sharing.says(in_memory(sharing.put(BODY)))
    (held,) = results.payloads
    other = Pair(sharing.memory)
    other.link.send(tasks(held))
    (sent,) = other.heard
    assert isinstance(sent, Tasks)
    assert (list(sent.flags), sent.payloads) == ([frames.SHARED], [held.description])
    held.drop()
    assert sharing.memory is not None
    assert sharing.memory.in_use == LARGE, "the worker still reads it"
    other.close()
    assert sharing.memory.in_use == 0


@memfd
async def test_a_worker_whose_memory_is_nearly_full_is_told_what_is_free_without_tasks(sharing: Pair) -> None:
    spans = [sharing.put(BODY) for _ in range(8)]
    ((_, results),) = await sharing.says(in_memory(*spans))
    for held in results.payloads:
        held.drop()
    assert sharing.heard == [], "whoever drops them is in the middle of something"
    await settled_loop()
    freed = [begin for frame in sharing.heard if isinstance(frame, frames.Freed) for begin in frame.blocks]
    assert sorted(freed) == [span.begin for span in spans]


@memfd
async def test_what_a_worker_keeps_is_needed_until_it_says_otherwise(sharing: Pair) -> None:
    sharing.link.send(tasks(BODY))
    (sent,) = sharing.heard
    assert isinstance(sent, Tasks)
    begin = reference.unpack(cast("bytes", sent.payloads[0])).spans[0].begin
    answer = frames.encode_results(Results([1], [200], [b""], 0.1))
    await sharing.says(frames.encode_blocks(frames.Kept([begin])), answer)
    assert sharing.memory is not None
    assert sharing.memory.in_use == LARGE
    await sharing.says(frames.encode_blocks(frames.Released([begin])), frames.encode_ready())
    assert sharing.memory.in_use == 0


@memfd
@pytest.mark.parametrize("place", [0, 1 << 40], ids=["the server's memory", "no memory at all"])
async def test_a_worker_that_answers_by_a_place_that_is_not_its_own_has_broken_its_pipe(
    sharing: Pair, place: int
) -> None:
    ((event, reason),) = await sharing.says(in_memory(Span(place, 5)), frames.encode_ready())
    assert event == "closed"
    assert "is not in its writer's memory" in reason


@memfd
async def test_of_a_refused_answer_nothing_is_held(sharing: Pair) -> None:
    span = sharing.put(BODY)
    ((event, reason),) = await sharing.says(in_memory(span, span))
    assert event == "closed"
    assert "lies where another one does" in reason
    assert sharing.memory is not None
    assert sharing.memory.in_use == 0


@pytest.mark.parametrize(
    "sent",
    [in_memory(Span(0, 5)), frames.encode_blocks(frames.Kept([0])), frames.encode_blocks(frames.Released([0]))],
    ids=["answers", "keeps", "releases"],
)
async def test_a_worker_that_has_no_shared_memory_cannot_speak_of_it(pair: Pair, sent: bytes) -> None:
    said = await pair.says(sent)
    assert said == [("closed", "broke its pipe (it refers to shared memory, and has none)")]


@memfd
async def test_a_worker_that_keeps_what_it_does_not_have_has_broken_its_pipe(sharing: Pair) -> None:
    ((event, reason),) = await sharing.says(frames.encode_blocks(frames.Kept([0])))
    assert event == "closed"
    assert "which it does not have" in reason
