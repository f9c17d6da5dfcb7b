"""A transport that gathers writes: what becomes of them when the client leaves in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

import pytest
import uvloop

from mosec_asgi.web.uvicorn.gathering import LARGE, GatheringTransport, TurnEnd


class Leaving(asyncio.Transport):
    """A transport as uvloop has them: writing to one that is closed raises."""

    def __init__(self) -> None:
        super().__init__()
        self.left = False
        self.written = b""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0, "what is passed on is written at once"

    def is_closing(self) -> bool:
        return self.left

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.left:
            raise RuntimeError("the handler is closed")
        self.written += bytes(data)


async def test_what_is_held_goes_out_at_the_end_of_the_turn() -> None:
    inner = Leaving()
    GatheringTransport(inner, TurnEnd(asyncio.get_running_loop())).write(b"head")
    assert inner.written == b""
    await asyncio.sleep(0)
    assert inner.written == b"head"


@pytest.mark.parametrize("size", [1, LARGE - 1, LARGE, 10 * LARGE])
async def test_head_and_body_go_out_in_order_and_once(size: int) -> None:
    inner = Leaving()
    transport = GatheringTransport(inner, TurnEnd(asyncio.get_running_loop()))
    transport.write(b"head")
    transport.write(b"b" * size)
    assert inner.written == b"head" + b"b" * size
    await asyncio.sleep(0)
    assert len(inner.written) == 4 + size


async def test_a_connection_that_fails_keeps_no_other_from_its_client() -> None:
    class Broken(Leaving):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            raise OSError("no")

    errors: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    turn_end = TurnEnd(loop)
    connections = [Leaving(), Broken(), Leaving(), Leaving()]
    for inner in connections:
        GatheringTransport(inner, turn_end).write(b"head")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [inner.written for inner in connections] == [b"head", b"", b"head", b"head"]
    assert [str(error) for error in errors] == ["no"]


async def test_what_is_held_for_a_client_that_leaves_meanwhile_is_dropped_without_an_error() -> None:
    errors: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    inner = Leaving()
    GatheringTransport(inner, TurnEnd(loop)).write(b"head")
    inner.left = True
    await asyncio.sleep(0)
    assert (inner.written, errors) == (b"", [])


@pytest.mark.parametrize("size", [0, 1, LARGE, 10 * LARGE])
async def test_a_whole_response_goes_out_at_once_and_behind_what_is_held(size: int) -> None:
    inner = Leaving()
    transport = GatheringTransport(inner, TurnEnd(asyncio.get_running_loop()))
    transport.write(b"before")
    transport.write_response(b"head", b"b" * size)
    assert inner.written == b"beforehead" + b"b" * size
    await asyncio.sleep(0)
    assert len(inner.written) == 10 + size


async def test_a_client_that_does_not_read_holds_back_asyncios_own_transport_too() -> None:
    paused = asyncio.Event()

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            # More than the kernel takes for a client that reads nothing.
            gathered = GatheringTransport(transport, TurnEnd(asyncio.get_running_loop()))
            gathered.write_response(b"head", b"b" * (32 << 20))

        def pause_writing(self) -> None:
            paused.set()

    loop = asyncio.get_running_loop()
    assert type(loop).__module__.startswith("asyncio"), "the loop that has the fault"
    server = await loop.create_server(Answering, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1)
    await asyncio.wait_for(paused.wait(), 10)
    writer.transport.abort()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("size", [0, 1, LARGE, 32 << 20], ids=["empty", "small", "large", "more than the kernel takes"])
@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_of_a_body_that_is_lent_nothing_is_kept(loop_of: Callable[[], asyncio.AbstractEventLoop], size: int) -> None:
    async def main() -> None:
        class Answering(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                # uvloop's are of no class of asyncio.
                gathered = GatheringTransport(cast(asyncio.Transport, transport), TurnEnd(asyncio.get_running_loop()))
                gathered.write(b"before")
                for letter in (b"a", b"b"):
                    memory = bytearray(letter * size)
                    with memoryview(memory) as lent:
                        gathered.write_response(b"head", lent)
                    memory[:] = b"!" * size
                gathered.close()

        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        came = await asyncio.wait_for(reader.read(), 10)
        assert came == b"beforehead" + b"a" * size + b"head" + b"b" * size
        writer.transport.abort()
        server.close()

    loop = loop_of()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 30))
    finally:
        loop.close()


async def test_a_body_that_is_lent_goes_through_tls_as_any_other() -> None:
    class Encrypted(Leaving):
        def get_extra_info(self, name: str, default: object = None) -> object:
            return {"sslcontext": "some", "socket": "another"}.get(name, default)

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            raise AssertionError("it is told to pause, and never to go on")

    inner = Encrypted()
    memory = bytearray(b"b" * LARGE)
    with memoryview(memory) as lent:
        GatheringTransport(inner, TurnEnd(asyncio.get_running_loop())).write_response(b"head", lent)
    assert inner.written == b"head" + b"b" * LARGE
