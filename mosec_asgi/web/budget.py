"""The bytes of bodies that a service holds, for all requests together. Pure."""

from __future__ import annotations

# Bytes up to which a body always has room: such ones are bounded by `capacity`, and a few clients who hold all the room
# there is by large ones must not shut out those who ask for little.
SMALL = 16 * 1024


class Budget:
    """Bytes that may be taken, and are given back.

    Attributes:
        limit: the most that may be taken at one time.
        used: what is taken now.
    """

    def __init__(self, limit: int) -> None:
        """Begin with nothing taken."""
        self.limit = limit
        self.used = 0

    def has_room(self, size: int) -> bool:
        """Whether a body of so many bytes has room."""
        return size <= SMALL or self.used + size <= self.limit

    def take(self, size: int, held: int = 0) -> bool:
        """Take bytes, all or none; whether they were there.

        Args:
            size: how many.
            held: those that were taken for the same body before.
        """
        if size + held > SMALL and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size
