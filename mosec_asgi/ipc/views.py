"""Objects of the server's own program that lie in shared memory: what `infer` has returned, without a copy.

An object holds the buffer that it was made from, and that holds an object here. When it dies the last reference to its
block is gone. That may be in any thread and at any moment, in the middle of the books above all, so it is only noted;
the books follow on the event loop.

Nobody else reads such a block any more: it was written for the caller alone. So it may be written to, as what a caller
is given always can. How much a program can keep this way is bounded: it lies in the region of the worker that has made
it. What finds no room there goes through the pipe, and is a copy of the caller's own.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import weakref
from collections import deque
from collections.abc import Callable

from mosec_asgi.ipc.ledger import Block


class _Lifeline(weakref.ref["ctypes.Array[ctypes.c_ubyte]"]):
    """Knows when the last reference to a block has gone."""

    __slots__ = ("block",)
    block: Block


class Views:
    """The blocks in which objects of this program lie."""

    def __init__(self, mapping: mmap.mmap, total: int, on_gone: Callable[[Block], None]) -> None:
        """Begin with none.

        Args:
            mapping: the shared memory.
            total: its size in bytes.
            on_gone: called by `release` with each block that has no references any more.
        """
        self._mapping = mapping
        self._total = total
        self._on_gone = on_gone
        # Called in any thread when there is something to `release`; must not raise.
        self.tell: Callable[[], None] | None = None
        self._live: dict[int, _Lifeline] = {}
        self._gone: deque[_Lifeline] = deque()
        self._told = False

    def view(self, block: Block, length: int) -> memoryview:
        """Return the first `length` bytes of a block; they stay there as long as there are references to them."""
        owner = array_type(length, self._total - block.begin).from_buffer(self._mapping, block.begin)
        line = _Lifeline(owner, self._note)
        line.block = block
        self._live[block.begin] = line
        # As plain bytes: ctypes has a format of its own, which not everybody reads.
        return pickle.PickleBuffer(owner).raw()[:length]

    def release(self) -> None:
        """Let go of the blocks whose last references have gone."""
        self._told = False
        while self._gone:
            line = self._gone.popleft()
            del self._live[line.block.begin]
            self._on_gone(line.block)

    def _note(self, line: weakref.ref[ctypes.Array[ctypes.c_ubyte]]) -> None:
        assert isinstance(line, _Lifeline)
        self._gone.append(line)
        if not self._told and self.tell is not None:
            self._told = True
            self.tell()


def array_type(length: int, room: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    """Return a type for at least `length` bytes, one of a few: each is a class, which costs time and memory."""
    rounded = 1 << (length - 1).bit_length()
    return ctypes.c_ubyte * (rounded if rounded <= room else room)
