"""The event loop's end of a pipe: what it keeps when it is closed, and what it sees when it looks."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from fakes import PATIENCE, settled_loop, until

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


class Pipe:
    """A pipe, and what the server hears through it."""

    def __init__(self, **options: Any) -> None:
        ours, self.theirs = socket.socketpair()
        self.heard: list[Frame | str] = []
        self.channel = Channel(ours, self.heard.append, self.heard.append, **options)
        self.channel.open(asyncio.get_running_loop())

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()


@pytest.fixture
async def pipe() -> AsyncIterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


async def test_what_cannot_be_written_is_told_in_a_later_turn_and_once(pipe: Pipe) -> None:
    pipe.theirs.close()
    for _ in range(3):
        pipe.channel.send(encode_ready())
    pipe.channel.finish()
    assert pipe.heard == [], "whoever writes may be in the middle of a change"
    await until(lambda: pipe.heard)
    await settled_loop()
    (reason,) = pipe.heard
    assert isinstance(reason, str)
    assert "it failed" in reason
    assert (pipe.channel.busy_poll(0.0), pipe.channel.drain()) == (False, None)


async def test_the_end_of_the_pipe_is_heard_after_what_was_said_before_it(pipe: Pipe) -> None:
    pipe.theirs.sendall(encode_ready())
    pipe.theirs.close()
    await until(lambda: len(pipe.heard) == 2)
    assert pipe.heard == [Ready(), ""]


async def test_garbage_ends_the_pipe_and_nothing_after_it_is_heard(pipe: Pipe) -> None:
    pipe.theirs.sendall(encode_ready() + b"\xff" * 100 + encode_ready())
    await until(lambda: len(pipe.heard) == 2)
    await settled_loop()
    assert pipe.heard[0] == Ready()
    assert str(pipe.heard[1]).startswith("garbage came from it: no frame")
    assert len(pipe.heard) == 2


async def test_what_the_pipe_has_no_room_for_is_sent_later_in_order(pipe: Pipe) -> None:
    texts = [bytes([number]) * 300_000 for number in range(10)]
    for text in texts:
        pipe.channel.send(text)
    pipe.theirs.setblocking(False)
    taken = b""
    while len(taken) < 3_000_000:
        taken += await asyncio.get_running_loop().sock_recv(pipe.theirs, 1 << 20)
    assert taken == b"".join(texts)


class Interrupted(socket.socket):
    """Lets another thread run to its end while it reads, as Python may at any system call."""

    other: Callable[[], object]

    def recv_into(self, *arguments: Any) -> int:
        size = super().recv_into(*arguments)
        thread = threading.Thread(target=self.other)
        thread.start()
        thread.join(PATIENCE)
        return size


async def test_channels_of_several_threads_do_not_write_over_what_the_others_read() -> None:
    ours, theirs = socket.socketpair()
    reads = Interrupted(fileno=ours.detach())
    heard: list[Frame | str] = []
    others: list[Frame | str] = []

    async def read_another() -> None:
        one, two = socket.socketpair()
        channel = Channel(one, others.append, others.append)
        channel.open(asyncio.get_running_loop())
        two.sendall(b"no frame, but as long as one: " * 10)
        channel.drain()
        channel.close()
        two.close()

    def other() -> None:
        asyncio.run(read_another())

    reads.other = other
    channel = Channel(reads, heard.append, heard.append)
    channel.open(asyncio.get_running_loop())
    theirs.sendall(encode_ready())
    channel.drain()
    channel.close()
    theirs.close()
    assert heard == [Ready()]
    assert len(others) == 1
    assert "garbage" in str(others[0])


async def test_a_channel_that_is_closed_says_and_hears_nothing(pipe: Pipe) -> None:
    pipe.theirs.sendall(encode_ready())
    pipe.channel.close()
    pipe.channel.close()
    pipe.channel.send(encode_ready())
    pipe.channel.finish()
    pipe.channel.drain()
    await settled_loop()
    assert pipe.heard == []


# -- busy polling, which needs uvloop ----------------------------------------------------------------------------------


def on_uvloop(test: Callable[[Pipe], Coroutine[None, None, None]]) -> None:
    """Run a test with a pipe at which the server may look."""

    async def main() -> None:
        pipe = Pipe(busy_polls=True)
        # The loop takes new descriptors into its epoll when it waits.
        await asyncio.sleep(0.001)
        try:
            await test(pipe)
        finally:
            pipe.close()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_look_takes_in_what_is_there() -> None:
    async def test(pipe: Pipe) -> None:
        pipe.theirs.sendall(encode_ready() * 2)
        assert pipe.channel.busy_poll(PATIENCE) is True
        assert pipe.heard == [Ready(), Ready()]

    on_uvloop(test)


def test_a_look_takes_in_what_comes_meanwhile_and_ends_with_it() -> None:
    async def test(pipe: Pipe) -> None:
        sender = threading.Timer(0.05, pipe.theirs.sendall, [encode_ready()])
        sender.start()
        began = time.monotonic()
        assert pipe.channel.busy_poll(PATIENCE) is True
        assert pipe.heard == [Ready()]
        assert time.monotonic() - began < PATIENCE
        sender.join()

    on_uvloop(test)


def test_a_look_in_vain_ends_with_its_time() -> None:
    async def test(pipe: Pipe) -> None:
        assert pipe.channel.busy_poll(0.01) is False
        assert pipe.heard == []

    on_uvloop(test)


def test_a_look_ends_when_other_work_comes_for_the_loop() -> None:
    async def test(pipe: Pipe) -> None:
        loop, read = asyncio.get_running_loop(), asyncio.Event()
        here, there = socket.socketpair()
        with here, there:
            loop.add_reader(here, read.set)
            await asyncio.sleep(0.001)
            there.sendall(b"1")
            assert pipe.channel.busy_poll(PATIENCE) is None
            await asyncio.wait_for(read.wait(), PATIENCE)
            assert pipe.channel.busy_poll(PATIENCE) is None, "it is still there"
            pipe.theirs.sendall(encode_ready())
            assert pipe.channel.busy_poll(PATIENCE) is True, "which goes first"
            loop.remove_reader(here)

    on_uvloop(test)


def test_a_look_hears_of_the_end_of_the_pipe() -> None:
    async def test(pipe: Pipe) -> None:
        pipe.theirs.close()
        assert pipe.channel.busy_poll(PATIENCE) is True
        assert pipe.heard == [""], "in good order"
        assert pipe.channel.busy_poll(PATIENCE) is False, "there is nothing to look at any more"

    on_uvloop(test)


@pytest.mark.parametrize("busy_polls", [False, True])
async def test_nobody_looks_where_the_other_side_cannot_run_meanwhile_or_the_loop_is_another(busy_polls: bool) -> None:
    pipe = Pipe(busy_polls=busy_polls)
    pipe.theirs.sendall(encode_ready())
    assert pipe.channel.busy_poll(PATIENCE) is False
    pipe.close()
