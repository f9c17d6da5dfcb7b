"""Bytes <-> messages between the event loop and a worker process. No I/O, as in h11.

A frame carries all that one side has ready for the other in one turn, so that a busy pipe costs one write and one
read for many tasks. All numbers are little-endian.

    frame    = header, body
    header   = magic u16, kind u8, pad u8, count u32, body length u64, seconds f64              (24 bytes)
    TASKS    = count x (task u64, payload length u64, flags u16, request id length u16), request ids, payloads
    REQUESTS = as TASKS, and behind it count x (length u32), and what the worker is told of the requests behind them
    RESULTS  = count x (task u64, payload length u64, status u16), payloads; seconds = the worker's time on them
    TIMED    = as RESULTS, and behind it count x (ago f64, seconds f64, calls u32): when `forward` had the task
    LABELLED = as RESULTS, and behind it count x (cost u64, key length u16), keys: what the next stage asks for
    LABELLED_TIMED = as LABELLED, and behind it what TIMED has behind RESULTS
    CHUNKS   = count x (task u64, payload length u64), payloads: pieces of streams, several of one task in order
    CANCELS  = count x (task u64): nobody waits for these any more
    CREDITS  = count x (task u64, bytes u64): what clients have taken of their streams
    KEPT     = count x (block u64): the worker will still read these blocks after it has answered their tasks
    RELEASED = count x (block u64): the worker no longer needs these blocks, which it had kept
    FREED    = count x (block u64): nobody needs these blocks any more, so the worker may write there again
    READY    = nothing: the worker has loaded and warmed up
    FAILED   = text: the traceback of a worker that could not start
    NOTED    = 1 x (begun u64, memory u64): how far a worker has come that shares no memory with the server
    FINISH   = nothing: no more tasks come; where the end of the stream says that the server is gone
    COUNTED  = file's kind, its bytes; count = the kind's length: what a worker on another machine has counted

A large payload lies in memory that both sides share, and a reference to it (`ipc.reference`) stands in its place: the
flag `SHARED` of a task and the status `IN_MEMORY` of a result say so. A block of that memory is identified by its
beginning.

The table comes first, as one block of numbers, so that a frame is written by one `pack` and one `join` and read by
one `unpack`, however many tasks it holds. For a frame with one row, as for a single request, no columns are made. The
end of the stream asks a worker to stop, and tells the server that the worker has stopped.

The reading side trusts nothing: a frame with a wrong magic, an unknown kind, an invalid status or lengths that do not
add up raises `FrameError`. After that nothing on the stream can be read, and the peer must be treated as dead.
"""

from __future__ import annotations

import enum
import functools
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from mosec_asgi.messages import LOST, REPLY, Cancels, Chunks, Credits, ForwardTime, LinkError, Results, Tasks, tuple_new

MAGIC = 0x6D61
MAX_BODY = 1 << 34
HEADER = struct.Struct("<HBxIQd")
_HEADER_SIZE = HEADER.size

TASK_ENTRY = "QQHH"
RESULT_ENTRY = "QQH"
CHUNK_ENTRY = "QQ"
CANCEL_ENTRY = "Q"
BLOCK_ENTRY = "Q"
CREDIT_ENTRY = "QQ"
REQUEST_ENTRY = "I"
FORWARD_ENTRY = "ddI"
LABEL_ENTRY = "QH"
_ENTRY_SIZES = {
    entry: struct.calcsize("<" + entry)
    for entry in (
        TASK_ENTRY,
        RESULT_ENTRY,
        CHUNK_ENTRY,
        CANCEL_ENTRY,
        CREDIT_ENTRY,
        REQUEST_ENTRY,
        FORWARD_ENTRY,
        LABEL_ENTRY,
    )
}
# A frame's header and its only row.
_ONE_TASK = struct.Struct(HEADER.format + TASK_ENTRY)
_ONE_RESULT = struct.Struct(HEADER.format + RESULT_ENTRY)
_ONE_CHUNK = struct.Struct(HEADER.format + CHUNK_ENTRY)
# The statuses of a result: a result, a result in shared memory, an input that is lost, a reply, an error, or 499
# (nginx's number) where nobody waits for it.
IN_MEMORY = 1200
STATUSES = frozenset({IN_MEMORY, LOST, REPLY, 200, *range(400, 600)})


