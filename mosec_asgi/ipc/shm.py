"""Large payloads in shared memory: the file, what the server writes there, and its account of each worker.

`ipc.ledger` explains who may write where, and why. The file has no name (a memfd), so nothing of it can stay behind: it
is gone with the last process that has it open. Its pages exist only where something has been written. They are reserved
before the first write to them: if the system has no memory, the reservation fails and the payload goes through the
pipe, while a write to a page that does not exist would kill the process by SIGBUS. The size is sealed for the same
reason.

Where there is no memfd (macOS), or no memory, all payloads go through the pipes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from mosec_asgi import log
from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE, Arena, pages
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.ipc.ledger import Block, Ledger, Reader, Region
from mosec_asgi.ipc.reference import Span
from mosec_asgi.ipc.views import Views
from mosec_asgi.messages import OK, Payload, Results, Tasks, drop_all, tuple_new

# Bytes; glibc keeps up to twice as much freed memory for the next payload.
_KEPT_BY_MALLOC = 4 * 1024 * 1024

_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")

logger = log.internal_logger(__name__)


def keep_freed_memory() -> None:
    """Make glibc keep some freed memory, which it would else give back after each payload and ask for again.

    glibc raises its threshold when a mapped block is freed, so one such block is made here. For an echo of 100 kB this
    reduces the server's processor time from 390 to 310 µs.
    """
    bytearray(_KEPT_BY_MALLOC)


class Writer:
    """Writes blocks into one region. Used by several threads of a worker: one encodes, and any may read the pipe."""

    def __init__(
        self,
        descriptor: int,
        mapping: mmap.mmap,
        region: tuple[int, int],
        shift: int,
        reserve: Callable[[int, int, int], None] | None = None,
    ) -> None:
        """Begin with an empty region.

        Args:
            descriptor: of the file.
            mapping: a mapping of it, to write to.
            region: where in the file the region begins, and its size.
            shift: where the region begins in the mapping.
            reserve: reserves the memory of a part of the file; None for `os.posix_fallocate`.
        """
        self._descriptor = descriptor
        self._mapping = mapping
        self._begin, self._size = region
        self._shift = shift
        self._reserve = reserve or os.posix_fallocate
        self._arena = Arena(self._size)
        # Up to where pages have been reserved.
        self._reserved = 0
        self._lock = threading.Lock()
        self._warned = False

    @property
    def in_use(self) -> int:
        """Bytes of the region that are taken."""
        return self._arena.in_use

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block, and return where it lies; None where there is no room for it."""
        return self.put_pieces((data,), len(data))

    def put_pieces(self, pieces: Sequence[bytes | memoryview], length: int) -> Span | None:
        """Write pieces behind each other as one block of `length` bytes; see `put`."""
        with self._lock:
            place = self._arena.allocate(length)
            if place is None:
                self._warn(
                    f"a payload of {length} bytes does not fit into the {self._size} bytes of shared memory, of which "
                    f"{self._arena.in_use} are in use, and goes through the pipe, which is slower; to avoid that, "
                    "raise the setting shared_memory (bytes)"
                )
                return None
            if not self._make_sure_of(place + pages(length)):
                self._arena.free(place)
                return None
        at = self._shift + place
        for piece in pieces:
            self._mapping[at : at + len(piece)] = piece
            at += len(piece)
        return Span(self._begin + place, length)

    def free(self, begin: int) -> None:
        """Free a block.

        Raises:
            ArenaError: there is no such block.
        """
        with self._lock:
            self._arena.free(begin - self._begin)

    def _make_sure_of(self, end: int) -> bool:
        """Reserve pages up to `end`; False where the system has none."""
        if end <= self._reserved:
            return True
        try:
            self._reserve(self._descriptor, self._begin + self._reserved, end - self._reserved)
        except OSError as error:
            self._warn(
                f"the system has no memory left to share ({error.strerror}): large payloads go through the pipe, which "
                "is slower; raise the memory limit of the container or machine, or lower the setting shared_memory"
            )
            return False
        self._reserved = end
        return True

    def _warn(self, text: str) -> None:
        # Once, or each request would write a line.
        if not self._warned:
            self._warned = True
            logger.warning("%s", text)


