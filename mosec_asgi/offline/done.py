"""Which lines have been done: one bit for each. Pure."""

from __future__ import annotations


class Done:
    """A set of line numbers, from 1. A million lines take 125 kB, whichever of them are in it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._bits = bytearray()
        self._count = 0

    def add(self, number: int) -> bool:
        """Add a line; False where it is there already."""
        place, bit = number >> 3, 1 << (number & 7)
        if place >= len(self._bits):
            self._bits.extend(bytes(place + 1 - len(self._bits)))
        if self._bits[place] & bit:
            return False
        self._bits[place] |= bit
        self._count += 1
        return True

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] & (1 << (number & 7)))

    def __len__(self) -> int:
        return self._count
