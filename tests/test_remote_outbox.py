"""What one side of an engine's connection says: gathered by turns, and in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import until

from mosec_asgi.ipc.channel import Channel
from mosec_asgi.remote import frames, outbox
from mosec_asgi.remote.outbox import Outbox


class Ends:
    """An outbox, and what the other side hears, frame by frame."""

    def __init__(self, last: Any) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self.heard: list[list[Any]] = []
        self.failed: list[Any] = []
        self.theirs = Channel(theirs, self.heard.append, lambda _: None, decoder=frames.Decoder())
        self.theirs.open(loop)
        self.ours = Channel(ours, lambda _: None, lambda _: None)
        self.ours.open(loop)
        self.outbox = Outbox(self.ours, loop, self.on_failed, last)

    def on_failed(self, entry: Any, error: ValueError) -> None:
        self.failed.append(entry)
        self.outbox.say("failed")


@asynccontextmanager
async def joined(last: Any = lambda: None) -> AsyncIterator[Ends]:
    ends = Ends(last)
    try:
        yield ends
    finally:
        ends.outbox.close()
        ends.ours.close()
        ends.theirs.close()


async def test_what_is_said_in_one_turn_is_one_frame_with_what_was_to_be_said_with_it() -> None:
    last = [[7], [], [8]]
    async with joined(lambda: last.pop(0)) as ends:
        ends.outbox.say(1)
        ends.outbox.say(2)
        assert not ends.outbox.is_clear
        await until(lambda: ends.heard, "a frame comes")
        assert ends.outbox.is_clear
        ends.outbox.flush_soon()
        ends.outbox.say(3)
        await until(lambda: len(ends.heard) == 2, "another comes")
        # There is nothing else to say.
        ends.outbox.flush_soon()
        await until(lambda: len(ends.heard) == 3, "the last comes")
        assert ends.heard == [[1, 2, [7]], [3], [[8]]]


async def test_what_may_wait_goes_with_what_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LATER_SECONDS", 1000.0)
    async with joined() as ends:
        ends.outbox.say_later("later", 0.4)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ends.outbox.say("now")
        await until(lambda: ends.heard, "a frame comes")
        assert ends.heard == [["later", "now"]]
        # How much it was is forgotten with it.
        ends.outbox.say_later("a", 0.5)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not ends.outbox.is_clear
        ends.outbox.say_later("b", 0.6)
        await until(lambda: len(ends.heard) == 2, "much is not kept waiting")
        assert ends.heard[1] == ["a", "b"]


async def test_what_may_wait_is_said_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LATER_SECONDS", 0.001)
    async with joined() as ends:
        for each in ("once", "again"):
            ends.outbox.say_later(each, 0.0)
            await until(lambda: ends.outbox.is_clear, "it is said")
        await until(lambda: len(ends.heard) == 2, "it comes")
        assert ends.heard == [["once"], ["again"]]


async def test_what_cannot_be_said_keeps_nothing_else_from_being_said() -> None:
    async with joined() as ends:
        wrong = object()
        for each in (1, wrong, 2):
            ends.outbox.say(each)
        ends.outbox.flush()
        assert ends.outbox.is_clear
        assert ends.failed == [wrong]
        await until(lambda: len(ends.heard) == 3, "the rest comes")
        assert ends.heard == [[1], [2], ["failed"]]


async def test_a_closed_one_says_nothing() -> None:
    async with joined(lambda: "last") as ends:
        ends.outbox.say(1)
        ends.outbox.say_later(2, 0.0)
        ends.outbox.close()
        ends.outbox.flush()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not ends.heard
