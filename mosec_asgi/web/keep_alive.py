"""Silent connections are closed, but not one whose request has come and was not yet read.

uvicorn closes a connection on which nothing has come for `timeout_keep_alive` seconds, 5 by default, with a timer of
the event loop. When uvloop has handled what came from its sockets, or has waited in vain, it runs the timers that are
due before it looks at the sockets again. So where the process stood still meanwhile until that time was over (a loaded
machine, a suspended one), connections were closed whose requests had come and were not read. The kernel tells that to
their clients by a reset, and they cannot know that nothing was run.

So the timer looks whether something lies there unread. And where it is late, the client may have stood still as well,
on the same machine: it is given its time again.
"""

from __future__ import annotations

import asyncio
import select

# A timer that is late by so many seconds tells that the process stood still; a turn of the loop takes milliseconds.
LATE_SECONDS = 0.1


def is_late(timer: asyncio.TimerHandle, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a timer that runs now should have run long ago."""
    return loop.time() - timer.when() > LATE_SECONDS


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether something has come on a connection, or its end, that the event loop has not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing():
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class KeepAlive:
    """A base of uvicorn's protocols, before theirs: the timer closes silent connections, and only those."""

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
        # What lies there stops the timer when it is read.
        elif not has_unread(self.transport):
            super().timeout_keep_alive_handler()  # type: ignore[misc]
