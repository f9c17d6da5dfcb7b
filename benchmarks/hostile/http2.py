"""The attacks over HTTP/2, of frames made by hand: a library would refuse to send most of them (RFC 9113, RFC 7541)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any

from hostile.attacker import Assault, Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
# With what the head of a 200 begins in HPACK: an index alone, or that of the name and a literal.
STATUS_200 = (b"\x88", b"\x08\x03200", b"\x48\x03200")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def block(*pairs: tuple[bytes, bytes]) -> bytes:
    """Return a head in HPACK, each header as a literal that is not to be indexed."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in pairs)


def _text(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size, digits = size - 127, b""
    while size >= 128:
        digits, size = digits + bytes((size % 128 + 128,)), size // 128
    return b"\x7f" + digits + bytes((size,)) + text


def head(path: bytes = b"/size", length: int = 1, *more: tuple[bytes, bytes]) -> bytes:
    """Return the head of a POST request."""
    pairs = ((b":method", b"POST"), (b":path", path), (b":scheme", b"http"), (b":authority", b"a"))
    return block(*pairs, (b"content-length", b"%d" % length), *more)


def request(stream: int, path: bytes = b"/size", body: bytes = b"1") -> bytes:
    """Return the frames of a whole request."""
    return frame(HEADERS, END_HEADERS, stream, head(path, len(body))) + frame(DATA, END_STREAM, stream, body)


async def _begin(wire: Wire, settings: bytes = b"") -> None:
    await wire.send(PREFACE + frame(SETTINGS, payload=settings))


async def _next(wire: Wire) -> tuple[int, int, bytes]:
    """Return the kind, the stream and the payload of the next frame.

    Raises:
        OSError: the connection has ended.
    """
    try:
        start = await wire.reader.readexactly(9)
        payload = await wire.reader.readexactly(int.from_bytes(start[:3], "big"))
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError from error
    return start[3], int.from_bytes(start[5:9], "big"), payload


async def _answered(wire: Wire, *streams: int) -> bool:
    """Wait for the heads of some streams' answers; whether each is a 200."""
    missing = set(streams)
    while missing:
        kind, owner, payload = await asyncio.wait_for(_next(wire), 5)
        if kind == HEADERS and owner in missing:
            missing.discard(owner)
            if not payload.startswith(STATUS_200):
                return False
    return True


async def _flood(assault: Assault, what: Callable[[int], bytes], settings: bytes = b"", pieces: int = 300) -> str:
    """Send the same kind of frames again and again until the server ends that."""
    async with assault.wire() as wire:
        reading = asyncio.ensure_future(wire.ended(60))
        try:
            await _begin(wire, settings)
            for number in range(pieces):
                if reading.done() or not assault.goes_on:
                    break
                await wire.send(what(number))
                await asyncio.sleep(0.005)
        finally:
            done = reading.done()
            reading.cancel()
    return "ended by the server" if done else "not ended"


def _flooding(*pieces: Callable[[int], bytes]) -> Callable[[Assault], Coroutine[Any, Any, None]]:
    async def attack(assault: Assault) -> None:
        await assault.repeat(4, 0.2, lambda: _flood(assault, random.choice(pieces)))

    return attack


def _reset(number: int) -> bytes:
    """Return a request that is given up as soon as it is begun, five times."""
    streams = range(number * 10 + 1, number * 10 + 11, 2)
    return b"".join(request(stream, b"/slow") + frame(RST_STREAM, 0, stream, bytes(4)) for stream in streams)


def _endless_head(number: int) -> bytes:
    if number == 0:
        return frame(HEADERS, 0, 1, head())
    return frame(CONTINUATION, 0, 1, block((b"x", b"y" * 1000)))


def _opened(number: int) -> bytes:
    streams = range(number * 40 + 1, number * 40 + 41, 2)
    return b"".join(frame(HEADERS, END_HEADERS, stream, head(length=1000)) for stream in streams)


async def bad_paths(assault: Assault) -> None:
    """Ask for paths that are no ASCII, beside streams that must be answered."""

    async def act() -> str:
        async with assault.wire() as wire:
            await _begin(wire)
            path = random.choice((b"/\xe4", b"/\xff\xfe", b"/\x00", b"nowhere", b"/ a", b""))
            await wire.send(request(1) + request(3, path) + request(5))
            try:
                good = await _answered(wire, 1, 5)
            except OSError:
                good = False
            if not good:
                assault.problems[f"a neighbour of the path {path!r} is not answered"] += 1
        return "asked"

    await assault.repeat(6, 0.1, act)


async def unread(assault: Assault) -> None:
    """Ask for large answers with closed windows; such a client must be ended."""
    closed = struct.pack(">HI", 4, 0)

    async def act() -> str:
        async with assault.wire() as wire:
            await _begin(wire, closed)
            await wire.send(b"".join(request(stream, b"/large", b"500000") for stream in range(1, 11, 2)))
            began = time.monotonic()
            while assault.goes_on:
                with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(_next(wire), 0.2)
                if time.monotonic() - began > 5:
                    assault.problems["a client that does not read is not ended"] += 1
                    return "not ended"
        return "time is over"

    await assault.repeat(4, 0.5, act)


async def slow_bodies(assault: Assault) -> None:
    """Send bodies next to nothing at a time; each must be ended in time."""

    async def act() -> str:
        async with assault.wire() as wire:
            await _begin(wire)
            await wire.send(frame(HEADERS, END_HEADERS, 1, head(length=1_000_000)))
            answer = asyncio.ensure_future(_answered(wire, 1))
            began = time.monotonic()
            try:
                while assault.goes_on and not answer.done():
                    await wire.send(frame(DATA, 0, 1, b"x" * 50))
                    await asyncio.wait([answer], timeout=0.1)
                    if time.monotonic() - began > 4:
                        assault.problems["a body that does not arrive is not ended"] += 1
                        return "not ended"
            finally:
                answer.cancel()
        return "ended"

    await assault.repeat(50, 0.1, act)


async def slow_prefaces(assault: Assault) -> None:
    """Send a part of a preface, or a whole one with a part of a frame, and wait; it must come to an end."""

    async def act() -> str:
        async with assault.wire() as wire:
            await wire.send(random.choice((PREFACE[:10], PREFACE + b"\0\0", PREFACE + frame(HEADERS, 0, 1, head()))))
            if not await wire.ended(5):
                assault.problems["a silent connection is not ended"] += 1
        return "over"

    await assault.repeat(50, 0.1, act)


ATTACKS: dict[str, Callable[[Assault], Coroutine[Any, Any, None]]] = {
    "pings": _flooding(lambda _: frame(PING, payload=bytes(8)) * 50),
    "settings": _flooding(lambda _: frame(SETTINGS) * 50),
    "resets": _flooding(_reset),
    "other-frames": _flooding(
        lambda _: frame(WINDOW_UPDATE, payload=struct.pack(">I", 1)) * 50,
        lambda _: frame(PRIORITY, 0, 1, bytes(4) + b"\x10") * 50,
        lambda number: frame(HEADERS, END_HEADERS, 1, head()) if number == 0 else frame(DATA, 0, 1) * 50,
        lambda _: frame(0x77, payload=b"x" * 20) * 50,
    ),
    "endless-head": _flooding(_endless_head),
    "opened": _flooding(_opened),
    "garbage": _flooding(lambda _: random.randbytes(200)),
    "bad-paths": bad_paths,
    "unread": unread,
    "slow-bodies": slow_bodies,
    "slow-prefaces": slow_prefaces,
}
