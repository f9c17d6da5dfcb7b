"""Bytes <-> what a web process and the engine tell each other. Pure.

    frame = magic u16, pad u16, length u32, list of entries as `marshal` has it

All that one side says in a turn goes as one frame. An entry is plain data, and its form says what it is:

    to the engine    13 fields        a `Call`; its payload is bytes, or (description,) where it lies in shared memory
                     number           `Cancel`
                     (call, bytes)    `Credit`
                     (call,)          the result of the call, which lies in shared memory, has been read
                     (n, kind, text)  question n, which is answered
                     [...]            what was counted since the last time; see `counts`
    from the engine  (call, payload)  an `Outcome` that is a result and nothing else, as nearly all are
                     6 fields         any other `Outcome`; its payload as above
                     (call, bytes, times)           a `Chunk`
                     (n, answered, data, None)      the answer to question n
                     [block, ...]     these blocks may be written to again
                     None             tell what you have counted

`marshal` reads and writes plain data at several times the speed of any format of our own, 0.3 µs for a call. It must
not be given to strangers, and is Python's own affair: the socket is private (`ipc.private_socket`), and both ends have
compared their versions before (`handshake`).
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Sequence
from typing import Any

from mosec_asgi import request as requests
from mosec_asgi.errors import CANCELLED
from mosec_asgi.ipc.frames import FrameError, ReceiveBuffer
from mosec_asgi.messages import OK, Call, Chunk, Outcome, StageTime, tuple_new

MAGIC = 0x6D65
MAX_BODY = 1 << 30
HEADER = struct.Struct("<HxxI")
# Without references to objects that come again, which take longer to look for than to write.
_VERSION = 2
CALL_FIELDS = len(Call._fields)
OUTCOME_FIELDS = len(Outcome._fields)
# The place of a call's own time.
TIMEOUT = Call._fields.index("timeout")
# Numbers of calls of one connection.
MOST_CALL_ID = 1 << 40


def encode(entries: list[Any]) -> bytes:
    """Return entries as a frame.

    Raises:
        ValueError: one of them is no plain data, or all together are too large.
    """
    body = marshal.dumps(entries, _VERSION)
    if len(body) > MAX_BODY:
        raise ValueError(f"a frame of {len(body)} bytes, and one has at most {MAX_BODY}")
    return HEADER.pack(MAGIC, len(body)) + body


def encode_apart(entries: list[Any]) -> tuple[list[bytes], list[tuple[Any, ValueError]]]:
    """Return each entry as a frame of its own, and those for which there is none, each with the reason."""
    encoded, failed = list[bytes](), list[tuple[Any, ValueError]]()
    for entry in entries:
        try:
            encoded.append(encode([entry]))
        except ValueError as error:
            failed.append((entry, error))
    return encoded, failed


class Decoder(ReceiveBuffer):
    """Bytes in, lists of entries out; see `ipc.channel.FrameReader`."""

    def next_frame(self) -> list[Any] | None:
        """Return the entries of the next whole frame, or None when more bytes are needed.

        Raises:
            FrameError: the bytes are no frame.
        """
        start = self._position + HEADER.size
        if len(self._buffer) < start:
            return None
        magic, length = HEADER.unpack_from(self._buffer, self._position)
        if magic != MAGIC or length > MAX_BODY:
            raise FrameError(f"no frame: magic {magic:#06x}, body of {length} bytes")
        end = start + length
        if len(self._buffer) < end:
            return None
        try:
            with memoryview(self._buffer) as view:
                entries = marshal.loads(view[start:end])
        except (ValueError, EOFError, TypeError) as error:
            raise FrameError(f"no frame: {error}") from error
        if type(entries) is not list:
            raise FrameError(f"no frame: {type(entries).__name__} in the place of a list")
        self._position = end
        return entries


def plain_call(call: Call, payload: bytes | tuple[bytes]) -> tuple[Any, ...]:
    """Return a call as an entry; `payload` is its own, or the description of where that lies."""
    call_id, route, _, name, timeout, example, objects, priority, key, request, trace, cost, tenant = call
    told = None if request is None else requests.packed(request)
    return (call_id, route, payload, name, timeout, example, objects, priority, key, told, trace, cost, tenant)


def call_of(entry: tuple[Any, ...], call_id: int, payload: Any) -> Call:
    """Return the call that an entry is, with the number and the payload that it has here."""
    _, route, _, name, timeout, example, objects, priority, key, told, trace, cost, tenant = entry
    request = None if told is None else requests.unpacked(told)
    fields = (
        call_id, route, payload, name, timeout, example, objects, priority, key, request, trace, cost, tenant,
    )  # fmt: skip
    return tuple_new(Call, fields)


def plain_outcome(outcome: Outcome, call_id: int, payload: bytes | tuple[bytes]) -> tuple[Any, ...]:
    """Return an outcome as an entry, with the number and the payload that it has for the other side."""
    _, code, _, retry_after, head, times = outcome
    if code == OK and not head and not times and retry_after is None:
        return (call_id, payload)
    return (call_id, int(code), payload, retry_after, head, plain_times(times))


def outcome_of(entry: tuple[Any, ...], payload: Any) -> Outcome:
    """Return the outcome that an entry is."""
    if len(entry) == 2:
        return tuple_new(Outcome, (entry[0], OK, payload, None, b"", ()))
    call_id, code, _, retry_after, head, times = entry
    return tuple_new(Outcome, (call_id, code, payload, retry_after, head, _times(times)))


def plain_times(times: Sequence[StageTime]) -> tuple[tuple[Any, ...], ...]:
    """Return times as plain data."""
    return tuple(map(tuple, times)) if times else ()


def chunk_of(entry: tuple[Any, ...]) -> Chunk:
    """Return the chunk that an entry is."""
    call_id, payload, times = entry
    return tuple_new(Chunk, (call_id, payload, _times(times)))


def cancelled(call_id: int) -> Outcome:
    """Return the outcome of a call that its caller has dropped."""
    return tuple_new(Outcome, (call_id, CANCELLED, b"", None, b"", ()))


def _times(times: Sequence[Sequence[Any]]) -> tuple[StageTime, ...]:
    return tuple(StageTime(*each) for each in times) if times else ()
