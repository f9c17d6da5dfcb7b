"""Closes silent connections, but none whose request has come and was not read yet.

uvicorn closes a connection on which nothing has come for `timeout_keep_alive` seconds, 5 by default, with a timer of
the event loop. uvloop runs timers that are due before it looks at the sockets again. So if the process was stopped
until that time was over (by a loaded or suspended machine), connections were closed whose requests had come and were
not read. The kernel sends their clients a reset, and they cannot know that nothing was run.

So the timer checks whether there is unread data. And if the timer is late, the client may have been stopped as well, on
the same machine, so it gets its whole time again.
"""

from __future__ import annotations

import asyncio
import select

# A timer that is late by so many seconds shows that the process was stopped; a turn of the loop takes milliseconds.
LATE_SECONDS = 0.1


def is_late(timer: asyncio.TimerHandle, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a timer that runs now is late."""
    return loop.time() - timer.when() > LATE_SECONDS


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection has data, or its end, that the event loop has not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing():
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class SilenceTimer:
    """Closes a connection that is silent for too long.

    A timer that goes off too early, because there was a request meanwhile, is set again for the time that is left. So
    no request has to make or cancel a timer.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Set nothing yet.

        Args:
            transport: is closed.
            seconds: that the connection may be silent.
            loop: the transport's.
        """
        self._transport = transport
        self._seconds = seconds
        self._loop = loop
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Note that it is silent from now on."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """Note that something has come."""
        self._since = None

    def stop(self) -> None:
        """Cancel the timer."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        timer, self._timer = self._timer, None
        if self._since is None or timer is None:
            return
        if is_late(timer, self._loop):
            self.begin()
            return
        left = self._since + self._seconds - self._loop.time()
        if left > 0:
            # At least the resolution of uvloop's timers: a shorter timer would go off at once, again and again.
            self._timer = self._loop.call_later(max(left, 0.001), self._look)
        # The unread data ends the silence when it is read.
        elif not has_unread(self._transport):
            self._transport.close()


class KeepAlive:
    """A mixin for uvicorn's protocols: its timer closes silent connections, and only those."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    timeout_keep_alive: int
    timeout_keep_alive_task: asyncio.TimerHandle | None

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing has come for long enough."""
        timer = self.timeout_keep_alive_task
        if timer is not None and is_late(timer, self.loop):
            again = self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, again)
        # The unread data stops the timer when it is read.
        elif not has_unread(self.transport):
            super().timeout_keep_alive_handler()  # type: ignore[misc]