class FrameError(LinkError):
    """The bytes are not a frame; nothing more on the stream can be read."""


class Kind(enum.IntEnum):
    """What a frame carries."""

    TASKS = 1
    RESULTS = 2
    READY = 3
    FAILED = 4
    CHUNKS = 5
    CANCELS = 6
    CREDITS = 7
    KEPT = 8
    RELEASED = 9
    FREED = 10
    REQUESTS = 11
    TIMED = 12
    LABELLED = 13
    LABELLED_TIMED = 14
    NOTED = 15
    FINISH = 16
    COUNTED = 17


# What each request meets: to read a member of its class takes CPython 3.11 several times as long.
_TASKS, _RESULTS, _CHUNKS = Kind.TASKS, Kind.RESULTS, Kind.CHUNKS
# A flag of a task: its payload is a reference to shared memory.
SHARED = 8


@dataclass(slots=True)
class Kept:
    """The worker will still read the blocks at `blocks` after it has answered their tasks."""

    blocks: Sequence[int]


@dataclass(slots=True)
class Released:
    """The worker no longer needs the blocks at `blocks`, which it had kept."""

    blocks: Sequence[int]


@dataclass(slots=True)
class Freed:
    """Nobody needs the blocks at `blocks` any more, which the worker has written."""

    blocks: Sequence[int]


@dataclass(slots=True)
class Ready:
    """The worker has loaded and warmed up."""


@dataclass(slots=True)
class Failed:
    """The worker could not start; `text` is its traceback."""

    text: str


@dataclass(slots=True)
class Noted:
    """The worker has begun so many tasks in its life, and takes so many bytes of memory; 0 where it does not know."""

    begun: int
    memory: int


@dataclass(slots=True)
class Finish:
    """The worker is to stop once it has answered what it has."""


@dataclass(slots=True)
class Counted:
    """The user's metrics of a worker, of one kind, as prometheus_client has them in a file."""

    kind: str
    values: bytes


Frame = (
    Tasks | Results | Chunks | Cancels | Credits
    | Kept | Released | Freed | Ready | Failed | Noted | Finish | Counted
)  # fmt: skip

# The frames that are tables of numbers and nothing else.
_NUMBERS: dict[int, tuple[str, Callable[..., Frame]]] = {
    Kind.CANCELS: (CANCEL_ENTRY, Cancels),
    Kind.CREDITS: (CREDIT_ENTRY, Credits),
    Kind.KEPT: (BLOCK_ENTRY, Kept),
    Kind.RELEASED: (BLOCK_ENTRY, Released),
    Kind.FREED: (BLOCK_ENTRY, Freed),
}
_KIND_OF: dict[type, Kind] = {Kept: Kind.KEPT, Released: Kind.RELEASED, Freed: Kind.FREED}


@functools.lru_cache(maxsize=256)
def _table(entry: str, count: int) -> struct.Struct:
    return struct.Struct("<" + entry * count)


_TASK_ROW = _table(TASK_ENTRY, 1)
_RESULT_ROW = _table(RESULT_ENTRY, 1)
_CHUNK_ROW = _table(CHUNK_ENTRY, 1)
_TASK_SIZE, _RESULT_SIZE, _CHUNK_SIZE = _TASK_ROW.size, _RESULT_ROW.size, _CHUNK_ROW.size
_NOTED_ROW = struct.Struct("<QQ")
_ONE_NOTED = struct.Struct(HEADER.format + "QQ")


def _pack_table(entry: str, columns: Sequence[Iterable[int]], count: int) -> bytes:
    """Return the columns of a table as bytes, row by row."""
    width = len(entry)
    numbers = [0] * (width * count)
    for place, column in enumerate(columns):
        numbers[place::width] = column
    return _table(entry, count).pack(*numbers)


