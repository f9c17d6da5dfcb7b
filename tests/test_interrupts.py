"""Signals are heard beside whoever handles them, and nothing of that stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest
from common import until

from mosec_asgi.host.interrupts import SIGNALS, told_of_signals

EACH_SIGNAL = pytest.mark.parametrize("number", SIGNALS)


class Handling:
    """A handler such as an ASGI server has."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)


@pytest.fixture
def server() -> Iterator[Handling]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handling = Handling()
    for number in SIGNALS:
        signal.signal(number, handling.handle)
    yield handling
    for number, handler in before.items():
        signal.signal(number, handler)


@EACH_SIGNAL
async def test_both_the_handler_that_was_there_and_the_loop_are_told(server: Handling, number: int) -> None:
    told: list[int] = []
    with told_of_signals(lambda: told.append(1)):
        os.kill(os.getpid(), number)
        await until(lambda: told == [1])
        os.kill(os.getpid(), number)
        await until(lambda: told == [1, 1])
    assert server.heard == [number, number]


async def test_a_signal_is_noted_before_anything_else_runs(server: Handling) -> None:
    noted: list[int] = []
    with told_of_signals(lambda: None, lambda number: noted.append(len(server.heard))):
        signal.raise_signal(signal.SIGTERM)
        assert noted == [1]


@EACH_SIGNAL
async def test_the_handler_is_put_back(server: Handling, number: int) -> None:
    with told_of_signals(lambda: None):
        assert signal.getsignal(number) != server.handle
    assert signal.getsignal(number) == server.handle


@EACH_SIGNAL
async def test_a_handler_that_was_set_meanwhile_stays(server: Handling, number: int) -> None:
    other, told = Handling(), Handling()
    with told_of_signals(lambda: told.handle(0, None)):
        chained = signal.getsignal(number)
        signal.signal(number, other.handle)
    assert signal.getsignal(number) == other.handle
    # It may pass on what it hears, and then only the server's own is reached.
    assert callable(chained)
    chained(number, None)
    await asyncio.sleep(0)
    assert (server.heard, told.heard) == ([number], [])


@EACH_SIGNAL
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler])
async def test_a_signal_that_nobody_handles_is_left_alone(
    server: Handling, number: int, handler: signal.Handlers
) -> None:
    signal.signal(number, handler)
    with told_of_signals(lambda: None):
        assert signal.getsignal(number) == handler


async def test_a_handler_that_raises_has_the_loop_told_all_the_same(server: Handling) -> None:
    def refuse(number: int, frame: FrameType | None) -> None:
        raise RuntimeError("not now")

    signal.signal(signal.SIGTERM, refuse)
    told: list[int] = []
    with told_of_signals(lambda: told.append(1)):
        with contextlib.suppress(RuntimeError):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
        await until(lambda: told)


async def test_a_forked_process_tells_nothing_to_the_loop_of_its_parent(server: Handling) -> None:
    loop = asyncio.get_running_loop()
    with told_of_signals(lambda: None):
        child = os.fork()
        if not child:
            status = 2
            try:
                before = len(loop._ready)  # type: ignore[attr-defined]  # the copy of the parent's
                os.kill(os.getpid(), signal.SIGTERM)
                status = int(len(loop._ready) != before or server.heard != [signal.SIGTERM])  # type: ignore[attr-defined]
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


async def test_in_another_thread_nothing_happens(server: Handling) -> None:
    failed: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with told_of_signals(lambda: None):
                assert signal.getsignal(signal.SIGTERM) == server.handle
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not failed
