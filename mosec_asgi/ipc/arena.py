"""An allocator: which parts of a range of memory are taken. First fit, from the lowest address. Pure.

The lowest address comes first so that the same few pages are written again and again while they are in the processor's
cache, and the system need not provide pages that were never used. Blocks are whole pages and share none with their
neighbours, because workers map them as private copies (`ipc.mapped`).
"""

from __future__ import annotations

from bisect import bisect_left
from mmap import PAGESIZE

PAGE = PAGESIZE
# A payload of at least so many bytes goes through shared memory; copies of a smaller one cost less than bookkeeping.
LARGE = 64 * 1024


def pages(length: int) -> int:
    """Return `length` in bytes, rounded up to whole pages."""
    return -(-length // PAGE) * PAGE


class ArenaError(Exception):
    """There is no such block to free."""


class Arena:
    """The free and the taken parts of a range of memory; places count from its beginning.

    Attributes:
        size: of the range, in bytes.
        in_use: bytes that are taken, in whole pages.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.in_use = 0
        # Where the free parts begin, in order, and how long each is; no two touch.
        self._begins = [0] if size else []
        self._lengths = [size] if size else []
        self._taken: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Arena {self.in_use} of {self.size} bytes in use, {len(self._taken)} blocks>"

    def allocate(self, length: int) -> int | None:
        """Take a block of at least `length` bytes; return where it begins, or None where there is no room."""
        needed = pages(max(length, 1))
        for place, free in enumerate(self._lengths):
            if free >= needed:
                begin = self._begins[place]
                if free == needed:
                    del self._begins[place], self._lengths[place]
                else:
                    self._begins[place] += needed
                    self._lengths[place] -= needed
                self._taken[begin] = needed
                self.in_use += needed
                return begin
        return None

    def free(self, begin: int) -> None:
        """Give a block back.

        Raises:
            ArenaError: no taken block begins there.
        """
        length = self._taken.pop(begin, None)
        if length is None:
            raise ArenaError(f"no block begins at {begin}")
        self.in_use -= length
        place = bisect_left(self._begins, begin)
        self._begins.insert(place, begin)
        self._lengths.insert(place, length)
        self._join(place)
        if place:
            self._join(place - 1)

    def _join(self, place: int) -> None:
        """Join a free part with the next one, if they touch."""
        if place + 1 < len(self._begins) and self._begins[place] + self._lengths[place] == self._begins[place + 1]:
            self._lengths[place] += self._lengths[place + 1]
            del self._begins[place + 1], self._lengths[place + 1]
