"""The events of a stream, and the form in which they go over the wire.

An event is text, bytes or an `Event`. The worker process gives it its form, so that the server passes bytes on and
nothing more.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mosec_asgi.errors import EncodingError

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


class Delta(str):
    """A piece of the text that a language model writes, and what its client's protocol is to know beside it.

        yield Delta(" end.", finish_reason="stop", usage={"prompt_tokens": 7, "completion_tokens": 31})

    It is a text: where no protocol reads the rest, as on a plain route, that is what goes out.

    Attributes:
        finish_reason: why the text ends here: "stop", "length", "tool_calls", ...; None where it goes on.
        usage: what was counted for the whole answer: `prompt_tokens` and `completion_tokens`, and what else there is.
        tool_calls: calls of the client's tools, or pieces of them, in the form of the protocol.
    """

    finish_reason: str | None
    usage: Mapping[str, Any] | None
    tool_calls: Sequence[Mapping[str, Any]] | None

    def __new__(
        cls,
        text: str = "",
        *,
        finish_reason: str | None = None,
        usage: Mapping[str, Any] | None = None,
        tool_calls: Sequence[Mapping[str, Any]] | None = None,
    ) -> Delta:
        """Make one; all may be left out."""
        made = super().__new__(cls, text)
        made.finish_reason = finish_reason
        made.usage = usage
        made.tool_calls = tool_calls
        return made

    def __repr__(self) -> str:
        more = {name: value for name, value in vars(self).items() if value is not None}
        return f"Delta({', '.join([super().__repr__(), *(f'{name}={value!r}' for name, value in more.items())])})"


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
