"""How long a connection lingers, in manual time."""

from __future__ import annotations

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
