"""The bytes of bodies that a service holds, for all requests together. Pure."""

from __future__ import annotations


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

    def take(self, size: int) -> bool:
        """Take bytes, all or none; return whether there were enough."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size
