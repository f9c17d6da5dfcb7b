"""The pieces in which a body comes. Pure.

A client decides how small they are, and each is an object of its own: bodies that come two bytes at a time would take
twenty times what is counted of them. So many tiny ones that follow each other are joined; each byte is copied once for
that, and pieces of the usual size never.
"""

from __future__ import annotations

# Pieces that are looked at together, and the bytes of each, on an average, below which they are joined.
TOGETHER = 256
TINY = 1024


class BodyPieces(list["bytes | memoryview"]):
    """The pieces of one body, in the order in which they came; `add` them."""

    __slots__ = ("_looked_at",)

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        # How many at the beginning stay as they are.
        self._looked_at = 0

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""
        self.append(piece)
        if len(self) - self._looked_at >= TOGETHER:
            newest = self[self._looked_at :]
            if sum(map(len, newest)) < TOGETHER * TINY:
                self[self._looked_at :] = [b"".join(newest)]
            self._looked_at = len(self)