def _frame(kind: Kind, count: int, seconds: float, parts: list[bytes]) -> bytes:
    parts[0] = HEADER.pack(MAGIC, kind, count, sum(map(len, parts)), seconds)
    return b"".join(parts)


def encode_tasks(tasks: Tasks) -> bytes:
    """Return `tasks`, whose payloads are bytes, as a frame."""
    payloads: Sequence[bytes] = tasks.payloads  # type: ignore[assignment]  # what is held stands there as a reference
    request_ids = [request_id.encode() for request_id in tasks.request_ids]
    count = len(request_ids)
    if tasks.requests:
        return _encode_with_requests(tasks, payloads, request_ids)
    if count == 1:
        (task_id,), (task_flags,), (payload,), (name,) = tasks.ids, tasks.flags, payloads, request_ids
        size, name_size = len(payload), len(name)
        body = _TASK_SIZE + name_size + size
        row = (task_id, size, task_flags, name_size)
        return _ONE_TASK.pack(MAGIC, _TASKS, 1, body, 0.0, *row) + name + payload
    columns = (tasks.ids, map(len, payloads), tasks.flags, map(len, request_ids))
    table = _pack_table(TASK_ENTRY, columns, count)
    return _frame(_TASKS, count, 0.0, [b"", table, *request_ids, *payloads])


def _encode_with_requests(tasks: Tasks, payloads: Sequence[bytes], request_ids: list[bytes]) -> bytes:
    count = len(request_ids)
    columns = (tasks.ids, map(len, payloads), tasks.flags, map(len, request_ids))
    table = _pack_table(TASK_ENTRY, columns, count)
    lengths = _pack_table(REQUEST_ENTRY, (map(len, tasks.requests),), count)
    return _frame(Kind.REQUESTS, count, 0.0, [b"", table, *request_ids, *payloads, lengths, *tasks.requests])


def encode_results(results: Results) -> bytes:
    """Return `results`, whose payloads are bytes, as a frame."""
    ids, codes, held, seconds, forwards, labels = results
    payloads: Sequence[bytes] = held  # type: ignore[assignment]  # what is held stands there as a reference
    count = len(ids)
    if labels or forwards:
        return _encode_with_more(results, payloads)
    if count == 1:
        (task_id,), (code,), (payload,) = ids, codes, payloads
        size = len(payload)
        body, row = _RESULT_SIZE + size, (task_id, size, code)
        return _ONE_RESULT.pack(MAGIC, _RESULTS, 1, body, seconds, *row) + payload
    table = _pack_table(RESULT_ENTRY, (ids, map(len, payloads), codes), count)
    return _frame(_RESULTS, count, seconds, [b"", table, *payloads])


def _encode_with_more(results: Results, payloads: Sequence[bytes]) -> bytes:
    """Return results with their labels, with the times of `forward`, or with both."""
    count = len(results.ids)
    parts = [b"", _pack_table(RESULT_ENTRY, (results.ids, map(len, payloads), results.codes), count), *payloads]
    if results.labels:
        costs, texts = zip(*results.labels, strict=True)
        keys = [key.encode() for key in texts]
        parts += [_pack_table(LABEL_ENTRY, (costs, map(len, keys)), count), *keys]
    if not results.forwards:
        return _frame(Kind.LABELLED, count, results.seconds, parts)
    parts.append(_pack_table(FORWARD_ENTRY, list(zip(*results.forwards, strict=True)), count))
    return _frame(Kind.LABELLED_TIMED if results.labels else Kind.TIMED, count, results.seconds, parts)


def encode_chunks(chunks: Chunks) -> bytes:
    """Return `chunks` as a frame."""
    count = len(chunks.ids)
    if count == 1:
        (task_id,), (payload,) = chunks
        size = len(payload)
        return _ONE_CHUNK.pack(MAGIC, _CHUNKS, 1, _CHUNK_SIZE + size, 0.0, task_id, size) + payload
    table = _pack_table(CHUNK_ENTRY, (chunks.ids, map(len, chunks.payloads)), count)
    return _frame(_CHUNKS, count, 0.0, [b"", table, *chunks.payloads])