class Share:
    """What a worker is given of the memory; crosses into its process, and is opened there by `ipc.mapped.Mapped`.

    Attributes:
        descriptor: of the file.
        total: bytes of the file.
        region: where the worker may write: where that begins, and its size, which is 0 if there is no room for it.
    """

    def __init__(self, descriptor: int, total: int, region: tuple[int, int]) -> None:
        self.descriptor = descriptor
        self.total = total
        self.region = region

    def __reduce__(self) -> tuple[Callable[..., Share], tuple[Any, ...]]:
        """Cross into a process that is being spawned; a forked one has the file as it is."""
        return _attach, (reduction.DupFd(self.descriptor), self.total, self.region)


def _attach(duplicate: Any, total: int, region: tuple[int, int]) -> Share:
    return Share(duplicate.detach(), total, region)


class SharedMemory:
    """The memory that a server shares with its workers."""

    def __init__(self, size: int, workers: int) -> None:
        """Make the file and map it.

        Args:
            size: bytes that the server and each worker may fill.
            workers: processes that run at a time.

        Raises:
            OSError: the system refuses it.
        """
        keep_freed_memory()
        size = pages(size)
        # One region for the server, two for each worker: the blocks of a dead worker may be read after the next has
        # started.
        regions = 1 + 2 * workers
        self._total = regions * size
        self._size = size
        self._descriptor = _sealed_file(self._total)
        try:
            self._mapping = mmap.mmap(self._descriptor, self._total)
        except OSError:
            os.close(self._descriptor)
            raise
        self._ledger = Ledger(size, regions)
        own = self._ledger.open_region()
        assert own is not None
        self._region = own
        self._writer = Writer(self._descriptor, self._mapping, (own.begin, size), own.begin)
        own.over = self._writer.free
        # What `infer` has returned.
        self.views = Views(self._mapping, self._total, self._view_gone)
        self._closed = False

    def __repr__(self) -> str:
        return f"<SharedMemory {self.in_use} of {self._total} bytes in use>"

    @property
    def in_use(self) -> int:
        """Bytes that tasks or workers need at this moment."""
        return self._ledger.in_use

    def open_worker(self) -> WorkerMemory:
        """Open the account of a worker that is about to be started."""
        return WorkerMemory(self, self._ledger, self._ledger.open_region())

    def share(self, region: Region | None) -> Share:
        """Return what a worker that writes to `region` is given."""
        return Share(self._descriptor, self._total, (region.begin, region.size) if region else (0, 0))

    def put(self, payload: bytes) -> tuple[bytes, list[Block]] | None:
        """Write what a worker is to be sent; return its description and its blocks, or None where there is no room."""
        span = self._writer.put(payload)
        if span is None:
            return None
        return reference.pack(reference.BYTES, [span]), self._ledger.wrote(self._region, [span])

    def own_blocks(self) -> OwnBlocks:
        """Return a place for the large buffers of what the server gives to workers."""
        return OwnBlocks(self, self._writer)

    def hold(self, description: bytes) -> SharedPayload:
        """Return a payload of blocks that the server has written itself."""
        contents = reference.unpack(description)
        return SharedPayload(
            description, contents, self._ledger.wrote(self._region, contents.spans), self._ledger, self
        )

    def read(self, span: Span) -> bytes:
        """Return a copy of a block."""
        return self._mapping[span.begin : span.begin + span.length]

    def lend(self, span: Span) -> memoryview:
        """Return a block where it lies, to be read, and released before its writer may hear that it is free."""
        return memoryview(self._mapping)[span.begin : span.begin + span.length].toreadonly()

    def _view_gone(self, block: Block) -> None:
        self._ledger.drop((block,))
        self.give_back()

    def give_back(self) -> None:
        """Give the pages of regions that nobody uses any more back to the system."""
        while self._ledger.vacated:
            begin = self._ledger.vacated.pop()
            if not self._closed:
                # If the system refuses, the pages stay, and the region's next owner writes over them.
                with contextlib.suppress(OSError):
                    self._mapping.madvise(mmap.MADV_REMOVE, begin, self._size)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self.views.tell = None
            # Where something that `infer` has returned still lies there, the last of it ends the mapping.
            with contextlib.suppress(BufferError):
                self._mapping.close()
            os.close(self._descriptor)


