"""The event loop's end of a pipe: what it keeps when it is closed, and what it sees when it looks."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from fakes import PATIENCE

from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.frames import Frame, Ready, encode_ready


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


# -- busy polling ------------------------------------------------------------------------------------------------------


class Pipe:
    """A pipe, and what the server hears through it."""

    def __init__(self, **options: Any) -> None:
        ours, self.theirs = socket.socketpair()
        self.heard: list[Frame | str] = []
        self.channel = Channel(ours, self.heard.append, self.heard.append, **options)
        self.channel.open(asyncio.get_running_loop())


@pytest_asyncio.fixture
async def pipe() -> AsyncIterator[Pipe]:
    pipe = Pipe(busy_polls=True)
    yield pipe
    pipe.channel.close()
    pipe.theirs.close()


async def test_a_look_takes_in_what_is_there(pipe: Pipe) -> None:
    pipe.theirs.sendall(encode_ready() * 2)
    assert pipe.channel.busy_poll(0.0)
    assert pipe.heard == [Ready(), Ready()]


async def test_a_look_takes_in_what_comes_meanwhile_and_ends_with_it(pipe: Pipe) -> None:
    began = time.monotonic()
    sender = threading.Timer(0.05, pipe.theirs.sendall, [encode_ready()])
    sender.start()
    assert pipe.channel.busy_poll(PATIENCE)
    assert pipe.heard == [Ready()]
    assert time.monotonic() - began < PATIENCE
    sender.join()


async def test_a_look_in_vain_ends_with_its_time(pipe: Pipe) -> None:
    assert not pipe.channel.busy_poll(0.01)
    assert pipe.heard == []


async def test_a_look_hears_of_the_end_of_the_pipe(pipe: Pipe) -> None:
    pipe.theirs.close()
    assert pipe.channel.busy_poll(PATIENCE)
    assert pipe.heard == ["it was closed"]
    assert not pipe.channel.busy_poll(PATIENCE), "there is nothing to look at any more"


async def test_nobody_looks_where_the_other_side_cannot_run_meanwhile() -> None:
    pipe = Pipe()
    pipe.theirs.sendall(encode_ready())
    assert not pipe.channel.busy_poll(PATIENCE)
    pipe.channel.close()
    pipe.theirs.close()
