"""The bytes that a service holds for all its clients together: bodies, and answers that are not read. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

# Bytes up to which a body always has room: such ones are bounded by `capacity`, and a few clients who hold all the room
# there is by large ones must not shut out those who ask for little.
SMALL = 16 * 1024
# Why a connection is ended.
NOT_READ = "a connection is ended, because its client does not read what it is answered"
NO_ROOM_UNREAD = f"{NOT_READ}, and unread answers take more than the setting `answer_memory`"


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


class Unread(Hashable, Protocol):
    """A connection on which answers lie that its client has not taken."""

    def size_unread(self) -> int:
        """Return the bytes that lie there."""


@dataclass(slots=True)
class _Lying:
    """What lies on a connection.

    Attributes:
        since: when it began to lie there, in seconds.
        brought: all bytes that were written since then.
        size: those that lay there at the last look.
        several: they are more than what was brought last.
    """

    since: float
    brought: int = 0
    size: int = 0
    several: bool = False


class UnreadBudget:
    """Bytes of answers that may lie unread, on all connections together.

    Where there are more, the connections are ended whose clients have taken least for the time that they had: those
    that read are safe from those that do not. One answer has room beside all others, however large it is.
    """

    def __init__(self, limit: int, least_rate: int) -> None:
        """Begin with nothing unread.

        Args:
            limit: bytes.
            least_rate: bytes a second that a client is expected to take.
        """
        self.limit = limit
        # Bytes that lay there at the last look at each connection.
        self.used = 0
        self._least_rate = least_rate
        self._lying: dict[Unread, _Lying] = {}

    def hold(self, connection: Unread, size: int, now: float) -> list[Unread]:
        """Take note that an answer, or the rest of one, lies on a connection.

        Args:
            connection: where it lies.
            size: bytes.
            now: seconds, of any clock.

        Returns:
            the connections to end, whose bytes are no longer counted.
        """
        lying = self._lying.get(connection)
        if lying is None:
            lying = self._lying[connection] = _Lying(now)
        lying.several = lying.size > 0
        lying.brought += size
        lying.size += size
        self.used += size
        return [] if self.used <= self.limit else self._excess(connection, now)

    def release(self, connection: Unread) -> None:
        """Take note that all was taken, or that the connection is gone."""
        lying = self._lying.pop(connection, None)
        if lying is not None:
            self.used -= lying.size

    def _excess(self, newest: Unread, now: float) -> list[Unread]:
        self.used = 0
        for connection, lying in self._lying.items():
            lying.size = connection.size_unread()
            self.used += lying.size
        alone = not self._lying[newest].several
        # Beside an answer that has just been written: one that is large must not drive out all others.
        own = self._lying[newest].size if alone else 0
        if self.used - own <= self.limit:
            return []
        behind = sorted(
            (connection for connection in self._lying if not (alone and connection is newest)),
            key=lambda connection: self._behind(self._lying[connection], now),
        )
        ended: list[Unread] = []
        # Some more, so that not each further answer looks at all connections.
        while behind and self.used - own > self.limit * 3 // 4:
            ended.append(behind.pop())
            self.release(ended[-1])
        return ended

    def _behind(self, lying: _Lying, now: float) -> float:
        """Return how many bytes a client is behind."""
        return (now - lying.since) * self._least_rate - max(0, lying.brought - lying.size)
