"""What a user subclasses to stream: `SSEWorker` and `ContinuousWorker`, and the events that they send.

An event is text, bytes or an `Event`. The worker process gives it the form in which it goes over the wire, so that the
server passes bytes on and nothing more.
"""

from __future__ import annotations

import abc
import enum
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mosec_asgi.errors import EncodingError
from mosec_asgi.worker import Worker

EVENT_STREAM = "text/event-stream"


class Finished(enum.Enum):
    """The type of `FINISHED`."""

    FINISHED = "finished"

    def __repr__(self) -> str:
        return "FINISHED"


# In the place of an event: the stream has ended well.
FINISHED: Final = Finished.FINISHED


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event with more than its data.

    Attributes:
        data: the text; each of its lines becomes a `data:` line. Bytes must be UTF-8.
        event: the event's type, one line; a browser takes it for "message" where there is none.
        id: what a browser sends back as `Last-Event-ID` when it connects again, one line.
        retry: milliseconds after which a browser connects again.
    """

    data: str | bytes = ""
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None and any(character in value for character in "\r\n\0"):
                raise ValueError(f"the {name} of an event is one line of text, not {value!r}")
        if self.retry is not None and (isinstance(self.retry, bool) or self.retry < 0):
            raise ValueError(f"retry is a whole number of milliseconds, 0 or more, not {self.retry!r}")


def encode_event(event: Any) -> bytes:
    """Return an event as it stands in a `text/event-stream` (WHATWG HTML, section 9.2).

    Raises:
        EncodingError: it is no event, or its text is not valid UTF-8.
    """
    if isinstance(event, Event):
        fields = [] if event.event is None else [b"event: " + _utf8(event.event) + b"\n"]
        fields.append(_data_lines(event.data))
        if event.id is not None:
            fields.append(b"id: " + _utf8(event.id) + b"\n")
        if event.retry is not None:
            fields.append(b"retry: %d\n" % event.retry)
        return b"".join([*fields, b"\n"])
    return _data_lines(event) + b"\n"


def encode_chunk(chunk: Any) -> bytes:
    """Return an event of a worker whose `resp_mime_type` is no `text/event-stream`: its bytes, and nothing more.

    Raises:
        EncodingError: it is neither bytes nor text, or its text is not valid UTF-8.
    """
    if isinstance(chunk, (bytes, bytearray, memoryview)):
        return bytes(chunk)
    if isinstance(chunk, str):
        return _utf8(chunk)
    raise EncodingError(f"a chunk of a raw stream must be bytes or text, not {type(chunk).__name__}")


def is_event_stream(mime_type: str) -> bool:
    """Whether a stream of this type is made of events, and not of raw chunks."""
    return mime_type.partition(";")[0].strip().lower() == EVENT_STREAM


def encoder_for(mime_type: str) -> Callable[[Any], bytes]:
    """Return what gives the events of a worker with this `resp_mime_type` their form."""
    return encode_event if is_event_stream(mime_type) else encode_chunk


def _data_lines(data: Any) -> bytes:
    """Return a text as `data:` lines; it may end its lines in any of the three ways that the format knows."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        raw = bytes(data)
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise EncodingError(f"the data of an event must be UTF-8: {error}") from error
    elif isinstance(data, str):
        raw = _utf8(data)
    else:
        raise EncodingError(f"an event must be text, bytes or an Event, not {type(data).__name__}")
    if b"\n" not in raw and b"\r" not in raw:
        return b"data: " + raw + b"\n"
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join([b"data: " + line + b"\n" for line in lines])


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise EncodingError(f"the text of an event must be valid Unicode: {error}") from error


class SSEWorker(Worker):
    """A worker whose results are streams: events that go to the client as they are made. The last stage of a pipeline.

    Two ways to write `forward`. It calls `send_stream_event` and returns, as in mosec; what it returns is ignored. Or
    it is a generator, plain or asynchronous, that yields events: for a stage without batching each yield is an event;
    with batching it is `(index, event)`, or a list with one event, or None, for each item of the batch. An exception at
    an event's place ends that item's stream with that error, and `SSEWorker.FINISHED` ends it well before the others.

    An event is text, bytes or an `Event`. With another `resp_mime_type` than `text/event-stream` the client gets the
    bare bytes as they come.

    When a client leaves, `is_cancelled(index)` turns true, and a generator that has no other client left is closed, so
    that its `finally` runs. A client that reads too slowly stops its own stream: alone in `forward` it is waited for,
    in a batch its stream ends with an error once its buffer, the setting `stream_buffer`, is full.
    """

    FINISHED: Final = FINISHED

    resp_mime_type = EVENT_STREAM

    _send_event: Callable[[Any, int], None] | None = None

    def send_stream_event(self, text: str | bytes | Event, index: int = 0) -> None:
        """Send an event to a client; for use in `forward`, from any thread.

        Args:
            text: the event.
            index: the item's place in the batch, from 0.

        Raises:
            RuntimeError: `forward` is not running in a served worker.
        """
        if self._send_event is None:
            raise RuntimeError("events can be sent only while `forward` runs in a worker of a server")
        self._send_event(text, index)


class ContinuousWorker(SSEWorker):
    """A model that works in steps, where requests join and leave the running batch between two steps.

    This is iteration-level scheduling, as Orca introduced it for language models (Yu et al., OSDI 2022): a request
    that is done makes room at once, and one that waits joins at the next step, whatever the others still have to do.

        class Generate(ContinuousWorker):
            def admit(self, item): ...    # take a free slot, keep the prompt there, return the slot
            def step(self): ...           # one token for each taken slot: yield slot, token; yield slot, self.FINISHED
            def evict(self, slot): ...    # the slot is free again

    At most `max_batch_size` slots are taken at a time. One thread calls the three methods, one after the other.
    """

    @abc.abstractmethod
    def admit(self, item: Any) -> Hashable:
        """Take a request into the running batch; it takes part from the next step on.

        Args:
            item: the decoded request.

        Returns:
            the slot that it has, anything hashable that no other request has now.

        Raises:
            MosecError: to answer this request with that error; the others go on.
        """

    @abc.abstractmethod
    def step(self) -> Iterable[tuple[Hashable, Any]]:
        """Do one step for all that is in the batch; called only while at least one slot is taken.

        Returns:
            pairs of a slot and an event, any number for a slot. `FINISHED` in an event's place ends the slot's stream
            well and an exception ends it with that error; `evict` is called for it then.

        Raises:
            MosecError: to end all streams of the batch with that error.
        """

    @abc.abstractmethod
    def evict(self, slot: Any) -> None:
        """Free a slot: its stream has ended, whether by `step` or because its client has left.

        Args:
            slot: what `admit` returned.
        """

    def forward(self, data: Any) -> Iterator[Any]:
        """Run one request by itself, as the warm-up does with `example`: yield its events."""
        slot = self.admit(data)
        try:
            while True:
                for where, event in self.step():
                    if where != slot:
                        continue
                    if event is FINISHED:
                        return
                    if isinstance(event, BaseException):
                        raise event
                    yield event
        finally:
            self.evict(slot)


def streams(worker: type[Worker]) -> bool:
    """Whether a worker's results are streams."""
    return issubclass(worker, SSEWorker)


def is_generator(worker: type[Worker]) -> bool:
    """Whether a worker's `forward` yields its events."""
    return inspect.isgeneratorfunction(worker.forward) or inspect.isasyncgenfunction(worker.forward)


def is_async(worker: type[Worker]) -> bool:
    """Whether a worker's `forward` runs on an event loop."""
    return inspect.iscoroutinefunction(worker.forward) or inspect.isasyncgenfunction(worker.forward)
