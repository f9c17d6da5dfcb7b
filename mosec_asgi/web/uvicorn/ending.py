"""The end of a connection on which something is still to come, from either side.

*Lingering.* A socket that is closed with something unread in it makes the kernel reset the connection, and the client
loses the answer that is on its way. So an answer to a request that was not read to its end is followed by an end of
sending, and what still comes is read and dropped, for a while: see `limits.LINGER_SECONDS`.

*Half-closed.* A client that has ended its sending may wait for its answers, or be gone; no system call tells which. But
something sent to a client that is gone is answered by a reset, which is looked for from time to time.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

from mosec_asgi.web.limits import LINGER_SECONDS, LINGER_SILENCE_SECONDS
from mosec_asgi.web.uvicorn.keep_alive import is_late

# Seconds after which it is first looked for whether a client that has ended its sending is there at all, and the most
# between two looks.
FIRST_LOOK_SECONDS = 0.02
MOST_LOOK_SECONDS = 1.0


class Lingering:
    """The time from the last answer of a connection to its end, in which all that comes is dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
        """Begin; `end` is called when the client has been silent for long enough, or the time is over."""
        self._loop = loop
        self._end = end
        self._until = loop.time() + LINGER_SECONDS
        self._timer = loop.call_later(LINGER_SILENCE_SECONDS, self._look)
        # No more time is given.
        self._last = False

    def heard(self) -> None:
        """Note that the client still sends."""
        # Once the time is over, whoever sends without a pause must not put the end off by that.
        if self._loop.time() < self._until:
            self._look_later()

    def hurry(self, seconds: float) -> None:
        """End within so many seconds, whatever the client sends."""
        self._until = min(self._until, self._loop.time() + seconds)
        self._look_later()

    def stop(self) -> None:
        """Wait no more."""
        self._timer.cancel()

    def _look(self) -> None:
        """End, unless the process was stopped: what the client has sent meanwhile has not been read yet."""
        if is_late(self._timer, self._loop) and not self._last:
            self._last = self._loop.time() >= self._until
            self._look_later()
        else:
            self._end()

    def _look_later(self) -> None:
        self._timer.cancel()
        # At least the resolution of uvloop's timers, so that the sockets are read before it is over.
        seconds = max(0.001, min(LINGER_SILENCE_SECONDS, self._until - self._loop.time()))
        self._timer = self._loop.call_later(seconds, self._look)


class HalfClosed:
    """Looks whether a client that has ended its sending, and was sent something since, is gone."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look."""
        self._transport = transport
        self._loop = loop
        self._timer = loop.call_later(FIRST_LOOK_SECONDS, self._look, FIRST_LOOK_SECONDS)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self, waited: float) -> None:
        """Close the connection if its client is gone, else look again later."""
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        if poll.poll(0):
            self._transport.abort()
        else:
            again = min(2 * waited, MOST_LOOK_SECONDS)
            self._timer = self._loop.call_later(again, self._look, again)
