"""A worker's end of the shared memory."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from test_shm import BODY, SIZE, Pair, send, span_of

from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.reference import Span
from mosec_asgi.ipc.shm import Share, WorkerMemory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")


class End:
    """A worker that has been sent a body as task 1."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.account: WorkerMemory
        self.account, self.mapped = self.pair.worker()
        self.span = self.send(1)

    def send(self, task_id: int, body: bytes = BODY) -> Span:
        return span_of(send(self.account, task_id, body)[1])

    def answer(self, task_id: int) -> list[frames.Frame]:
        """Answer a task, as `inside.port` does; return what was said before the answer."""
        said = self.report()
        self.account.answered([task_id])
        return said

    def report(self) -> list[frames.Frame]:
        decoder = frames.Decoder()
        if data := self.mapped.report():
            decoder.receive_data(data)
        said = list(iter(decoder.next_frame, None))
        for frame in said:
            assert isinstance(frame, (frames.Kept, frames.Released))
            frame.blocks = list(frame.blocks)
            self.account.hear(frame)
        return said


@pytest.fixture
def end() -> Iterator[End]:
    end = End()
    yield end
    end.pair.close()


def test_what_is_not_kept_needs_no_word(end: End) -> None:
    view = end.mapped.view(end.span)
    assert view == BODY
    del view
    assert end.answer(1) == []
    assert end.pair.memory.in_use == 0


def test_what_is_kept_stays_as_it_was_over_later_tasks(end: End) -> None:
    kept = np.frombuffer(end.mapped.view(end.span), np.uint8)[10:20]
    assert end.answer(1) == [frames.Kept([end.span.begin])]
    for task_id in range(2, 40):
        end.mapped.view(end.send(task_id, bytes([task_id]) * len(BODY)))
        assert end.answer(task_id) == []
    assert bytes(kept) == BODY[10:20]
    del kept
    assert end.mapped.has_news
    assert end.report() == [frames.Released([end.span.begin])]
    assert end.pair.memory.in_use == 0
    assert end.send(99) == end.span


def test_a_reference_that_only_the_garbage_collector_finds_keeps_the_block(end: End) -> None:
    circle: list[object] = [end.mapped.view(end.span)]
    circle.append(circle)
    end.answer(1)
    del circle
    gc.collect()
    assert end.report() == [frames.Released([end.span.begin])]


def test_the_last_reference_may_go_in_another_thread(end: End) -> None:
    held = [end.mapped.view(end.span)]
    end.answer(1)
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert end.report() == [frames.Released([end.span.begin])]


@pytest.mark.parametrize("page_map", [True, False])
def test_what_forward_writes_to_an_array_is_seen_by_nobody_else(end: End, page_map: bool) -> None:
    if not page_map:
        end.mapped._page_map = None
    array = np.frombuffer(end.mapped.view(end.span), np.uint8)
    assert array.flags.writeable
    array[5000] = 77
    assert array[5000] == 77
    assert end.pair.memory.read(end.span) == BODY
    # Another worker, as after a crash of the first.
    second = Mapped(end.pair.memory.open_worker().share)
    assert second.read(end.span) == BODY
    del array
    end.answer(1)
    # Nor is it there when the place is used again.
    other = BODY[::-1]
    assert end.send(2, other) == end.span
    assert end.mapped.view(end.span) == other


def test_blocks_of_any_size_up_to_the_end_of_the_memory_can_be_viewed(end: End) -> None:
    total = end.account.share.total
    view = end.mapped.view(Span(total - 3 * SIZE // 2 // 4096 * 4096, 3 * SIZE // 2 // 4096 * 4096))
    assert (len(view), view.format, view[0]) == (3 * SIZE // 2 // 4096 * 4096, "B", 0)


def test_what_lies_outside_of_the_memory_is_refused(end: End) -> None:
    for span in (Span(end.account.share.total, 1), Span(end.account.share.total - 4096, 4097), Span(1 << 62, 5)):
        with pytest.raises(frames.FrameError, match="is not in the memory"):
            end.mapped.view(span)
        with pytest.raises(frames.FrameError, match="is not in the memory"):
            end.mapped.read(span)


def test_only_blocks_that_were_written_can_be_freed(end: End) -> None:
    span = end.mapped.put(BODY)
    assert span is not None
    end.mapped.freed([span.begin])
    with pytest.raises(frames.FrameError, match="frees a block that does not exist"):
        end.mapped.freed([span.begin])


def test_memory_that_cannot_be_mapped_says_what_to_lower() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(StartupError, match="lower the setting shared_memory"):
            Mapped(Share(null, 1 << 20, (0, 0)))
    finally:
        os.close(null)
