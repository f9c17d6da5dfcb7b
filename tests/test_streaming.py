from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fakes import Echo
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import ClientError, EncodingError
from mosec_asgi.mixin import MsgpackMixin
from mosec_asgi.streaming import (
    FINISHED,
    ContinuousWorker,
    Event,
    SSEWorker,
    encode_chunk,
    encode_event,
    encoder_for,
    is_async,
    is_generator,
    response_type,
    streams,
)


@dataclass
class Dispatched:
    """What a browser makes of an event."""

    data: str
    type: str = "message"
    id: str = ""


class Browser:
    """Reads a stream by the letter of the WHATWG's standard, sections 9.2.5 and 9.2.6."""

    def __init__(self) -> None:
        self.retry: int | None = None
        self._last_id = ""

    def read(self, stream: bytes) -> list[Dispatched]:
        text = stream.decode().removeprefix("\ufeff")
        lines = re.split(r"\r\n|\n|\r", text)
        # What follows the last line end is no line yet.
        assert lines.pop() == ""
        dispatched: list[Dispatched] = []
        data, kind = "", ""
        for line in lines:
            if not line:
                if data:
                    dispatched.append(Dispatched(data.removesuffix("\n"), kind or "message", self._last_id))
                data, kind = "", ""
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data += value + "\n"
            elif name == "event":
                kind = value
            elif name == "id" and "\0" not in value:
                self._last_id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry = int(value)
        return dispatched


def read(*events: Any) -> list[Dispatched]:
    """Return what a browser makes of a stream of events."""
    return Browser().read(b"".join(map(encode_event, events)))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# With what the format itself is made of, more often than by chance.
NASTY = st.lists(st.sampled_from(["data: x", "\n", "\r", "\r\n", ":", " ", "\ufeff", "\0", "\u2028", "é", "id:"])).map(
    "".join
)
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20)


# -- events over the wire ----------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(TEXTS | NASTY)
def test_a_browser_reads_the_lines_of_a_text_as_they_were(text: str) -> None:
    (event,) = read(text)
    assert event == Dispatched(re.sub(r"\r\n|\r", "\n", text))
    assert read(text.encode()) == [event]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS | NASTY, max_size=5))
