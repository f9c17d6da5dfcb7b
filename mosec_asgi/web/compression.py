"""Compressed bodies: requests by Content-Encoding, responses by Accept-Encoding; gzip, and zstd with the extra `zstd`.

A body is unpacked in steps, up to the limit: a few bytes that unpack to gigabytes take no more memory than an honest
body. The event loop runs between two steps, so that a large body delays no other request for long.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import zlib
from collections.abc import Callable, Iterator

from mosec_asgi.errors import Failure, broken_body, too_large, unknown_encoding
from mosec_asgi.web.responses import Response

# Bytes; smaller responses are not compressed.
LEAST_RESPONSE = 1024
STEP = 128 * 1024
# The cost of a piece in bytes, beside its content: a body may consist of a million tiny pieces.
PIECE_COST = 1024
# The most empty members or frames of a body.
MOST_EMPTY = 100
GZIP_LEVEL = 5
ZSTD_LEVEL = 3
# RFC 8878 asks decoders to support windows of 8 MB; a frame that wants more is refused before memory is taken.
ZSTD_MAX_WINDOW = 8 * 1024 * 1024
_GZIP_BITS = 31
_GZIP_INPUT = 4096


class BrokenBody(Exception):
    """The bytes are not what their encoding says."""


@functools.cache
def supported() -> tuple[str, ...]:
    """Return the encodings that this installation knows, the preferred one first."""
    return ("zstd", "gzip") if importlib.util.find_spec("zstandard") is not None else ("gzip",)


def unknown(encoding: str, *, enabled: bool) -> Failure:
    """Return the failure for a body in an encoding that the service does not read."""
    remedy = f"it reads {', '.join(supported())}" if enabled else "compression is off (the setting `compression`)"
    return unknown_encoding(encoding, remedy)


async def decompress(body: bytes, encoding: str, limit: int) -> bytes | Failure:
    """Unpack a body.

    Args:
        body: as it came.
        encoding: gzip or zstd; one of `supported`.
        limit: the most bytes to unpack.

    Returns:
        the unpacked body, or what is wrong with it: 413 over the limit, 400 where the bytes are not in that encoding.
    """
    pieces: list[bytes] = []
    size = cost = 0
    try:
        for piece in _UNPACK[encoding](body):
            if piece:
                pieces.append(piece)
            size += len(piece)
            cost += len(piece) + PIECE_COST
            if size > limit:
                return too_large(limit)
            if cost >= STEP:
                cost = 0
                await asyncio.sleep(0)
    except BrokenBody as error:
        return broken_body(encoding, str(error))
    return b"".join(pieces)


async def compress(body: bytes, encoding: str) -> bytes:
    """Pack a response in `encoding`, one of `supported`."""
    pieces = []
    for piece in _PACK[encoding](body):
        pieces.append(piece)
        await asyncio.sleep(0)
    return b"".join(pieces)


def takes_turns(response: Response, accept: bytes | None) -> bool:
    """Whether compressing an answer for this Accept-Encoding header takes several turns of the event loop."""
    return len(response.body) > STEP and _encoding_of(response, accept) is not None


def packed_at_once(response: Response, accept: bytes | None) -> Response:
    """Return an answer as the client wants it, with the headers that say so; see `takes_turns`."""
    encoding = _encoding_of(response, accept)
    body = response.body if encoding is None else b"".join(_PACK[encoding](response.body))
    return _with_body(response, body, encoding)


async def packed(response: Response, accept: bytes | None) -> Response:
    """Return an answer as the client wants it, with the headers that say so."""
    encoding = _encoding_of(response, accept)
    body = response.body if encoding is None else await compress(response.body, encoding)
    return _with_body(response, body, encoding)


def _encoding_of(response: Response, accept: bytes | None) -> str | None:
    if accept is None or len(response.body) < LEAST_RESPONSE:
        return None
    if any(name == b"content-encoding" for name, _ in response.headers):
        # Packed by the worker.
        return None
    return choose(accept.decode("latin-1"))


def _with_body(response: Response, body: bytes, encoding: str | None) -> Response:
    headers = [*response.headers, (b"vary", b"accept-encoding")]
    if encoding is not None:
        headers.append((b"content-encoding", encoding.encode()))
    return Response(response.status, headers, body)


def choose(accept: str) -> str | None:
    """Return the encoding for a client that sent the Accept-Encoding header `accept`, or None for none.

    Of the encodings that the client rates highest, ours in the order of `supported` (RFC 9110, section 12.5.3).
    """
    rated = dict(_rated(accept))
    best: tuple[float, str] | None = None
    for encoding in supported():
        rating = rated.get(encoding, rated.get("*", 0.0))
        if rating > 0 and (best is None or rating > best[0]):
            best = (rating, encoding)
    return None if best is None else best[1]


def _rated(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        rating = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    rating = float(parameter[2:])
                except ValueError:
                    rating = 0.0
        yield name, rating


def _unpack_gzip(body: bytes) -> Iterator[bytes]:
    at = empty = 0
    while at < len(body):
        # A gzip body may be several members, one after the other (RFC 1952, section 2.2).
        member, made = zlib.decompressobj(_GZIP_BITS), False
        rest = b""
        try:
            while not member.eof:
                if not rest:
                    # One piece at a time, because the rest behind a member is copied when the member ends.
                    rest = body[at : at + _GZIP_INPUT]
                    at += len(rest)
                piece = member.decompress(rest, STEP)
                rest = member.unconsumed_tail
                if not piece and not rest and not member.eof and at >= len(body):
                    raise BrokenBody("it ends too early")
                made = made or bool(piece)
                yield piece
        except zlib.error as error:
            raise BrokenBody(str(error)) from error
        at -= len(member.unused_data)
        empty = _count_empty(empty, made)


def _unpack_zstd(body: bytes) -> Iterator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
    at = empty = 0
    while at < len(body):
        # One frame after the other (RFC 8878, section 3), each to its end: a plain reader would not notice a missing
        # end.
        frame, made = unpacker.decompressobj(write_size=STEP), False
        try:
            while not frame.eof:
                if at >= len(body):
                    raise BrokenBody("it ends too early")
                piece = frame.decompress(body[at : at + _ZSTD_INPUT])
                at = min(at + _ZSTD_INPUT, len(body))
                made = made or bool(piece)
                if piece:
                    yield from _cut(piece)
                else:
                    yield b""
        except zstandard.ZstdError as error:
            raise BrokenBody(str(error)) from error
        at -= len(frame.unused_data)
        empty = _count_empty(empty, made)


def _count_empty(before: int, made: bool) -> int:
    """Count the empty parts of a body: each needs a new decompressor, and no honest client sends many."""
    empty = before + (not made)
    if empty > MOST_EMPTY:
        raise BrokenBody(f"more than {MOST_EMPTY} of its parts are empty")
    return empty


# zstd's object does not limit its output, but a block of 128 KiB takes at least 4 bytes, so a step makes 2 MiB at most.
_ZSTD_INPUT = 64


def _cut(piece: bytes) -> Iterator[bytes]:
    for start in range(0, len(piece), STEP):
        yield piece[start : start + STEP]


def _pack_gzip(body: bytes) -> Iterator[bytes]:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_BITS)
    for piece in _cut(body):
        yield packer.compress(piece)
    yield packer.flush()


def _pack_zstd(body: bytes) -> Iterator[bytes]:
    import zstandard

    packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=len(body))
    for piece in _cut(body):
        yield packer.compress(piece)
    yield packer.flush()


_UNPACK: dict[str, Callable[[bytes], Iterator[bytes]]] = {"gzip": _unpack_gzip, "zstd": _unpack_zstd}
_PACK: dict[str, Callable[[bytes], Iterator[bytes]]] = {"gzip": _pack_gzip, "zstd": _pack_zstd}
