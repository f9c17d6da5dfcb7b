"""How long a connection lingers, in manual time."""

from __future__ import annotations

import pytest
from common import settled_loop
from fake_engine import ManualLoop, in_manual_time

from mosec_asgi.web.limits import LINGER_SECONDS, LINGER_SILENCE_SECONDS
from mosec_asgi.web.uvicorn.ending import Lingering


def test_it_ends_when_the_client_is_silent() -> None:
    async def main(loop: ManualLoop) -> None:
        ended: list[float] = []
        lingering = Lingering(loop, lambda: ended.append(loop.now))
        began = loop.now
        await loop.advance(LINGER_SILENCE_SECONDS - 1)
        lingering.heard()
        await loop.advance(2 * LINGER_SILENCE_SECONDS)
        assert ended == [began + 2 * LINGER_SILENCE_SECONDS - 1]

    in_manual_time(main)


def test_a_pause_of_the_server_is_no_silence_of_the_client() -> None:
    async def main(loop: ManualLoop) -> None:
        ended: list[float] = []
        Lingering(loop, lambda: ended.append(loop.now))
        # The process stands still, and what the client has sent meanwhile is read after the timer was looked at.
        loop.now += LINGER_SILENCE_SECONDS + 1
        await settled_loop()
        assert ended == []
        await loop.advance(LINGER_SILENCE_SECONDS)
        assert ended == [loop.now]

    in_manual_time(main)


def test_pauses_do_not_prolong_it_without_end() -> None:
    async def main(loop: ManualLoop) -> None:
        ended: list[float] = []
        Lingering(loop, lambda: ended.append(loop.now))
        pauses = 0
        while not ended:
            pauses += 1
            loop.now += LINGER_SECONDS
            await settled_loop()
        assert pauses == 2

    in_manual_time(main)


def test_it_ends_within_the_time_that_a_stop_leaves_whatever_the_client_sends() -> None:
    async def main(loop: ManualLoop) -> None:
        ended: list[float] = []
        lingering = Lingering(loop, lambda: ended.append(loop.now))
        lingering.hurry(0.5)
        began = loop.now
        for _ in range(20):
            lingering.heard()
            await loop.advance(0.1)
        assert ended == [pytest.approx(began + 0.5, abs=0.01)]

    in_manual_time(main)


def test_whoever_sends_without_a_pause_does_not_put_the_end_off() -> None:
    async def main(loop: ManualLoop) -> None:
        ended: list[float] = []
        lingering = Lingering(loop, lambda: ended.append(loop.now))
        began = loop.now
        # A read each half a millisecond near the end.
        for seconds in [1.0] * int(LINGER_SECONDS - 1) + [0.9955] + [0.0005] * 100:
            lingering.heard()
            await loop.advance(seconds)
        assert ended == [pytest.approx(began + LINGER_SECONDS, abs=0.01)]

    in_manual_time(main)