def shared_memory(size: int, workers: int, overcommit: Path = _OVERCOMMIT) -> SharedMemory | None:
    """Return the shared memory of a service, or None where there is none.

    Args:
        size: see `SharedMemory`; 0 for none.
        workers: see `SharedMemory`.
        overcommit: the file in which the system says how it counts memory that is mapped and not used.
    """
    if not size or not hasattr(os, "memfd_create"):
        return None
    if overcommit.exists() and overcommit.read_text().strip() == "2":
        logger.warning(
            "this system counts memory that is only mapped (vm.overcommit_memory=2), so no memory is shared and large "
            "payloads go through the pipes, which is slower; allow overcommitment, or set shared_memory to 0"
        )
        return None
    try:
        return SharedMemory(size, workers)
    except OSError as error:
        logger.warning(
            "no shared memory of %d bytes for each of %d workers (%s): large payloads go through the pipes, which is "
            "slower; lower the setting shared_memory, or set it to 0",
            size,
            workers,
            error,
        )
        return None


def _sealed_file(size: int) -> int:
    """Return a nameless file of a size that nobody can change."""
    # Imported here: the module must load on systems that do not have it.
    import fcntl

    descriptor = os.memfd_create("mosec_asgi payloads", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class OwnBlocks:
    """Where the server puts large buffers of an object that it pickles for a worker."""

    def __init__(self, memory: SharedMemory, writer: Writer) -> None:
        self._memory = memory
        self._writer = writer

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block; None where there is no room."""
        return self._writer.put(data)

    def take_back(self, spans: Sequence[Span]) -> None:
        """Have blocks written over, which nobody has been told of."""
        for span in spans:
            self._writer.free(span.begin)

    def hold(self, description: bytes) -> SharedPayload:
        """Return the payload that lies in blocks that were put, by their description."""
        return self._memory.hold(description)


class SharedPayload:
    """A payload that lies in shared memory, as a task carries it; see `ipc.reference`.

    Attributes:
        description: what a worker is sent.
        blocks: where it lies.
    """

    __slots__ = ("_contents", "_ledger", "_memory", "blocks", "description")

    def __init__(
        self,
        description: bytes,
        contents: reference.Contents,
        blocks: Sequence[Block],
        ledger: Ledger,
        memory: SharedMemory,
    ) -> None:
        self.description = description
        self.blocks = blocks
        self._contents = contents
        self._ledger = ledger
        self._memory = memory

    def __len__(self) -> int:
        # So that a comparison of lengths finds all payloads that are, or should go, in shared memory.
        return LARGE

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """Leave this memory as plain bytes, as if the worker had sent them through its pipe."""
        return bytes, (self.copy(),)

    def lies_in(self, memory: SharedMemory) -> bool:
        """Whether this is the memory that it lies in."""
        return self._memory is memory

    def read(self) -> bytes:
        """Return a copy.

        Raises:
            FrameError: it is a pickle with separate buffers, which cannot be sent to a client.
        """
        return self._memory.read(self._span_of_bytes())

    def lend(self) -> memoryview:
        """Return it where it lies, to be read and released; raises as `read` does."""
        return self._memory.lend(self._span_of_bytes())

    def _span_of_bytes(self) -> Span:
        contents = self._contents
        if contents.kind is not reference.BYTES:
            raise FrameError(f"the answer to a client must be bytes, not a {contents.kind.name} in shared memory")
        return contents.spans[0]

    def load(self) -> Any:
        """Return the object that is pickled here, whose large buffers stay where they are; see `ipc.views`."""
        contents = self._contents
        # What no view has taken over is dropped; pickle takes a buffer for each that it has put apart.
        blocks = list(self.blocks)
        try:
            if contents.kind is reference.BYTES:
                return pickle.loads(self._memory.read(contents.spans[0]))
            spans = list(contents.spans)
            if contents.kind is reference.PICKLE:
                stream, first = contents.stream, 0
            else:
                stream, first = self._memory.read(spans[0]), 1

            def buffers() -> Iterator[memoryview]:
                for span in spans[first:]:
                    yield self._memory.views.view(blocks.pop(first), span.length)

            return pickle.loads(stream, buffers=buffers())
        finally:
            self._ledger.drop(blocks)

    def drop(self) -> None:
        """Note that the task does not need it any more. To be called once."""
        self._ledger.drop(self.blocks)

    def copy(self) -> bytes:
        """Return it as plain bytes, as if the worker had sent them through its pipe; a pickle is made anew."""
        contents = self._contents
        if contents.kind is reference.BYTES:
            return self.read()
        spans = list(contents.spans)
        stream = contents.stream if contents.kind is reference.PICKLE else self._memory.read(spans.pop(0))
        return pickle.dumps(pickle.loads(stream, buffers=map(self._memory.read, spans)), protocol=5)


class WorkerMemory:
    """The server's account of one life of a worker: what it needs, and what it has written."""

    def __init__(self, memory: SharedMemory, ledger: Ledger, region: Region | None) -> None:
        self._memory = memory
        self._ledger = ledger
        self._region = region
        self._reader = Reader(ledger)
        self._closed = False

    @property
    def share(self) -> Share:
        """What the worker's process is given."""
        return self._memory.share(self._region)

    @property
    def reads(self) -> bool:
        """Whether it has been sent blocks with tasks that it has not answered."""
        return bool(self._reader.sent)

    def on_full(self, tell: Callable[[], None]) -> None:
        """Have `tell` called when the worker should be told of its free blocks, even without tasks to send."""
        if self._region is not None:
            self._region.full = tell

    def send(self, tasks: Tasks) -> Tasks:
        """Put large payloads into the memory; return the tasks with references in place of those that lie there."""
        flags, payloads = list(tasks.flags), list(tasks.payloads)
        for place, payload in enumerate(payloads):
            if isinstance(payload, SharedPayload):
                for block in payload.blocks:
                    block.users += 1
                sent = payload.description, payload.blocks
            elif not isinstance(payload, bytes):
                # The payload lies in another link's memory: its bytes go through the pipe.
                payloads[place] = payload.read()
                continue
            elif len(payload) < LARGE or (put := self._memory.put(payload)) is None:
                continue
            else:
                sent = put
            payloads[place] = sent[0]
            flags[place] |= frames.SHARED
            self._reader.send(tasks.ids[place], sent[1])
        return tuple_new(Tasks, (tasks.ids, flags, tasks.request_ids, payloads, tasks.requests))

    def receive(self, results: Results) -> Results:
        """Return the results with payloads in shared memory in place of references.

        Raises:
            FrameError: a reference is not valid, or does not lie in this worker's region; nothing is held then.
        """
        codes, payloads = list(results.codes), list(results.payloads)
        try:
            for place, code in enumerate(codes):
                if code == frames.IN_MEMORY:
                    payloads[place] = self.hold(payloads[place])
                    codes[place] = OK
        except FrameError:
            drop_all(payloads)
            raise
        ids, _, _, seconds, forwards, labels = results
        return tuple_new(Results, (ids, codes, payloads, seconds, forwards, labels))

    def hold(self, description: Payload) -> SharedPayload:
        """Return the payload that this writer describes.

        Raises:
            FrameError: the reference is not valid, or does not lie in its region.
        """
        assert isinstance(description, bytes)
        contents = reference.unpack(description)
        if self._region is None:
            raise FrameError("a result lies in shared memory, where this worker has no region")
        blocks = self._ledger.wrote(self._region, contents.spans)
        return SharedPayload(description, contents, blocks, self._ledger, self._memory)

    def answered(self, ids: Sequence[int]) -> None:
        """Note that it has answered tasks."""
        self._reader.answered(ids)
        self._memory.give_back()

    def hear(self, frame: frames.Kept | frames.Released) -> None:
        """Take in which blocks the worker keeps or releases.

        Raises:
            FrameError: it has no such blocks.
        """
        if isinstance(frame, frames.Kept):
            self._reader.keep(frame.blocks)
        else:
            self._reader.release(frame.blocks)
            self._memory.give_back()

    def freed(self) -> bytes:
        """Return the frame that tells the worker which of its blocks are free; empty where none is."""
        if self._region is None or not self._region.freed:
            return b""
        return frames.encode_blocks(frames.Freed(self._region.take_freed()))

    def take_freed(self) -> list[int]:
        """Return the blocks of its region that are free, of which it has not been told."""
        return [] if self._region is None or not self._region.freed else self._region.take_freed()

    def close(self) -> None:
        """Note that its process has ended. Idempotent."""
        if not self._closed:
            self._closed = True
            self._reader.close()
            if self._region is not None:
                self._region.full = None
                self._ledger.close_region(self._region)
            self._memory.give_back()
