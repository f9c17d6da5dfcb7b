"""Silent connections are closed, but not one whose request has come and was not yet read.

uvicorn closes a connection on which nothing has come for `timeout_keep_alive` seconds, 5 by default, with a timer of
the event loop. When uvloop has handled what came from its sockets, or has waited in vain, it runs the timers that are
due before it looks at the sockets again. So where the process stood still meanwhile until that time was over (a loaded
machine, a suspended one), connections were closed whose requests had come and were not read. The kernel tells that to
their clients by a reset, and they cannot know that nothing was run.
"""

from __future__ import annotations

import asyncio
import select


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether something has come on a connection, or its end, that the event loop has not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing():
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class KeepAlive:
    """A base of uvicorn's protocols, before theirs: the timer leaves a connection alone that is about to be read."""

    transport: asyncio.Transport

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing has come for long enough."""
        # What has come stops the timer when it is read.
        if not has_unread(self.transport):
            super().timeout_keep_alive_handler()  # type: ignore[misc]
