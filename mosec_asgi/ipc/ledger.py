"""The server's record of the blocks in shared memory: where they are, who wrote them, and who needs them. Pure.

The memory is one file that every process has from its start, so that no descriptor has to be passed later. It is
divided into regions of equal size. A region is written by one process, the server or one life of a worker, and read by
all. Its writer alone decides where in it a block goes (`ipc.arena`). The server learns of a worker's block when that
comes as a result, and decides when the block is free again:

- The *task* needs the block until the stage that reads it has answered, because the task is given to another worker
  if the first one dies.
- A *worker* needs the block from when it is sent the task until it answers. If `forward` has kept an array that lies
  there, the worker first says that it keeps the block, and later that the last reference is gone.
- When nobody needs the block, its writer is told, and may write there again.

Why not one allocator for all processes, in the shared memory itself? Because a process may die at any instruction. Here
nothing that it leaves half done matters: its allocator dies with it, and its region belongs to the server again. The
server forgets what a dead reader needed. The blocks of a dead writer stay readable where they are: its region is given
to another life only when the last of them is free, and lives that start meanwhile get other regions, of which there are
two for each worker. The server checks all that it is told against this record.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from mosec_asgi.ipc.arena import pages
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.ipc.reference import Span

# Writers are told of free blocks with their next tasks, which costs nothing, or at once if the blocks are at least this
# part of the region.
TELL_SHARE = 4


class Block:
    """A part of the memory that somebody needs.

    Attributes:
        begin: where it begins.
        length: bytes, whole pages.
        region: in which it lies.
        users: how many need it: its task, and workers that read it.
    """

    __slots__ = ("begin", "length", "region", "users")

    def __init__(self, begin: int, length: int, region: Region) -> None:
        self.begin = begin
        self.length = length
        self.region = region
        self.users = 1

    def __repr__(self) -> str:
        return f"<Block {self.begin} + {self.length}, {self.users} users>"


class Region:
    """The part of the memory that one process writes.

    Attributes:
        begin: where it begins.
        size: in bytes.
        blocks: those that somebody needs, by their beginnings.
        freed: blocks that nobody needs any more, of which the writer has not been told.
        over: called with each block that nobody needs any more, in place of noting it in `freed`.
        full: called when much of the region is in `freed`.
    """

    def __init__(self, begin: int, size: int) -> None:
        self.begin = begin
        self.size = size
        self.blocks: dict[int, Block] = {}
        self.freed: list[int] = []
        self.over: Callable[[int], None] | None = None
        self.full: Callable[[], None] | None = None
        self.closed = False
        self._freed_bytes = 0
        # Where the blocks begin, in order.
        self._begins: list[int] = []

    def add(self, spans: Sequence[Span]) -> list[Block]:
        """Note blocks that the writer has passed on.

        Raises:
            FrameError: they are not in its region, or overlap with other blocks; nothing is changed.
        """
        if len(spans) == 1:
            return [self._add(spans[0])]
        added: list[Block] = []
        try:
            for span in spans:
                added.append(self._add(span))
        except FrameError:
            for block in added:
                self.remove(block)
            raise
        return added

    def remove(self, block: Block) -> None:
        """Forget a block."""
        del self.blocks[block.begin]
        del self._begins[bisect_left(self._begins, block.begin)]

    def _add(self, span: Span) -> Block:
        """Note one block; raises as `add` does."""
        begin, length = span
        size = pages(length)
        end = begin + size
        if not self.begin <= begin < end <= self.begin + self.size:
            raise FrameError(f"a block of {length} bytes at {begin} is not in its writer's memory")
        begins = self._begins
        place = bisect_left(begins, begin)
        overlaps = place < len(begins) and begins[place] < end
        if place and not overlaps:
            before = self.blocks[begins[place - 1]]
            overlaps = before.begin + before.length > begin
        if overlaps:
            raise FrameError(f"a block of {length} bytes at {begin} lies where another one does")
        block = self.blocks[begin] = Block(begin, size, self)
        begins.insert(place, begin)
        return block

    def take_freed(self) -> list[int]:
        """Return the free blocks of which the writer has not been told, and forget them."""
        freed, self.freed, self._freed_bytes = self.freed, [], 0
        return freed

    def note_freed(self, block: Block) -> None:
        """Note that nobody needs a block any more."""
        if self.over is not None:
            self.over(block.begin)
            return
        self.freed.append(block.begin)
        self._freed_bytes += block.length
        if self.full is not None and self._freed_bytes * TELL_SHARE >= self.size:
            self.full()


class Ledger:
    """The regions, and the blocks that somebody needs.

    Attributes:
        in_use: bytes of those blocks.
        vacated: regions whose memory can be given back to the system; the caller that does so empties the list.
    """

    def __init__(self, region_size: int, regions: int) -> None:
        self.in_use = 0
        self.vacated: list[int] = []
        self._size = region_size
        self._vacant = [number * region_size for number in reversed(range(regions))]

    def open_region(self) -> Region | None:
        """Give a region to a new writer; None where there is none left."""
        return Region(self._vacant.pop(), self._size) if self._vacant else None

    def close_region(self, region: Region) -> None:
        """Note that the writer is dead; the region is given to another writer when nobody needs its blocks."""
        region.closed = True
        self._vacate(region)

    def wrote(self, region: Region, spans: Sequence[Span]) -> list[Block]:
        """Note blocks that their writer has passed on; they have one user each.

        Raises:
            FrameError: they are not in that writer's region; nothing is changed.
        """
        blocks = region.add(spans)
        for block in blocks:
            self.in_use += block.length
        return blocks

    def drop(self, blocks: Iterable[Block]) -> None:
        """Note that one user of each block does not need it any more."""
        for block in blocks:
            block.users -= 1
            if not block.users:
                region = block.region
                region.remove(block)
                self.in_use -= block.length
                if region.closed:
                    self._vacate(region)
                else:
                    region.note_freed(block)

    def _vacate(self, region: Region) -> None:
        if not region.blocks:
            self._vacant.append(region.begin)
            self.vacated.append(region.begin)


class _Use:
    """A block that a worker needs, and why."""

    __slots__ = ("answered", "block", "kept")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.kept = self.answered = False


class Reader:
    """What one life of a worker needs of the memory.

    Attributes:
        sent: the blocks of the tasks that it has not answered.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.sent: dict[int, Sequence[Block]] = {}
        self._ledger = ledger
        self._uses: dict[int, _Use] = {}

    def send(self, task_id: int, blocks: Sequence[Block]) -> None:
        """Note that it is sent a task whose payload lies in `blocks`; the caller has counted it among their users."""
        self.sent[task_id] = blocks
        for block in blocks:
            self._uses[block.begin] = _Use(block)

    def answered(self, ids: Iterable[int]) -> None:
        """Note that it has answered tasks: it needs no more of their blocks than those that it keeps."""
        uses = self._uses
        for task_id in ids:
            for block in self.sent.pop(task_id, ()):
                use = uses[block.begin]
                use.answered = True
                if not use.kept:
                    self._end(use)

    def keep(self, blocks: Iterable[int]) -> None:
        """Note that it keeps blocks beyond its answers.

        Raises:
            FrameError: it does not have one of them, or has said so before.
        """
        for begin in blocks:
            use = self._uses.get(begin)
            if use is None or use.kept:
                raise FrameError(f"keeps a block at {begin}, which it does not have or keeps already")
            use.kept = True

    def release(self, blocks: Iterable[int]) -> None:
        """Note that it keeps blocks no longer.

        Raises:
            FrameError: it did not keep one of them.
        """
        for begin in blocks:
            use = self._uses.get(begin)
            if use is None or not use.kept:
                raise FrameError(f"releases a block at {begin}, which it does not keep")
            use.kept = False
            if use.answered:
                self._end(use)

    def close(self) -> None:
        """Note that it is dead."""
        uses, self._uses = self._uses, {}
        self.sent.clear()
        self._ledger.drop(use.block for use in uses.values())

    def _end(self, use: _Use) -> None:
        del self._uses[use.block.begin]
        self._ledger.drop((use.block,))