def test_a_browser_tells_the_events_of_a_stream_apart(texts: list[str]) -> None:
    assert [event.data for event in read(*texts)] == [re.sub(r"\r\n|\r", "\n", text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(TEXTS | NASTY, st.none() | LINES, st.none() | LINES, st.none() | st.integers(0, 10**12))
def test_a_browser_reads_all_fields_of_an_event(
    text: str, kind: str | None, id_: str | None, retry: int | None
) -> None:
    browser = Browser()
    (event,) = browser.read(encode_event(Event(text, event=kind, id=id_, retry=retry)))
    assert event == Dispatched(re.sub(r"\r\n|\r", "\n", text), kind or "message", id_ or "")
    assert browser.retry == retry


def test_an_id_lasts_until_the_next_one() -> None:
    assert [event.id for event in read(Event("a", id="1"), "b", Event("c", id=""))] == ["1", "1", ""]


# What mosec 0.9.8 writes for a text.
MOSEC = {
    "plain": b"data: plain\n\n",
    "two\nlines": b"data: two\ndata: lines\n\n",
    "a\n\nb": b"data: a\ndata: \ndata: b\n\n",
    "end\n": b"data: end\ndata: \n\n",
    "\nstart": b"data: \ndata: start\n\n",
    "\n": b"data: \ndata: \n\n",
    " leading": b"data:  leading\n\n",
    "  two": b"data:   two\n\n",
    "tab\tx": b"data: tab\tx\n\n",
    "Ünï🦀": "data: Ünï🦀\n\n".encode(),
    "\0nul": b"data: \0nul\n\n",
    ":colon": b"data: :colon\n\n",
    "data: x": b"data: data: x\n\n",
    "\u2028ls": "data: \u2028ls\n\n".encode(),
    "trailing ": b"data: trailing \n\n",
    "\ufeffbom": "data: \ufeffbom\n\n".encode(),
    "a\nb\nc\n\n": b"data: a\ndata: b\ndata: c\ndata: \ndata: \n\n",
}


@pytest.mark.parametrize("text", MOSEC, ids=ascii)
def test_a_text_goes_over_the_wire_as_mosec_writes_it(text: str) -> None:
    assert encode_event(text) == MOSEC[text]


def test_an_empty_text_is_an_event_and_a_carriage_return_ends_a_line_unlike_in_mosec() -> None:
    """It writes a bare line end for the first, and a line too many for the pair of carriage return and line feed."""
    assert encode_event("") == b"data: \n\n"
    assert encode_event("a\r\nb\rc") == b"data: a\ndata: b\ndata: c\n\n"


def test_the_fields_of_an_event_stand_in_a_fixed_order() -> None:
    assert encode_event(Event("a\nb", event="token", id="7", retry=1500)) == (
        b"event: token\ndata: a\ndata: b\nid: 7\nretry: 1500\n\n"
    )
    assert encode_event(Event(b"raw")) == encode_event("raw") == encode_event(bytearray(b"raw"))


@pytest.mark.parametrize("event", [None, 7, ["a"], {"data": "a"}, FINISHED, Event(7), Event(None)], ids=repr)  # type: ignore[arg-type]
def test_what_is_no_event_is_an_encoding_error_that_names_its_type(event: Any) -> None:
    inner = event.data if isinstance(event, Event) else event
    with pytest.raises(EncodingError, match=f"must be text, bytes or an Event, not {type(inner).__name__}"):
        encode_event(event)


@pytest.mark.parametrize(
    "event",
    [
        "\ud800",
        b"\xff",
        Event("a\udfff"),
        Event(b"\xc3"),
        pytest.param(
            Event("a", event="\ud800"),
        ),
        pytest.param(
            Event("a", id="\ud800"),
        ),
    ],
    ids=ascii,
)
def test_a_text_that_is_not_unicode_is_an_encoding_error(event: Any) -> None:
    with pytest.raises(EncodingError, match=r"UTF-8|Unicode"):
        encode_event(event)


@pytest.mark.parametrize("name", ["event", "id"])
@pytest.mark.parametrize("value", ["a\nb", "a\r", "\0", "a\r\nretry: 1"], ids=ascii)
def test_a_field_that_is_more_than_a_line_cannot_be_written(name: str, value: str) -> None:
    """Or its second line would be a field of its own."""
    with pytest.raises(ValueError, match=f"the {name} of an event is one line"):
        Event("a", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("retry", [-1, True])
def test_retry_is_a_whole_number_of_milliseconds(retry: int) -> None:
    with pytest.raises(ValueError, match="retry is a whole number"):
        Event(retry=retry)
    assert Event(retry=0).retry == 0


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [(b"RIFF\0", b"RIFF\0"), (bytearray(b"a"), b"a"), (memoryview(b"b"), b"b"), ("é\n", "é\n".encode()), (b"", b"")],
)
def test_a_chunk_of_a_raw_stream_is_its_bytes(chunk: Any, expected: bytes) -> None:
    encoded = encode_chunk(chunk)
    assert (type(encoded), encoded) == (bytes, expected)


@pytest.mark.parametrize("chunk", [None, 7, Event("a"), ["a"]], ids=repr)
def test_what_has_no_bytes_is_no_chunk(chunk: Any) -> None:
    with pytest.raises(EncodingError, match=f"must be bytes or text, not {type(chunk).__name__}"):
        encode_chunk(chunk)
    with pytest.raises(EncodingError, match="Unicode"):
        encode_chunk("\ud800")


@pytest.mark.parametrize(
    ("mime_type", "encoder"),
    [
        ("text/event-stream", encode_event),
        ("text/event-stream; charset=utf-8", encode_event),
        ("Text/Event-Stream ;x=y", encode_event),
        ("audio/wav", encode_chunk),
        ("application/x-ndjson", encode_chunk),
        ("text/event-streams", encode_chunk),
    ],
)
def test_the_mime_type_decides_the_form(mime_type: str, encoder: Callable[[Any], bytes]) -> None:
    assert encoder_for(mime_type) is encoder


# -- workers -----------------------------------------------------------------------------------------------------------


class Pushing(SSEWorker):
    def forward(self, data: Any) -> None:
        self.send_stream_event("a")


class Yielding(SSEWorker):
    def forward(self, data: Any) -> Iterator[str]:
        yield "a"


class Awaiting(SSEWorker):
    async def forward(self, data: Any) -> None:
        self.send_stream_event("a")


class AwaitingYielding(SSEWorker):
    async def forward(self, data: Any) -> AsyncIterator[str]:
        yield "a"


class Countdown(ContinuousWorker):
    """Streams the numbers from what it is asked down to 1, from slots that it gives out in turn."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.evicted: list[Hashable] = []

    def admit(self, item: int) -> int:
        slot = len(self.left)
        self.left[slot] = item
        return slot

    def step(self) -> Iterable[tuple[Hashable, Any]]:
        for slot in self.left:
            if self.left[slot] < 0:
                yield slot, ClientError("negative")
            elif self.left[slot]:
                yield slot, str(self.left[slot])
            else:
                yield slot, self.FINISHED
            self.left[slot] -= 1

    def evict(self, slot: Hashable) -> None:
        self.evicted.append(slot)


@pytest.mark.parametrize(
    ("worker", "streaming", "generating", "asynchronous"),
    [
        (Echo, False, False, False),
        (Pushing, True, False, False),
        (Yielding, True, True, False),
        (Awaiting, True, False, True),
        (AwaitingYielding, True, True, True),
        (Countdown, True, True, False),
    ],
)
def test_a_class_tells_how_it_is_to_be_run(
    worker: type[Any], streaming: bool, generating: bool, asynchronous: bool
) -> None:
    assert (streams(worker), is_generator(worker), is_async(worker)) == (streaming, generating, asynchronous)


def test_a_worker_that_streams_says_so_to_its_clients() -> None:
    assert SSEWorker.resp_mime_type == "text/event-stream"
    assert SSEWorker.FINISHED is FINISHED
    assert repr(FINISHED) == "FINISHED"


def test_events_can_be_sent_only_in_a_worker_of_a_server() -> None:
    with pytest.raises(RuntimeError, match="in a worker of a server"):
        Pushing().forward(None)


def test_a_continuous_worker_needs_its_three_methods() -> None:
    with pytest.raises(TypeError, match=r"admit.*evict.*step"):
        ContinuousWorker()  # type: ignore[abstract]


def test_a_continuous_worker_can_run_one_request_by_itself() -> None:
    worker = Countdown()
    worker.admit(7)  # Somebody else's slot, whose events are not ours.
    assert list(worker.forward(3)) == ["3", "2", "1"]
    assert worker.evicted == [1]


def test_a_request_that_is_run_by_itself_frees_its_slot_however_it_ends() -> None:
    worker = Countdown()
    with pytest.raises(ClientError, match="negative"):
        list(worker.forward(-1))
    one = worker.forward(5)
    assert next(one) == "5"
    one.close()  # type: ignore[attr-defined]
    assert worker.evicted == [0, 1]


def test_a_format_of_the_input_leaves_a_stream_its_events() -> None:
    class Chat(MsgpackMixin, SSEWorker):
        def forward(self, data: Any) -> Iterator[str]:
            yield data

    class Sound(Chat):
        resp_mime_type = "audio/wav"

    class Format:
        resp_mime_type = "application/x-own"

    class Own(Format, MsgpackMixin, SSEWorker):
        forward = Chat.forward

    class Plain(MsgpackMixin, Echo):
        pass

    assert response_type(Chat) == "text/event-stream"
    assert response_type(Sound) == "audio/wav"
    assert response_type(Own) == "application/x-own"
    assert response_type(Plain) == "application/msgpack"