def encode_cancels(cancels: Cancels) -> bytes:
    """Return `cancels` as a frame."""
    count = len(cancels.ids)
    return _frame(Kind.CANCELS, count, 0.0, [b"", _pack_table(CANCEL_ENTRY, (cancels.ids,), count)])


def encode_credits(credits: Credits) -> bytes:
    """Return `credits` as a frame."""
    count = len(credits.ids)
    return _frame(Kind.CREDITS, count, 0.0, [b"", _pack_table(CREDIT_ENTRY, (credits.ids, credits.sizes), count)])


def encode_blocks(frame: Kept | Released | Freed) -> bytes:
    """Return a frame that is about blocks of shared memory."""
    count = len(frame.blocks)
    return _frame(_KIND_OF[type(frame)], count, 0.0, [b"", _pack_table(BLOCK_ENTRY, (frame.blocks,), count)])


def encode_ready() -> bytes:
    """Return the frame that says: the worker has loaded and warmed up."""
    return _frame(Kind.READY, 0, 0.0, [b""])


def encode_failed(text: str) -> bytes:
    """Return the frame of a worker that could not start; `text` is its traceback."""
    return _frame(Kind.FAILED, 0, 0.0, [b"", text.encode(errors="backslashreplace")])


def encode_noted(noted: Noted) -> bytes:
    """Return the frame that says how far the worker has come."""
    return _ONE_NOTED.pack(MAGIC, Kind.NOTED, 1, _NOTED_ROW.size, 0.0, noted.begun, noted.memory)


def encode_finish() -> bytes:
    """Return the frame that asks the worker to stop."""
    return _frame(Kind.FINISH, 0, 0.0, [b""])


def encode_counted(counted: Counted) -> bytes:
    """Return the frame of a file of metrics."""
    kind = counted.kind.encode()
    return _frame(Kind.COUNTED, len(kind), 0.0, [b"", kind, counted.values])


class ReceiveBuffer:
    """The bytes that a decoder of frames, of whatever kind, has taken in and not yet used."""

    def __init__(self) -> None:
        """Start at a frame's boundary."""
        self._buffer: bytes | bytearray = b""
        self._position = 0

    def receive_data(self, data: bytes) -> None:
        """Take in bytes as they came, cut anywhere."""
        if self._position == len(self._buffer):
            # The usual case, and the quick one: nothing is left over, so `data` is parsed where it lies.
            self._buffer = data
        else:
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray(memoryview(self._buffer)[self._position :])
            elif self._position:
                del self._buffer[: self._position]
            self._buffer += data
        self._position = 0

    @property
    def pending(self) -> int:
        """Bytes taken in that are not yet part of a whole frame."""
        return len(self._buffer) - self._position


