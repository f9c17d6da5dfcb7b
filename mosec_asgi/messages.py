"""The messages between the layers: what is asked of the engine, and what is asked of a worker. Pure.

    caller ── Call, Cancel, Credit ──► engine ── Tasks, Cancels, Credits ──► link ══► worker
    caller ◄─ Chunk, Outcome ───────── engine ◄─ Chunks, Results ─────────── link ◄══ worker

A caller (the web, `infer`, a dry run, a test) speaks of single calls; a link carries what is ready for one worker, or
from it, as columns of equal length: a message for many tasks costs as much as one for one task. Nobody changes a
message after it has been made, none is compared by identity, and each survives `pickle`, so that any of these arrows
may cross a socket. Only the edges turn messages into bytes and protocols.

They are a part of the lowest layer because all other layers use them; frames (`ipc`) carry them as well.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from mosec_asgi.errors import Failure
from mosec_asgi.request import Request

OK = 200
# The code of a result that is a `Reply`: what it sets, and the encoded result behind it (`reply`). No status of HTTP.
REPLY = 1201
# The code of a result that says: what the stage before had put into the store for this task is lost, and the task was
# not begun. No status of HTTP.
LOST = 1202
# What stands between the text of a failure and its fields.
FIELDS = b"\0"
# Makes a message, or another named tuple, of all its fields in their order: `tuple_new(Cancel, (call_id,))`. That takes
# half the time of a call of the class and a third of that of `_replace`, 0.12 µs less for a `Call`. For code that runs
# once a request: no default is filled in, and nothing checks how many fields there are.
tuple_new = tuple.__new__


def packed_failure(failure: Failure) -> bytes:
    """Return a failure as a payload: its text in UTF-8, and where there are some, its fields as JSON behind a NUL."""
    # A text may contain what is not Unicode, such as the name of a file; that is escaped. NUL it never needs.
    text = failure.text.replace("\0", " ").encode(errors="backslashreplace")
    if not failure.fields:
        return text
    return text + FIELDS + json.dumps(failure.fields).encode()


def _unpacked_fields(packed: bytes) -> Mapping[str, Any] | None:
    """Return the fields of a failure; None where there are none, or what a worker has sent is none."""
    try:
        fields = json.loads(packed) if packed else None
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


class LinkError(Exception):
    """A worker has sent what it must not send, so its link cannot be used any more. The text names the fault."""


class HeldPayload(Protocol):
    """A payload in memory that a link shares with its worker, until whoever has the payload drops it."""

    def __len__(self) -> int:
        """Return a number of bytes, not more than the payload has."""

    def read(self) -> bytes:
        """Return the payload as bytes, as if the worker had sent them."""

    def lend(self) -> memoryview:
        """Return the payload as bytes where it lies, to be read, and released before the payload is dropped.

        Raises:
            LinkError: it is no bytes.
        """

    def copy(self) -> bytes:
        """Return the payload as bytes that stand for themselves, whatever it is; it stays where it is."""

    def load(self) -> Any:
        """Return the object that is pickled in the payload, in place of dropping it.

        Large buffers of the object stay in the memory, which is given back when the last reference to them has gone.
        """

    def drop(self) -> None:
        """Give the memory back. To be called once."""


Payload: TypeAlias = bytes | HeldPayload


class Pieces:
    """A payload as reads of a connection have brought it, which nobody has put together yet; see `HeldPayload`.

    Attributes:
        pieces: in their order; each may be a part of what a read has brought.
    """

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        """Keep pieces that have `size` bytes together."""
        self.pieces = pieces
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (self.copy(),)

    def read(self) -> bytes:
        """Return them as one."""
        return b"".join(self.pieces)

    def lend(self) -> memoryview:
        """Return the same."""
        return memoryview(self.read())

    def copy(self) -> bytes:
        """Return the same."""
        return self.read()

    def load(self) -> Any:
        """Return the object that is pickled in them."""
        return pickle.loads(self.read())

    def drop(self) -> None:
        """Do nothing: they go when nobody refers to them any more."""


class StageTime(NamedTuple):
    """What the time of a call went into at one stage, in seconds.

    Attributes:
        stage: the stage's name.
        queue: until a worker turned to it.
        compute: from then until the worker had answered it, sent its first event, or had taken until the call's end.
    """

    stage: str
    queue: float
    compute: float


class Call(NamedTuple):
    """A request, as the engine sees it.

    Attributes:
        id: a number that the caller chooses, and by which it cancels the call; see `Engine.new_id`.
        route: the place of its route in the service's list.
        payload: the encoded input. Once the call is submitted, the engine drops one that a link holds.
        request_id: what the logs and the client call it.
        timeout: seconds until the call is answered 408; the service's own timeout where that is shorter, or where
            this is None. For a stream, seconds until its first chunk.
        example: run the first worker's example in place of `payload`.
        objects: the input is a pickled object, which the first worker's `forward` is given as it is; and what the last
            one's returns, or yields, is pickled as well.
        priority: what comes first where there is a choice: the higher number.
        key: what it may share a batch with: calls of the same key.
        request: what workers are told of its request; None where no stage of the route asks for it.
        trace: the `traceparent` (W3C Trace Context) of the span that its stages' spans are children of, and behind a
            blank its `tracestate`, where it has one; empty where the call is not traced.
        cost: of its input, for the first stage (`labels.Label`).
        tenant: on whose behalf it comes, where tenants are to have their turns; empty for nobody's.
    """

    id: int
    route: int
    payload: Payload
    request_id: str
    timeout: float | None = None
    example: bool = False
    objects: bool = False
    priority: int = 0
    key: str = ""
    request: Request | None = None
    trace: str = ""
    cost: int = 1
    tenant: str = ""


class Outcome(NamedTuple):
    """What has become of a call: its result, or what went wrong. A refusal is one, too.

    Attributes:
        call_id: the number of the call.
        code: an HTTP status; 200 for a result.
        payload: the encoded result; empty for a stream that has ended well; a failure as `packed_failure`. Only the
            result of a call of objects, or of a caller that says so (`engine.TAKES_HELD`), may be one that a link
            holds, which is the caller's to drop.
        retry_after: seconds after which the client may try again, or None where trying again is no remedy.
        head: of a result that is a `Reply`, what it sets (`reply`); empty for any other.
        times: of the stages that it has been at, where the service notes them; empty for a refusal.
    """

    call_id: int
    code: int
    payload: Payload
    retry_after: int | None = None
    head: bytes = b""
    times: Sequence[StageTime] = ()

    @classmethod
    def of_failure(cls, call_id: int, failure: Failure) -> Outcome:
        """Return the outcome of a call that has failed."""
        return cls(call_id, int(failure.code), packed_failure(failure), failure.retry_after)

    @property
    def failure(self) -> Failure | None:
        """What went wrong; None for a result."""
        if self.code == OK:
            return None
        payload = self.payload
        text, _, fields = (payload if isinstance(payload, bytes) else payload.read()).partition(FIELDS)
        return Failure(self.code, text.decode(errors="replace"), self.retry_after, _unpacked_fields(fields))


class Chunk(NamedTuple):
    """A piece of the stream that answers a call.

    Attributes:
        call_id: the number of the call.
        payload: bytes to pass on.
        times: with the first piece, those of the stages until then, where the service notes them.
    """

    call_id: int
    payload: bytes
    times: Sequence[StageTime] = ()


class Credit(NamedTuple):
    """The caller has passed on `size` more bytes of a stream's chunks, which makes room for as many."""

    call_id: int
    size: int


