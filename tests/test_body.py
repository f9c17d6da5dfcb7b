"""Reading a request's body within limits; what an ASGI server makes of it stands in test_asgi_servers."""

from __future__ import annotations

import asyncio
import tracemalloc

from starlette.types import Message

from mosec_asgi.errors import TOO_SLOW, Failure
from mosec_asgi.testing.loop import VirtualTimeLoop
from mosec_asgi.web.body import BodyReader
from mosec_asgi.web.budget import Budget
from mosec_asgi.web.limits import Limits
from mosec_asgi.web.responses import Headers


class Holder:
    """Holds a body, for which there is room."""

    headers: Headers = {}
    held = 0
    unread = False

    def hold(self, size: int) -> bool:
        self.held = size
        return True


def read(pause: float, *, stopped: float = 0.0) -> bytes | Failure:
    """Read a body that pauses after its first half; the process is stopped for so many seconds meanwhile."""
    loop = VirtualTimeLoop()
    halves = iter((b"a", b"b"))

    async def receive() -> Message:
        half = next(halves)
        if half == b"b":
            await asyncio.sleep(pause)
        return {"type": "http.request", "body": half, "more_body": half == b"a"}

    def stop() -> None:
        loop._now += stopped

    try:
        loop.call_at(0.5, stop)
        bodies = BodyReader(1000, Limits(read_timeout=1.0), Budget(1000))
        return loop.run_until_complete(bodies.read(Holder(), receive))
    finally:
        loop.close()


def test_a_body_that_pauses_for_longer_than_its_time_is_given_up() -> None:
    assert read(0.9) == b"ab"
    assert read(3.0) == TOO_SLOW


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    assert read(3.0, stopped=5.0) == b"ab"


def test_a_body_in_tiny_pieces_takes_little_more_than_its_bytes() -> None:
    count = 50_000

    async def measured() -> tuple[bytes | Failure, int]:
        numbers = iter(range(count))

        async def receive() -> Message:
            number = next(numbers)
            return {"type": "http.request", "body": number.to_bytes(2, "big"), "more_body": number < count - 1}

        tracemalloc.start()
        try:
            body = await BodyReader(10 * count, Limits(), Budget(10 * count)).read(Holder(), receive)
            return body, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    body, peak = asyncio.run(measured())
    assert body == b"".join(number.to_bytes(2, "big") for number in range(count))
    # Its pieces, and the whole; two million more where each piece stays an object.
    assert peak < 8 * count
