"""A reference, which stands in a frame in place of a large payload: where in shared memory the payload lies. Pure.

    reference = kind u8, pad 3 x u8, count u32, count x (begin u64, length u64), stream

A payload of bytes is one block. A pickled payload is a stream and the buffers that it refers to, one block for each
buffer. A small stream is a part of the reference; a large one is the first block. The reading side trusts nothing.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from mosec_asgi.ipc.arena import PAGE
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.messages import tuple_new

_HEAD = struct.Struct("<B3xI")
_SPAN = struct.Struct("<QQ")
# A payload of bytes, as nearly all that are read for clients.
_ONE = struct.Struct("<B3xIQQ")


class Kind(enum.IntEnum):
    """What a payload in shared memory is."""

    BYTES = 1
    PICKLE = 2
    LARGE_PICKLE = 3


# A look-up is many times quicker than a call of the enum, and a name of the module than one of its class; each large
# payload needs both.
_KINDS = {int(kind): kind for kind in Kind}
BYTES, PICKLE, LARGE_PICKLE = Kind
_ONE_SIZE = _ONE.size


class Span(NamedTuple):
    """A block: where it begins in the shared memory, and the bytes that are used of it."""

    begin: int
    length: int


class Contents(NamedTuple):
    """A reference that has been read.

    Attributes:
        kind: what it is.
        spans: its blocks.
        stream: of a pickled payload whose stream is small.
    """

    kind: Kind
    spans: Sequence[Span]
    stream: bytes


def pack(kind: Kind, spans: Sequence[Span], stream: bytes = b"") -> bytes:
    """Return a reference as bytes."""
    if kind is BYTES and len(spans) == 1 and not stream:
        return _ONE.pack(kind, 1, *spans[0])
    return b"".join([_HEAD.pack(kind, len(spans)), *[_SPAN.pack(*span) for span in spans], stream])


def unpack(data: bytes) -> Contents:
    """Read a reference.

    Raises:
        FrameError: the bytes are not a reference.
    """
    if len(data) == _ONE_SIZE:
        number, count, begin, length = _ONE.unpack(data)
        if number == 1 and count == 1 and length and not begin % PAGE:
            # Read at once: 1.2 µs in the place of 2.2, and each large body and answer is read several times.
            return tuple_new(Contents, (BYTES, [tuple_new(Span, (begin, length))], b""))
        # Not valid, or of another kind: the code below finds out.
    try:
        number, count = _HEAD.unpack_from(data)
        kind = _KINDS[number]
        end = _HEAD.size + count * _SPAN.size
        if not count or end > len(data):
            raise ValueError(f"{count} blocks in {len(data)} bytes")
        spans = [Span(*numbers) for numbers in _SPAN.iter_unpack(memoryview(data)[_HEAD.size : end])]
    except (struct.error, KeyError, ValueError) as error:
        raise FrameError(f"no reference: {error}") from error
    stream = data[end:]
    if bool(stream) != (kind is PICKLE) or (kind is BYTES and count > 1):
        raise FrameError(f"no reference: {kind.name} of {count} blocks and a stream of {len(stream)} bytes")
    for begin, length in spans:
        if begin % PAGE or not length:
            raise FrameError(f"no reference: a block of {length} bytes at {begin}")
    return Contents(kind, spans, stream)