class Cancel(NamedTuple):
    """Nobody waits for the call any more."""

    call_id: int


# Where a task stands in its pipeline, which decides how the worker decodes and encodes it. Plain numbers, added up: an
# operation on an enum.IntFlag takes 20 times as long, and each task needs several.
INGRESS = 1
EGRESS = 2
# The input is the worker's own example, not the payload: a dry run.
EXAMPLE = 4
# In the place of the first two, for a call of objects: the input is a pickled object; the result is to be pickled.
OBJECT_IN = 16
OBJECT_OUT = 32


# Beside these, and the highest of all: the server makes a span of its `forward`, and wants to know its time.
TRACED = 64


class Tasks(NamedTuple):
    """Work for a worker: columns of equal length, a task at each place.

    Attributes:
        ids: the tasks' numbers.
        flags: the sum of `INGRESS`, `EGRESS`, `EXAMPLE`, `OBJECT_IN`, `OBJECT_OUT` and `TRACED` for each.
        request_ids: what the logs call the requests.
        payloads: the encoded inputs.
        requests: what the worker is told of the requests (`request.packed`); empty where it does not ask for it, and
            none of them is traced.
    """

    ids: Sequence[int]
    flags: Sequence[int]
    request_ids: Sequence[str]
    payloads: Sequence[Payload]
    requests: Sequence[bytes] = ()


class ForwardTime(NamedTuple):
    """When `forward` had a task, by the worker's own clock: of two machines' clocks nobody knows the difference.

    Attributes:
        ago: seconds from the beginning of its first call with the task to the answer; 0 where there was none.
        seconds: from that beginning to the end of its last call.
        calls: of `forward` with the task.
    """

    ago: float
    seconds: float
    calls: int


class Results(NamedTuple):
    """Answers of a worker: columns of equal length, and the time it was at work on them.

    Attributes:
        ids: the tasks' numbers.
        codes: an HTTP status each; 200 means that the payload is the encoded result, else it is the error's text. Or
            `REPLY`.
        payloads: the encoded results, or texts.
        seconds: time from decoding the first to encoding the last, waiting not included.
        forwards: when `forward` had each of them, where one of them is traced; else empty.
        labels: the cost and the key of each for the next stage (`labels.Label`); empty where that does not ask.
    """

    ids: Sequence[int]
    codes: Sequence[int]
    payloads: Sequence[Payload]
    seconds: float
    forwards: Sequence[ForwardTime] = ()
    labels: Sequence[tuple[int, str]] = ()


class Chunks(NamedTuple):
    """Pieces of streams: two columns of equal length.

    Attributes:
        ids: the tasks' numbers; a task may stand there several times.
        payloads: bytes to pass on.
    """

    ids: Sequence[int]
    payloads: Sequence[bytes]


class Cancels(NamedTuple):
    """Nobody waits for the tasks `ids` any more. The worker must still answer each of them, with any status."""

    ids: Sequence[int]


class Credits(NamedTuple):
    """What clients have taken of their streams since the last such message: two columns of equal length.

    Attributes:
        ids: the tasks' numbers.
        sizes: bytes.
    """

    ids: Sequence[int]
    sizes: Sequence[int]


class Progress(NamedTuple):
    """How far a worker has come.

    Attributes:
        begun: tasks that it has begun in its life, in the order in which they were sent.
        beats: grows with each step; a worker that has tasks and whose number does not change is stuck.
    """

    begun: int
    beats: int


def drop_all(payloads: Sequence[Payload]) -> None:
    """Drop those payloads that a link holds."""
    for payload in payloads:
        if not isinstance(payload, bytes):
            payload.drop()
