"""Clients that are slow: to send a request, and to take what they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Protocol, cast

from uvicorn.protocols.http.flow_control import FlowControl

from mosec_asgi.web import budget
from mosec_asgi.web.budget import NO_ROOM_UNREAD, NOT_READ
from mosec_asgi.web.limits import Limits, Patience
from mosec_asgi.web.uvicorn.keep_alive import is_late
from mosec_asgi.web.uvicorn.shared import Shared

# The resolution of uvloop's timers, in seconds: a shorter timer would go off at once, again and again.
LEAST_SECONDS = 0.001


class Connection(Protocol):
    """What is asked of a connection."""

    limits: ClassVar[Limits]
    shared: ClassVar[Shared]
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl


class Arrival:
    """The arrival of a request that does not come whole with one read.

    Attributes:
        in_head: the head is awaited.
    """

    def __init__(self, connection: Connection, on_over: Callable[[], None], *, in_head: bool) -> None:
        """Begin to wait.

        Args:
            connection: whose limits and loop these are.
            on_over: called when the time is over.
            in_head: the head is awaited, not the body.
        """
        self.in_head = in_head
        self._connection = connection
        self._on_over = on_over
        self._patience = Patience(connection.limits, connection.loop.time())
        self._timer = connection.loop.call_later(connection.limits.read_timeout, self._look)

    def brought(self, size: int) -> None:
        """Take note of bytes of a body that have come."""
        self._patience.arrived(size, self._connection.loop.time())

    def stop(self) -> None:
        """Wait no more."""
        self._timer.cancel()

    def _look(self) -> None:
        connection, loop = self._connection, self._connection.loop
        if is_late(self._timer, loop) or connection.flow.read_paused:
            # Data has come and was not read, for which the client is not to blame.
            self._patience = Patience(connection.limits, loop.time())
        left = self._patience.until - loop.time()
        if left > 0:
            self._timer = loop.call_later(max(left, LEAST_SECONDS), self._look)
        else:
            self._on_over()


class Unread:
    """What lies on a connection for a client that does not read it, from when writing has to pause."""

    def __init__(self, connection: Connection, on_over: Callable[[str], None]) -> None:
        """Set nothing yet.

        Args:
            connection: where it lies.
            on_over: called, with the reason, when the client has taken next to nothing for too long, or when the
                answers that lie unread on all connections are too many.
        """
        self._connection = connection
        self._on_over = on_over
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look from now on, if nobody looks yet."""
        if self._timer is None:
            self._look(None)
        give_room(self._connection.shared, self, self.size_unread(), self._connection.loop.time())

    def end(self) -> None:
        """Take note that all was taken."""
        self._connection.shared.unread.release(self)

    def stop(self) -> None:
        """Look no more."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()

    def size_unread(self) -> int:
        """Return the bytes that lie there."""
        return self._connection.transport.get_write_buffer_size()

    def give_up(self) -> None:
        """End the connection, for the room that its answers take."""
        self._on_over(NO_ROOM_UNREAD)

    def _look(self, before: int | None) -> None:
        """Compare with what lay there `stall_timeout` ago."""
        self._timer = None
        connection = self._connection
        # A connection that is to be closed waits for that as well.
        if not connection.flow.write_paused:
            return
        size, seconds = connection.transport.get_write_buffer_size(), connection.limits.stall_timeout
        if before is not None and before - size < connection.limits.least_rate * seconds:
            self._on_over(NOT_READ)
        else:
            self._timer = connection.loop.call_later(seconds, self._look, size)


class _Ends(budget.Unread, Protocol):
    """A connection on which answers lie, and which can be ended."""

    def give_up(self) -> None:
        """End the connection."""


def give_room(shared: Shared, connection: _Ends, size: int, now: float) -> None:
    """Count what lies on a connection, and end those that take too much of the room for all."""
    for ended in shared.unread.hold(connection, size, now):
        cast(_Ends, ended).give_up()
