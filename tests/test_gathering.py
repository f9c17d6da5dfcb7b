"""A transport that gathers writes: what becomes of them when the client leaves in between."""

from __future__ import annotations

import asyncio

from mosec_asgi.web.gathering import GatheringTransport


class Leaving(asyncio.Transport):
    """A transport as uvloop has them: writing to one that is closed raises."""

    def __init__(self) -> None:
        super().__init__()
        self.left = False
        self.written = b""

    def is_closing(self) -> bool:
        return self.left

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.left:
            raise RuntimeError("the handler is closed")
        self.written += bytes(data)


async def test_what_is_held_goes_out_at_the_end_of_the_turn() -> None:
    inner = Leaving()
    GatheringTransport(inner, asyncio.get_running_loop()).write(b"head")
    assert inner.written == b""
    await asyncio.sleep(0)
    assert inner.written == b"head"


async def test_what_is_held_for_a_client_that_leaves_meanwhile_is_dropped_without_an_error() -> None:
    errors: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    inner = Leaving()
    GatheringTransport(inner, loop).write(b"head")
    inner.left = True
    await asyncio.sleep(0)
    assert (inner.written, errors) == (b"", [])
