"""The attacks over HTTP/1.1, and the table of all of them.

Each is paced: what is tried is what the server lets itself be made to hold, to wait for, or to do at one go, and not
whether somebody who sends enough can fill two processors.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from hostile import http2
from hostile.attacker import Assault, Wire, post

# As `services/attacked.py` sets them.
READ_SECONDS = 1.5
STALL_SECONDS = 1.5
MOST = 4_000_000
# More than a socket of the system's takes.
LARGE = 8_000_000
# What a slow client is given beyond its time before that counts as broken.
SLACK = 2.0


async def slow_heads(assault: Assault) -> None:
    """Send heads a byte at a time; each must be ended in time."""

    async def act() -> str:
        async with assault.wire() as wire:
            return await _drip(assault, wire, b"POST /inference HTTP/1.1\r\n", (b"x" for _ in range(10_000)), 0.1)

    await assault.repeat(150, 0.1, act)


async def slow_bodies(assault: Assault) -> None:
    """Send bodies at half of the least rate; each must be ended in time."""

    async def act() -> str:
        async with assault.wire() as wire:
            return await _drip(assault, wire, post("/size", b"", length=MOST), (b"x" * 50 for _ in range(10_000)), 0.1)

    await assault.repeat(100, 0.1, act)


async def slow_after_much(assault: Assault) -> None:
    """Send most of a large body at once and then next to nothing; what has come must be let go in time."""

    async def act() -> str:
        async with assault.wire() as wire:
            first = post("/size", bytes(1_000_000), length=MOST)
            return await _drip(assault, wire, first, (b"x" * 50 for _ in range(10_000)), 0.1)

    await assault.repeat(20, 0.1, act)


async def _drip(assault: Assault, wire: Wire, first: bytes, rest: Iterable[bytes], pause: float) -> str:
    """Send the rest of a request slowly until the server ends that."""
    latest = time.monotonic() + READ_SECONDS + SLACK
    status = asyncio.ensure_future(wire.status())
    try:
        await wire.send(first)
        for piece in rest:
            await asyncio.wait([status], timeout=pause)
            if status.done():
                assault.check(status.result(), {408, 503})
                return str(status.result())
            if not assault.goes_on:
                return "time is over"
            if time.monotonic() > latest:
                assault.problems[f"not ended after {READ_SECONDS + SLACK} s"] += 1
                return "not ended"
            await wire.send(piece)
    finally:
        status.cancel()
    return "sent"


async def half_bodies(assault: Assault) -> None:
    """Hold as many half-sent bodies as the budget for bodies takes, to the last byte."""
    most = [post("/size", bytes(size - size // 10), length=size) for size in (MOST, MOST, 100_000, 1000, 50)]

    async def act() -> str:
        async with assault.wire() as wire:
            with contextlib.suppress(OSError):
                await wire.send(random.choice(most))
            status = await wire.status()
            assault.check(status, {408, 503})
            return str(status)

    await assault.repeat(60, 1.0, act)


async def endless_header(assault: Assault) -> None:
    """Send a header line that never ends."""

    async def act() -> str:
        async with assault.wire() as wire:
            status = await _until_stopped(wire, b"GET / HTTP/1.1\r\nx: ", b"x" * 4096)
            assault.check(status, {431})
            return str(status)

    await assault.repeat(8, 0.1, act)


async def _until_stopped(wire: Wire, first: bytes, piece: bytes, most: int = 2_000_000, pause: float = 0.002) -> int:
    """Send the same again and again until there is an answer, and return its status; 0 where there is none."""
    status = asyncio.ensure_future(wire.status())
    with contextlib.suppress(OSError):
        await wire.send(first)
        for _ in range(most // len(piece)):
            if status.done():
                break
            await wire.send(piece)
            await asyncio.sleep(pause)
    return await status


async def many_headers(assault: Assault) -> None:
    """Send very many headers, as many as are allowed and more."""
    few = b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a:b\r\n" * 10_000 + b"\r\n"
    many = b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a:b\r\n" * 30_000 + b"\r\n"
    await assault.repeat(2, 0.1, lambda: assault.ask(random.choice((few, many)), {200, 431}))


async def long_paths(assault: Assault) -> None:
    """Ask for paths that are too long, and for ones that are nowhere."""
    path = "/" + "a" * 60_000
    short = "/" + "%zz\\\x01" * 50
    await assault.repeat(4, 0.05, lambda: assault.ask(post(random.choice((path, short)), b"1"), {404, 414, 400}))


async def endless_trailers(assault: Assault) -> None:
    """Send trailers behind a body, without end."""
    await _send_without_end(assault, b"1\r\nx\r\n0\r\n", b"a: b\r\n" * 600)


async def endless_extension(assault: Assault) -> None:
    """Send an extension of a chunk that never ends."""
    await _send_without_end(assault, b"1;", b"a" * 4096)


async def _send_without_end(assault: Assault, beginning: bytes, more: bytes) -> None:
    """Send the beginning of a chunked body, and more of what is no body until the server stops it."""

    async def act() -> str:
        async with assault.wire() as wire:
            first = b"POST /size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + beginning
            status = await _until_stopped(wire, first, more)
            assault.check(status, {431, 400, 408, 413})
            return str(status)

    await assault.repeat(8, 0.1, act)


async def tiny_chunks(assault: Assault) -> None:
    """Send a body in chunks of one byte."""
    body = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    request = b"POST /size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + body
    await assault.repeat(1, 0.3, lambda: assault.ask(request, {200}))


async def bombs(assault: Assault) -> None:
    """Send bodies that unpack to far more than is allowed, or to nothing at all in very many parts."""
    gzips = [gzip.compress(bytes(50_000_000)), gzip.compress(b"") * 100_000, gzip.compress(b"x") * 20_000]
    bodies = [("gzip", body) for body in gzips]
    with contextlib.suppress(ImportError):
        import zstandard

        packer = zstandard.ZstdCompressor()
        zstds = [packer.compress(bytes(500_000_000)), packer.compress(b"") * 100_000, packer.compress(b"x") * 20_000]
        bodies += [("zstd", body) for body in zstds]
    requests = [post("/size", body, f"content-encoding: {encoding}") for encoding, body in bodies]
    await assault.repeat(3, 0.1, lambda: assault.ask(random.choice(requests), {200, 400, 413}))


async def pipelined(assault: Assault) -> None:
    """Send hundreds of requests at once on one connection; all must be answered."""
    await assault.repeat(4, 0.15, lambda: _many(assault, post("/size", b"1"), 200))


async def pipelined_upgrades(assault: Assault) -> None:
    """Send hundreds of requests at once that ask for another protocol."""
    wish = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")
    await assault.repeat(2, 0.15, lambda: _many(assault, post("/size", b"1", *wish), 200))


async def pipelined_unread(assault: Assault) -> None:
    """Send requests at once, and read no answer."""

    async def act() -> str:
        async with assault.wire(deaf=True) as wire:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(wire.send(b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n" * 500), 1)
            await asyncio.sleep(1)
            return "left"

    await assault.repeat(6, 0.5, act)


async def _many(assault: Assault, request: bytes, count: int) -> str:
    async with assault.wire() as wire:
        sending = asyncio.ensure_future(wire.send(request * count))
        for _ in range(count):
            status = await wire.status()
            if status != 200:
                assault.check(status, {200})
                break
        await asyncio.wait([sending])
        return str(status)


async def unread_answers(assault: Assault) -> None:
    """Ask for large answers and read none; such a client must be ended."""
    await assault.repeat(3, 0.5, lambda: _unread(assault, post("/large", b"%d" % LARGE)))


async def unread_streams(assault: Assault) -> None:
    """Ask for endless streams and read nothing; such a client must be ended."""
    await assault.repeat(2, 0.2, lambda: _unread(assault, post("/endless", b"1")))


async def _unread(assault: Assault, request: bytes) -> str:
    """Ask, and read what lies there only when the server must have given up: it must not go on then."""
    async with assault.wire(deaf=True) as wire:
        await wire.send(request)
        # The system has taken a part of the answer, which comes in any case.
        await asyncio.sleep(2 * STALL_SECONDS + SLACK / 2)
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        size, latest = 0, time.monotonic() + 4 * SLACK
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() < latest and (piece := await asyncio.wait_for(wire.reader.read(1 << 16), SLACK)):
                size += len(piece)
    if size > LARGE or time.monotonic() > latest:
        assault.problems["a client that does not read is not ended"] += 1
        return "not ended"
    return "ended"


async def churn(assault: Assault) -> None:
    """Open connections and drop them, with nothing, a part of a request, or a whole one sent."""
    request = post("/slow", b"1")

    async def act() -> str:
        async with assault.wire() as wire:
            await wire.send(request[: random.choice((0, 20, len(request) - 1, len(request)))])
            if random.random() < 0.5:
                sock = wire.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "dropped"

    await assault.repeat(20, 0.05, act)


async def early_answers(assault: Assault) -> None:
    """Send large bodies where the answer is clear from the head; it must arrive."""
    body = bytes(2_000_000)
    requests = [
        (post("/size", body * 3), 413),
        (post("/nowhere", body), 404),
        (post("/metrics", body), 405),
        (post("/size", body, "content-encoding: br"), 415),
        (post("/size", body * 3, "connection: close"), 413),
        (post("/nowhere", body, "connection: close"), 404),
        (post("/metrics", body, "connection: close"), 405),
        (post("/size", body, "content-encoding: br", "connection: close"), 415),
    ]

    async def act() -> str:
        request, expected = random.choice(requests)
        return await assault.ask(request, {expected})

    await assault.repeat(6, 0.2, act)


async def too_many(assault: Assault) -> None:
    """Ask more of a slow model than it can do; everybody must be told so."""
    request = post("/slow", b'"' + b"x" * 50_000 + b'"')
    await assault.repeat(40, 0.2, lambda: assault.ask(request, {200, 408, 429, 503}))


async def half_closed(assault: Assault) -> None:
    """End the sending behind a request, in its middle, or before it; a whole request must be answered."""
    request = post("/size", b"12345678")

    async def act() -> str:
        async with assault.wire() as wire:
            whole = random.random() < 0.5
            await wire.send(request if whole else request[: random.randrange(len(request))])
            wire.writer.write_eof()
            if whole:
                assault.check(await wire.status(), {200})
            if not await wire.ended(SLACK):
                assault.problems["not closed"] += 1
        return "whole" if whole else "part"

    await assault.repeat(20, 0.1, act)


async def deep_nesting(assault: Assault) -> None:
    """Send bodies that nest without end."""
    text, packed = b"[" * 500_000, b"\x91" * 500_000
    closed = text + b"]" * 500_000
    keys = b'{"a":' * 200_000
    requests = [
        *(post(path, body) for path in ("/plain", "/checked") for body in (text, closed, keys)),
        *(post(path, packed) for path in ("/packed", "/packedtyped")),
    ]
    await assault.repeat(3, 0.1, lambda: assault.ask(random.choice(requests), {400, 422}))


async def wrong_items(assault: Assault) -> None:
    """Send bodies of very many items that are all wrong."""
    count = 500_000
    bodies = [
        post("/checked", b"[" + b",".join([b'"a"'] * count) + b"]"),
        post("/checked", b"{" + b",".join(b'"%x":""' % number for number in range(count // 2)) + b"}"),
        post("/packedtyped", b"\xdd" + struct.pack(">I", count) + b"\xa0" * count),
        post("/packedtyped", b"\xdd\xff\xff\xff\xff"),
    ]
    await assault.repeat(1, 0.3, lambda: assault.ask(random.choice(bodies), {400, 422}))


async def garbage(assault: Assault) -> None:
    """Send what is no HTTP."""
    fixed = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /size HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /size HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        b"POST /size HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nx",
        b"POST /size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST /size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /size HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    ]

    async def act() -> str:
        async with assault.wire() as wire:
            with contextlib.suppress(OSError):
                await wire.send(random.choice((*fixed, os.urandom(1000))))
                wire.writer.write_eof()
            if not await wire.ended(READ_SECONDS + SLACK):
                assault.problems["not closed"] += 1
        return "ended"

    await assault.repeat(10, 0.05, act)


@dataclass(frozen=True, slots=True)
class Attack:
    """A row of the table.

    Attributes:
        name: to choose it by.
        run: does it until its time is over.
        seconds: how long; None for the usual time.
        under_uvicorn: what it tries is bounded under a foreign server as well.
    """

    name: str
    run: Callable[[Assault], Coroutine[Any, Any, None]]
    under_uvicorn: bool = False
    seconds: float | None = None

    @property
    def text(self) -> str:
        """What it is."""
        return self.run.__doc__ or f"floods of frames over HTTP/2: {self.name}"


ATTACKS = [
    Attack("slow-heads", slow_heads),
    Attack("slow-bodies", slow_bodies, under_uvicorn=True, seconds=4.5),
    Attack("slow-after-much", slow_after_much, seconds=4.5),
    Attack("half-bodies", half_bodies, under_uvicorn=True, seconds=5),
    Attack("endless-header", endless_header),
    Attack("many-headers", many_headers),
    Attack("long-paths", long_paths),
    Attack("endless-trailers", endless_trailers),
    Attack("endless-extension", endless_extension),
    Attack("tiny-chunks", tiny_chunks),
    Attack("bombs", bombs, under_uvicorn=True),
    Attack("pipelined", pipelined),
    Attack("pipelined-upgrades", pipelined_upgrades),
    Attack("pipelined-unread", pipelined_unread),
    Attack("unread-answers", unread_answers, seconds=1),
    Attack("unread-streams", unread_streams, seconds=1),
    Attack("churn", churn),
    Attack("early-answers", early_answers),
    Attack("too-many", too_many),
    Attack("half-closed", half_closed),
    Attack("deep-nesting", deep_nesting, under_uvicorn=True),
    Attack("wrong-items", wrong_items, under_uvicorn=True),
    Attack("garbage", garbage),
    *(Attack(f"h2-{name}", run) for name, run in http2.ATTACKS.items()),
]
