"""The worker's end of the shared memory: what it reads there without a copy, what it writes, and what it keeps.

What others have written is mapped as a private copy: `forward` may write to an array that it gets, and the block stays
as it was for another worker, which is given the task if this one dies. The kernel copies a page only when it is written
to. Such a copied page must be dropped before the next block at its place is read. Dropping all pages of each block
would cost more than a copy of the block (10 MB: 570 µs, a copy 360 µs), because they have to be mapped again. So the
worker asks the kernel which pages differ (10 MB: 60 µs), and nearly always none does. If this process has had no page
fault since the block was mapped, no page can differ, because the first write to a page causes a fault.

An array holds the buffer that it was made from, and the buffer holds an object here. When that object dies, the last
reference is gone. Its finalizer may run at any moment in any thread, so it only makes a note; the server is told with
the next answer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import resource
import weakref
from collections import deque
from collections.abc import Sequence

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.arena import PAGE, ArenaError, pages
from mosec_asgi.ipc.reference import Span
from mosec_asgi.ipc.shm import Share, Writer, keep_freed_memory
from mosec_asgi.ipc.views import array_type

# Python has the name since 3.13. Without the flag the kernel refuses mappings larger than the machine's memory.
_MAP_NORESERVE: int = getattr(
    mmap, "MAP_NORESERVE", 0x4000 if os.uname().machine in ("x86_64", "aarch64", "riscv64") else 0
)
# Values of the highest byte of a page's entry in /proc/self/pagemap that rule out a private copy: the page is not
# mapped, or it is the file's own (bit 61), mapped by this process alone (bit 56) or by others too.
_UNCHANGED = bytes([0x00, 0xA0, 0xA1])

logger = log.internal_logger(__name__)


class _Lifeline(weakref.ref["ctypes.Array[ctypes.c_ubyte]"]):
    """Knows when the last reference to a block has gone.

    Attributes:
        span: the block.
        kept: the server has been told that the worker keeps it.
        faults: the page faults of this process before anything could be written to it.
    """

    __slots__ = ("faults", "kept", "span")
    faults: int
    span: Span
    kept: bool


class Mapped:
    """The shared memory, as one worker has it."""

    def __init__(self, share: Share) -> None:
        """Map it.

        Raises:
            StartupError: the system refuses it.
        """
        keep_freed_memory()
        self._total = share.total
        self._descriptor = share.descriptor
        begin, size = share.region
        try:
            self._all = mmap.mmap(
                share.descriptor,
                share.total,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
            own = mmap.mmap(share.descriptor, size, offset=begin) if size else None
        except OSError as error:
            raise StartupError(
                f"{share.total} bytes of shared memory cannot be mapped ({error.strerror}); lower the setting "
                "shared_memory, or set it to 0"
            ) from error
        self.writer = Writer(share.descriptor, own, (begin, size), 0) if own is not None else None
        self._address = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._all))
        self._page_map = _open_page_map()
        # The blocks with references, and those whose last reference has gone.
        self._live: dict[int, _Lifeline] = {}
        self._gone: deque[_Lifeline] = deque()

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, span: Span) -> bytes:
        """Return a copy of a block.

        Raises:
            FrameError: it is not in the memory.
        """
        self._check(span)
        return self._all[span.begin : span.begin + span.length]

    def lend(self, span: Span) -> memoryview:
        """Return a block without a copy, to be read, and released before its writer may hear that it is free.

        Raises:
            FrameError: it is not in the memory.
        """
        self._check(span)
        return memoryview(self._all)[span.begin : span.begin + span.length].toreadonly()

    def view(self, span: Span) -> memoryview:
        """Return a block without a copy, to be read and written; it stays in place while there are references.

        Raises:
            FrameError: it is not in the memory.
        """
        self._check(span)
        owner = array_type(span.length, self._total - span.begin).from_buffer(self._all, span.begin)
        line = _Lifeline(owner, self._gone.append)
        line.span, line.kept, line.faults = span, False, _page_faults()
        self._live[span.begin] = line
        # As plain bytes: not every reader of buffers knows the format that ctypes gives them.
        return pickle.PickleBuffer(owner).raw()[: span.length]

    def copy(self, span: Span) -> bytearray:
        """Return a copy of a block as it was written, whatever `forward` has changed in a view of it.

        Raises:
            FrameError: it is not in the memory.
        """
        self._check(span)
        copied = bytearray(span.length)
        left = memoryview(copied)
        while left:
            # The kernel reads 2 GiB at most at a time.
            done = os.preadv(self._descriptor, [left], span.begin + span.length - len(left))
            if not done:
                raise frames.FrameError(f"a block of {span.length} bytes at {span.begin} is not in the memory")
            left = left[done:]
        return copied

    def _check(self, span: Span) -> None:
        if span.begin + span.length > self._total:
            raise frames.FrameError(f"a block of {span.length} bytes at {span.begin} is not in the memory")

    # -- writing -----------------------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block for the next stage, or for the client; None where there is no room."""
        return self.writer.put(data) if self.writer is not None else None

    def put_pieces(self, pieces: Sequence[bytes | memoryview], length: int) -> Span | None:
        """Write pieces behind each other as one block of `length` bytes; None where there is no room."""
        return self.writer.put_pieces(pieces, length) if self.writer is not None else None

    def take_back(self, spans: Sequence[Span]) -> None:
        """Free blocks of this worker of which the server has not been told."""
        self.freed([span.begin for span in spans])

    def freed(self, blocks: Sequence[int]) -> None:
        """Free blocks of this worker of which the server says that nobody needs them.

        Raises:
            FrameError: there are no such blocks.
        """
        try:
            for begin in blocks:
                if self.writer is None:
                    raise ArenaError("nothing was written")
                self.writer.free(begin)
        except ArenaError as error:
            raise frames.FrameError(f"the server frees a block that does not exist: {error}") from error

    # -- what the server is told -------------------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether references have gone since the last report."""
        return bool(self._gone)

    def report(self) -> bytes:
        """Return the frames that go before an answer: which blocks the worker keeps, and which kept ones it releases.

        Empty where the worker has no references any more when it answers, as is usual.
        """
        if not (self._gone or self._live):
            return b""
        released = []
        while self._gone:
            line = self._gone.popleft()
            if line.faults != _page_faults():
                self._drop_changes(line.span)
            del self._live[line.span.begin]
            if line.kept:
                released.append(line.span.begin)
        # Some belong to tasks that are not answered yet; to report those as kept does no harm.
        kept = [line for line in list(self._live.values()) if not line.kept]
        for line in kept:
            line.kept = True
        told = b""
        if released:
            told += frames.encode_blocks(frames.Released(released))
        if kept:
            told += frames.encode_blocks(frames.Kept([line.span.begin for line in kept]))
        return told

    def _drop_changes(self, span: Span) -> None:
        """Drop the pages of a block that `forward` has written to, so that the file's own pages show again."""
        size = pages(span.length)
        if self._page_map is not None:
            first = (self._address + span.begin) // PAGE
            entries = os.pread(self._page_map, size // PAGE * 8, first * 8)
            if len(entries) == size // PAGE * 8 and not entries[7::8].translate(None, _UNCHANGED):
                return
        self._all.madvise(mmap.MADV_DONTNEED, span.begin, size)


def _page_faults() -> int:
    """Return how many page faults the threads of this process have had."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _open_page_map() -> int | None:
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        logger.debug("all pages of shared memory are dropped after use: %s", error)
        return None
