"""Signals: the first one ends the taking of lines, the second one what is in hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from mosec_asgi.offline.stopping import SIGNALS, Stopping


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_no_more_lines_are_taken_and_it_is_told_once(number: signal.Signals) -> None:
    told: list[int] = []
    stopping = Stopping(lambda: told.append(1))
    before = signal.getsignal(number)
    taken = []
    with stopping.heard():
        stopping.lines_are_in_hand()
        for line in stopping.until_asked(range(100)):
            taken.append(line)
            if line == 3:
                send(number)
        assert (taken, told, stopping.number) == ([0, 1, 2, 3], [1], number)
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert signal.getsignal(number) is before


def test_a_read_that_waits_is_ended() -> None:
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield 1
            send(signal.SIGINT)
            yield 2
        finally:
            closed.append(True)

    stopping = Stopping(lambda: None)
    with stopping.heard():
        stopping.lines_are_in_hand()
        assert list(stopping.until_asked(source())) == [1]
    assert closed == [True]


def test_while_nothing_is_in_hand_a_signal_ends_the_program_at_once() -> None:
    stopping = Stopping(lambda: pytest.fail("nothing is in hand"))
    with stopping.heard(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    assert stopping.number == signal.SIGTERM