class Decoder(ReceiveBuffer):
    """Bytes in, frames out: feed `receive_data`, then take `next_frame` until it returns None."""

    def __init__(self, max_body: int = MAX_BODY) -> None:
        """Start at a frame's boundary.

        Args:
            max_body: the longest valid body, in bytes.
        """
        super().__init__()
        self._max_body = max_body
        self._needed = _HEADER_SIZE

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None when more bytes are needed.

        Raises:
            FrameError: the bytes are no frame.
        """
        available = len(self._buffer) - self._position
        if available < self._needed:
            return None
        magic, kind, count, length, seconds = HEADER.unpack_from(self._buffer, self._position)
        if magic != MAGIC or length > self._max_body:
            raise FrameError(f"no frame: magic {magic:#06x}, kind {kind}, body of {length} bytes")
        if available < _HEADER_SIZE + length:
            self._needed = _HEADER_SIZE + length
            return None
        start = self._position + _HEADER_SIZE
        end = self._position = start + length
        self._needed = _HEADER_SIZE
        buffer = self._buffer
        if isinstance(buffer, bytearray):
            # The frame came in pieces: the body is copied once, so that its payloads are bytes.
            with memoryview(buffer) as view:
                buffer, start, end = bytes(view[start:end]), 0, length
        if kind == _RESULTS:
            return _decode_results(buffer, start, end, count, seconds)
        if kind == _TASKS:
            return _decode_tasks(buffer, start, end, count)
        if kind == _CHUNKS:
            return _decode_chunks(buffer, start, end, count)
        if kind in (Kind.TIMED, Kind.LABELLED_TIMED):
            return _decode_timed(buffer, start, end, count, seconds, labelled=kind == Kind.LABELLED_TIMED)
        if kind == Kind.LABELLED:
            return _decode_labelled(buffer, start, end, count, seconds)
        if kind == Kind.REQUESTS:
            return _decode_with_requests(buffer, start, end, count)
        if kind in _NUMBERS:
            return _decode_numbers(kind, buffer, start, end, count)
        return _decode_notice(kind, count, buffer[start:end])


def _unpack_table(entry: str, data: bytes, start: int, end: int, count: int) -> tuple[list[tuple[int, ...]], int]:
    """Return the columns of the table at `start`, and where it ends."""
    table_end = start + _ENTRY_SIZES[entry] * count
    if table_end > end:
        raise FrameError(f"no frame: a table of {count} rows in a body of {end - start} bytes")
    numbers = _table(entry, count).unpack_from(data, start)
    width = len(entry)
    return [numbers[place::width] for place in range(width)], table_end


def _cut(data: bytes, position: int, lengths: Sequence[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise(accumulate(lengths, initial=position))]


def _decode_results(data: bytes, start: int, end: int, count: int, seconds: float) -> Results:
    if count == 1 and end - start >= _RESULT_SIZE:
        task_id, length, code = _RESULT_ROW.unpack_from(data, start)
        position = start + _RESULT_SIZE
        if code in STATUSES and position + length == end and 0.0 <= seconds < math.inf:
            return tuple_new(Results, ((task_id,), (code,), [data[position:end]], seconds, (), ()))
        # Not valid: the code below finds out why.
    (ids, lengths, codes), position = _unpack_table(RESULT_ENTRY, data, start, end, count)
    if not 0.0 <= seconds < math.inf:
        raise FrameError(f"no frame: results that took {seconds} seconds")
    if not STATUSES.issuperset(codes):
        raise FrameError(f"no frame: results with the statuses {sorted(set(codes) - STATUSES)}")
    if position + sum(lengths) != end:
        raise FrameError(f"no frame: {count} results do not add up to a body of {end - start} bytes")
    return Results(ids, codes, _cut(data, position, lengths), seconds)


def _decode_timed(data: bytes, start: int, end: int, count: int, seconds: float, *, labelled: bool) -> Results:
    results_end = end - _ENTRY_SIZES[FORWARD_ENTRY] * count
    if results_end < start:
        raise FrameError(f"no frame: {count} times in a body of {end - start} bytes")
    results = (_decode_labelled if labelled else _decode_results)(data, start, results_end, count, seconds)
    columns, _ = _unpack_table(FORWARD_ENTRY, data, results_end, end, count)
    forwards = list(map(ForwardTime, *columns))
    for ago, took, _ in forwards:
        if not 0.0 <= took <= ago < math.inf:
            raise FrameError(f"no frame: `forward` took {took} of the last {ago} seconds")
    return results._replace(forwards=forwards)


def _decode_labelled(data: bytes, start: int, end: int, count: int, seconds: float) -> Results:
    (_, lengths, _), position = _unpack_table(RESULT_ENTRY, data, start, end, count)
    results_end = position + sum(lengths)
    # Checked here, as the table behind the results is read first where they are cut short.
    if results_end > end:
        raise FrameError(f"no frame: {count} results do not add up to a body of {end - start} bytes")
    (costs, sizes), position = _unpack_table(LABEL_ENTRY, data, results_end, end, count)
    if position + sum(sizes) != end:
        raise FrameError(f"no frame: {count} keys do not add up to a body of {end - start} bytes")
    try:
        keys = [key.decode() for key in _cut(data, position, sizes)]
    except UnicodeDecodeError as error:
        raise FrameError("no frame: a key is not UTF-8") from error
    results = _decode_results(data, start, results_end, count, seconds)
    return results._replace(labels=list(zip(costs, keys, strict=True)))


def _decode_chunks(data: bytes, start: int, end: int, count: int) -> Chunks:
    if count == 1 and end - start >= _CHUNK_SIZE:
        task_id, length = _CHUNK_ROW.unpack_from(data, start)
        position = start + _CHUNK_SIZE
        if position + length == end:
            return Chunks((task_id,), (data[position:end],))
        # Not valid: the code below finds out why.
    (ids, lengths), position = _unpack_table(CHUNK_ENTRY, data, start, end, count)
    if position + sum(lengths) != end:
        raise FrameError(f"no frame: {count} chunks do not add up to a body of {end - start} bytes")
    return Chunks(ids, _cut(data, position, lengths))


def _decode_numbers(kind: int, data: bytes, start: int, end: int, count: int) -> Frame:
    entry, made_of = _NUMBERS[kind]
    columns, position = _unpack_table(entry, data, start, end, count)
    if position != end:
        raise FrameError(f"no frame: {count} rows do not add up to a body of {end - start} bytes")
    return made_of(*columns)


def _decode_tasks(data: bytes, start: int, end: int, count: int) -> Tasks:
    if count == 1 and end - start >= _TASK_SIZE:
        task_id, length, task_flags, name_length = _TASK_ROW.unpack_from(data, start)
        position = start + _TASK_SIZE
        names_end = position + name_length
        if names_end + length == end and (name := data[position:names_end]).isascii():
            return tuple_new(Tasks, ((task_id,), (task_flags,), [name.decode()], [data[names_end:end]], ()))
        # Not valid: the code below finds out why.
    (ids, lengths, flags, name_lengths), position = _unpack_table(TASK_ENTRY, data, start, end, count)
    names_end = position + sum(name_lengths)
    if names_end + sum(lengths) != end:
        raise FrameError(f"no frame: {count} tasks do not add up to a body of {end - start} bytes")
    try:
        names = data[position:names_end].decode()
        if len(names) == names_end - position:
            # ASCII, as nearly all are: decoded once, and cut as text.
            ends = accumulate(name_lengths, initial=0)
            request_ids = [names[start:end] for start, end in pairwise(ends)]
        else:
            request_ids = [name.decode() for name in _cut(data, position, name_lengths)]
    except UnicodeDecodeError as error:
        raise FrameError("no frame: a request id is not UTF-8") from error
    return Tasks(ids, flags, request_ids, _cut(data, names_end, lengths))


def _decode_with_requests(data: bytes, start: int, end: int, count: int) -> Tasks:
    (_, lengths, _, name_lengths), position = _unpack_table(TASK_ENTRY, data, start, end, count)
    tasks_end = position + sum(name_lengths) + sum(lengths)
    # Checked here, as the table behind the tasks is read first where they are cut short.
    if tasks_end > end:
        raise FrameError(f"no frame: {count} tasks do not add up to a body of {end - start} bytes")
    (sizes,), position = _unpack_table(REQUEST_ENTRY, data, tasks_end, end, count)
    if position + sum(sizes) != end:
        raise FrameError(f"no frame: {count} requests do not add up to a body of {end - start} bytes")
    tasks = _decode_tasks(data, start, tasks_end, count)
    return tasks._replace(requests=_cut(data, position, sizes))


def _decode_notice(kind: int, count: int, body: bytes) -> Ready | Failed | Noted | Finish | Counted:
    if kind == Kind.NOTED and count == 1 and len(body) == _NOTED_ROW.size:
        return Noted(*_NOTED_ROW.unpack(body))
    if kind == Kind.FINISH and not body and not count:
        return Finish()
    if kind == Kind.COUNTED and count < len(body) and body[:count].isascii():
        return Counted(body[:count].decode(), body[count:])
    if kind == Kind.READY and not body and not count:
        return Ready()
    if kind == Kind.FAILED and not count:
        return Failed(body.decode(errors="replace"))
    raise FrameError(f"no frame: kind {kind} with {count} rows and a body of {len(body)} bytes")
