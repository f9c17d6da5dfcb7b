"""Answers that clients do not take.

gRPC keeps an answer until its client has taken it, however long that is, and a call cannot be ended while it does. So
the bytes of such answers are counted for each connection, and where there are too many of them, or none is taken for
too long, the connection itself is ended: beneath gRPC, which has no means to do so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

from mosec_asgi import log
from mosec_asgi.lazy_timer import later
from mosec_asgi.ration import Ration
from mosec_asgi.web.budget import NO_ROOM_UNREAD, NOT_READ, UnreadBudget
from mosec_asgi.web.limits import Limits

logger = log.internal_logger(__name__)


class Unread:
    """All answers of a server that are not taken yet.

    Attributes:
        ration: logs what clients cause.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin with none.

        Args:
            limits: of the bytes, and of the time.
        """
        self.limits = limits
        self.budget = UnreadBudget(limits.answer_memory, limits.least_rate)
        self.ration = Ration(logger, later)
        self._connections: dict[str, Connection] = {}

    def made(self, peer: str, size: int) -> Connection:
        """Note that there is an answer for a client; `Connection.took` is to be called when it is taken.

        Args:
            peer: the client's end of the connection, as gRPC names it.
            size: bytes.
        """
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = Connection(self, peer)
        connection.made(size)
        return connection

    def forget(self, peer: str) -> None:
        """Note that nothing lies there for a client."""
        del self._connections[peer]


class Connection:
    """What lies on one connection."""

    def __init__(self, unread: Unread, peer: str) -> None:
        """Begin with nothing.

        Args:
            unread: of all connections.
            peer: the client's end.
        """
        self._unread = unread
        self._peer = peer
        self._size = 0
        # Answers, and those of them that wait for the client alone.
        self._count = self._sending = 0
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()
        self._timer = self._loop.call_later(unread.limits.stall_timeout, self._look)

    def size_unread(self) -> int:
        """Return the bytes that lie here."""
        return self._size

    def made(self, size: int) -> None:
        """Note an answer; this may end connections."""
        self._size += size
        self._count += 1
        for connection in self._unread.budget.hold(self, size, self._loop.time()):
            assert isinstance(connection, Connection)
            connection.end(NO_ROOM_UNREAD)

    def sends(self) -> None:
        """Note that an answer is offered to the client."""
        if not self._sending:
            self._moved = self._loop.time()
        self._sending += 1

    def took(self, size: int, *, sent: bool = True) -> None:
        """Note that the client has taken an answer, or never will; `sent` is whether it was offered."""
        self._size -= size
        self._count -= 1
        self._sending -= sent
        self._moved = self._loop.time()
        if not self._count:
            self._timer.cancel()
            self._unread.budget.release(self)
            self._unread.forget(self._peer)

    def end(self, why: str) -> None:
        """End the connection; gRPC then ends its calls."""
        self._unread.ration.log(logging.WARNING, "%s (%s)", why, self._peer)
        shut(self._peer)

    def _look(self) -> None:
        # The largest answer may be all there is, and gRPC does not tell how much of it is taken.
        limits = self._unread.limits
        left = limits.stall_timeout
        if self._sending:
            left += self._moved + self._size / limits.least_rate - self._loop.time()
        if left <= 0:
            self.end(NOT_READ)
            left = limits.stall_timeout
        self._timer = self._loop.call_later(max(left, 0.01), self._look)


def shut(peer: str) -> None:
    """Shut the connection of this process with a client, whoever has made it.

    Args:
        peer: such as "ipv4:127.0.0.1:4242", or "ipv6:%5B::1%5D:4242".
    """
    address, _, port = peer.replace("%5B", "").replace("%5D", "").partition(":")[2].rpartition(":")
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            # A copy: by itself, the number may be that of another file by now.
            copy = os.dup(int(name))
            try:
                connection = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                raise
            with connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                # A socket of IPv6 may have clients of IPv4.
                host, number = connection.getpeername()[:2]
                if (host.removeprefix("::ffff:"), number) == (address, int(port)):
                    connection.shutdown(socket.SHUT_RDWR)
                    return
