"""The event loop's end of a pipe: what it keeps when it is closed."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.frames import Frame


class Listener:
    """Has a channel, and hears of it, as a worker's supervisor does."""

    def __init__(self, sock: socket.socket) -> None:
        self.reasons: list[str] = []
        self.channel = Channel(sock, self.heard, self.reasons.append)

    def heard(self, frame: Frame) -> None:
        raise AssertionError(frame)


async def test_a_channel_that_is_closed_does_not_keep_its_listener_in_memory() -> None:
    ours, theirs = socket.socketpair()
    listener = Listener(ours)
    listener.channel.open(asyncio.get_running_loop())
    # Bytes that were read last, and are no whole frame.
    theirs.sendall(b"ma")
    listener.channel.drain()
    theirs.close()
    listener.channel.drain()
    assert listener.reasons == ["it was closed in the middle of a frame, 2 bytes in"]

    freed = weakref.ref(listener)
    gc.disable()
    try:
        del listener
        assert freed() is None
    finally:
        gc.enable()
