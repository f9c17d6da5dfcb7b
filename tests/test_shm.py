"""The server's side of the shared memory, with what a worker does played by the test."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import Held

from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE, PAGE
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.reference import Kind, Span
from mosec_asgi.ipc.shm import SharedMemory, SharedPayload, WorkerMemory, Writer, shared_memory
from mosec_asgi.messages import Payload, Results, Tasks

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd"),
    pytest.mark.usefixtures("logged"),
]
SIZE = 16 * LARGE
BODY = bytes(range(256)) * (LARGE // 256)


class Pair:
    """A server's memory, and workers' ends of it in the same process."""

    def __init__(self, size: int = SIZE, workers: int = 2) -> None:
        self.memory = SharedMemory(size, workers)
        self.accounts: list[WorkerMemory] = []

    def worker(self) -> tuple[WorkerMemory, Mapped]:
        account = self.memory.open_worker()
        self.accounts.append(account)
        return account, Mapped(account.share)

    def close(self) -> None:
        for account in self.accounts:
            account.close()
        assert self.memory.in_use == 0
        self.memory.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def send(account: WorkerMemory, task_id: int, payload: Payload) -> tuple[int, Any]:
    """Send a payload; return the flags and what goes through the pipe."""
    tasks = Tasks([task_id], [0], ["name"], [payload])
    sent = account.send(tasks)
    assert (sent.ids, sent.request_ids) == ([task_id], ["name"])
    assert (tasks.flags, tasks.payloads) == ([0], [payload]), "a message is not changed"
    return sent.flags[0], sent.payloads[0]


def receive(account: WorkerMemory, description: bytes) -> SharedPayload:
    """Take in a result that lies in the memory."""
    results = account.receive(Results([1], [frames.IN_MEMORY], [description], 0.5))
    (payload,) = results.payloads
    assert (results.ids, results.codes, results.seconds) == ([1], [200], 0.5)
    assert isinstance(payload, SharedPayload)
    return payload


def span_of(description: bytes) -> Span:
    return reference.unpack(description).spans[0]


def test_a_large_body_goes_through_the_memory_and_a_small_one_does_not(pair: Pair) -> None:
    account, mapped = pair.worker()
    assert send(account, 1, BODY[:-1]) == (0, BODY[:-1])
    flags, description = send(account, 2, BODY)
    assert (flags, len(description) < 100, pair.memory.in_use) == (frames.SHARED, True, LARGE)
    assert mapped.read(span_of(description)) == BODY
    account.answered([1, 2])
    assert pair.memory.in_use == 0


def test_a_result_can_be_sent_from_where_it_lies_and_not_be_changed_there(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(BODY)
    assert span is not None
    result = receive(account, reference.pack(Kind.BYTES, [span]))
    with result.lend() as lent:
        assert lent == BODY
        with pytest.raises(TypeError):
            lent[0] = 1
    result.drop()
    # Nothing keeps the memory from being closed.
    lent.release()
    other = mapped.put(BODY)
    assert other is not None
    parts = receive(account, reference.pack(Kind.PICKLE, [other], b"stream"))
    with pytest.raises(frames.FrameError, match="must be bytes"):
        parts.lend()
    parts.drop()


def test_pieces_are_written_behind_each_other(pair: Pair) -> None:
    _, mapped = pair.worker()
    span = mapped.put_pieces([BODY[:100], memoryview(BODY)[100:200], b"", BODY[200:]], len(BODY))
    assert span is not None
    assert mapped.read(span) == BODY
    with mapped.lend(span) as lent:
        assert lent == BODY
        assert lent.readonly
    with pytest.raises(frames.FrameError, match="is not in the memory"):
        mapped.lend(Span(pair.memory._total, 1))
    assert mapped.put_pieces([BODY] * 17, len(BODY) * 17) is None


def test_a_result_for_the_client_comes_whole_and_its_place_is_free_at_once(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(BODY)
    assert span is not None
    result = receive(account, reference.pack(Kind.BYTES, [span]))
    assert (result.read(), pair.memory.in_use) == (BODY, LARGE)
    result.drop()
    assert pair.memory.in_use == 0
    decoder = frames.Decoder()
    decoder.receive_data(account.freed())
    freed = decoder.next_frame()
    assert isinstance(freed, frames.Freed)
    mapped.freed(freed.blocks)
    assert mapped.writer is not None
    assert mapped.writer.in_use == 0


def test_a_result_for_the_next_stage_never_passes_through_the_server(pair: Pair) -> None:
    first, writer = pair.worker()
    second, reader = pair.worker()
    span = writer.put(BODY)
    assert span is not None
    result = receive(first, reference.pack(Kind.BYTES, [span]))
    flags, description = send(second, 1, result)
    assert (flags, description) == (frames.SHARED, reference.pack(Kind.BYTES, [span]))
    assert reader.read(span) == BODY
    second.answered([1])
    assert (pair.memory.in_use, first.freed()) == (LARGE, b"")
    result.drop()
    assert pair.memory.in_use == 0
    assert first.freed() == frames.encode_blocks(frames.Freed([span.begin]))


def test_what_a_dead_worker_has_written_can_still_be_read(pair: Pair) -> None:
    first, writer = pair.worker()
    second, reader = pair.worker()
    span = writer.put(BODY)
    assert span is not None
    result = receive(first, reference.pack(Kind.BYTES, [span]))
    first.close()
    # Its successor writes, and so does the next one: not there.
    for _ in range(2):
        after, other = pair.worker()
        assert other.put(b"x" * SIZE) is not None
        send(second, 1, result)
        assert reader.read(span) == BODY
        second.answered([1])
        after.close()
    result.drop()


def test_a_region_is_empty_for_its_next_owner(pair: Pair) -> None:
    begins = set()
    for _ in range(8):
        account, mapped = pair.worker()
        span = mapped.put(b"x" * SIZE)
        assert span is not None, "what the last owner had taken is still taken"
        begins.add(span.begin)
        account.close()
    assert len(begins) < 8


def test_pages_of_dead_writers_go_back_to_the_system(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(b"x" * SIZE)
    assert span is not None
    held = os.stat(account.share.descriptor).st_blocks
    account.close()
    assert os.stat(account.share.descriptor).st_blocks <= held - SIZE // 512


def test_the_payload_stays_for_another_worker_when_the_first_one_dies(pair: Pair) -> None:
    first, writer = pair.worker()
    second, _ = pair.worker()
    span = writer.put(BODY)
    assert span is not None
    result = receive(first, reference.pack(Kind.BYTES, [span]))
    send(second, 1, result)
    second.close()
    third, reader = pair.worker()
    assert send(third, 1, result)[0] == frames.SHARED
    assert reader.read(span) == BODY
    result.drop()


@pytest.mark.parametrize(
    "description",
    [
        b"garbage",
        reference.pack(Kind.BYTES, [Span(0, 100)]),
        reference.pack(Kind.BYTES, [Span(1 << 60, 100)]),
    ],
    ids=["no reference", "the server's memory", "beyond the end"],
)
def test_a_result_that_is_none_is_refused(pair: Pair, description: bytes) -> None:
    account, _ = pair.worker()
    with pytest.raises(frames.FrameError):
        receive(account, description)


def test_a_pickle_in_the_memory_is_no_answer_to_a_client(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(BODY)
    assert span is not None
    result = receive(account, reference.pack(Kind.PICKLE, [span], b"stream"))
    with pytest.raises(frames.FrameError, match="must be bytes, not a PICKLE"):
        result.read()
    result.drop()


def test_nothing_is_held_of_results_of_which_one_is_refused(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(BODY)
    assert span is not None
    description = reference.pack(Kind.BYTES, [span])
    results = Results([1, 2, 3], [frames.IN_MEMORY, 200, frames.IN_MEMORY], [description, b"x", description], 0.1)
    with pytest.raises(frames.FrameError, match="where another one does"):
        account.receive(results)
    assert pair.memory.in_use == 0


def test_small_results_pass_beside_large_ones_as_they_are(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(BODY)
    assert span is not None
    description = reference.pack(Kind.BYTES, [span])
    results = account.receive(Results([1, 2, 3], [200, frames.IN_MEMORY, 422], [b"x", description, b"no"], 0.1))
    first, held, last = results.payloads
    assert (first, last, results.codes) == (b"x", b"no", [200, 200, 422])
    assert isinstance(held, SharedPayload)
    held.drop()


def test_a_payload_that_another_link_holds_goes_through_the_pipe_as_bytes(pair: Pair) -> None:
    account, _ = pair.worker()
    held = Held(b"of another link")
    assert send(account, 1, held) == (0, b"of another link")
    assert (held.drops, account.reads, pair.memory.in_use) == (0, False, 0)


def test_a_shared_payload_counts_as_large(pair: Pair) -> None:
    account, mapped = pair.worker()
    span = mapped.put(b"small")
    assert span is not None
    result = receive(account, reference.pack(Kind.BYTES, [span]))
    assert len(result) >= LARGE
    result.drop()


def test_a_shared_payload_leaves_its_memory_as_bytes(pair: Pair) -> None:
    account, mapped = pair.worker()
    arrays = [bytearray(BODY), bytearray(BODY[::-1])]
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps([pickle.PickleBuffer(array) for array in arrays], 5, buffer_callback=buffers.append)
    spans = [span for buffer in buffers if (span := mapped.put(buffer.raw())) is not None]
    long = mapped.put(stream)
    plain = mapped.put(BODY)
    assert long is not None
    assert plain is not None
    (here,) = [receive(account, reference.pack(Kind.BYTES, [plain]))]
    assert pickle.loads(pickle.dumps(here)) == BODY
    here.drop()
    result = receive(account, reference.pack(Kind.LARGE_PICKLE, [long, *spans]))
    crossed = pickle.loads(pickle.dumps(result))
    assert isinstance(crossed, bytes)
    assert pickle.loads(crossed) == arrays
    result.drop()
    result = receive(account, reference.pack(Kind.PICKLE, spans, stream))
    assert pickle.loads(pickle.loads(pickle.dumps(result))) == arrays
    result.drop()


def test_a_full_memory_sends_payloads_through_the_pipe_and_says_once_what_to_raise(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    account, _ = pair.worker()
    body = b"x" * (SIZE // 2)
    assert [send(account, task_id, body)[0] for task_id in (1, 2)] == [frames.SHARED] * 2
    assert send(account, 3, body) == (0, body)
    assert send(account, 4, body) == (0, body)
    (text,) = caplog.messages
    assert "raise the setting shared_memory" in text
    account.answered([1])
    assert send(account, 5, body)[0] == frames.SHARED


def test_a_payload_larger_than_the_memory_goes_through_the_pipe(pair: Pair) -> None:
    account, mapped = pair.worker()
    body = b"x" * (SIZE + 1)
    assert send(account, 1, body) == (0, body)
    assert mapped.put(body) is None


def test_a_worker_without_a_region_reads_all_the_same(pair: Pair) -> None:
    for _ in range(4):
        pair.worker()
    account, mapped = pair.worker()
    assert mapped.put(BODY) is None
    _, description = send(account, 1, BODY)
    assert mapped.read(span_of(description)) == BODY
    with pytest.raises(frames.FrameError, match="no region"):
        receive(account, reference.pack(Kind.BYTES, [Span(0, 100)]))


def test_a_system_without_memory_is_no_fault_and_nothing_is_written(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(descriptor: int, begin: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    memory = SharedMemory(SIZE, 1)
    share = memory.open_worker().share
    mapping = Mapped(share)._all
    writer = Writer(share.descriptor, mapping, (0, SIZE), 0, refuse)
    assert (writer.put(BODY), writer.put(BODY), writer.in_use) == (None, None, 0)
    assert mapping[: len(BODY)] == bytes(len(BODY))
    (text,) = caplog.messages
    assert "No space left on device" in text
    assert "memory limit" in text
    memory.close()


def test_pages_are_reserved_before_they_are_written(pair: Pair) -> None:
    reserved: list[tuple[int, int]] = []
    account, mapped = pair.worker()
    writer = Writer(
        account.share.descriptor, mapped._all, (SIZE, SIZE), SIZE, lambda _, begin, size: reserved.append((begin, size))
    )
    first, second = writer.put(BODY), writer.put(BODY)
    assert first is not None
    assert second is not None
    writer.free(first.begin)
    writer.put(BODY)
    assert reserved == [(SIZE, LARGE), (SIZE + LARGE, LARGE)]


def test_nobody_can_cut_the_file_short(pair: Pair) -> None:
    account, _ = pair.worker()
    for size in (PAGE, 1 << 40):
        with pytest.raises(PermissionError):
            os.ftruncate(account.share.descriptor, size)


def test_a_service_without_shared_memory_runs_on(caplog: pytest.LogCaptureFixture) -> None:
    assert shared_memory(0, 1) is None
    assert not caplog.records
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))
    try:
        assert shared_memory(SIZE, 1) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (text,) = caplog.messages
    assert "lower the setting shared_memory" in text


def test_where_mapped_memory_counts_as_used_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    setting = tmp_path / "overcommit_memory"
    setting.write_text("2\n")
    assert shared_memory(SIZE, 1, setting) is None
    (text,) = caplog.messages
    assert "vm.overcommit_memory" in text
    setting.write_text("0\n")
    memory = shared_memory(SIZE, 1, setting)
    assert memory is not None
    memory.close()


def test_nothing_is_left_of_a_memory_that_was_closed() -> None:
    def files() -> list[str]:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return [target for link in links if os.path.lexists(link) and "payloads" in (target := os.readlink(link))]

    before = files()
    memory = SharedMemory(SIZE, 1)
    assert len(files()) > len(before)
    memory.close()
    memory.close()
    assert files() == before
