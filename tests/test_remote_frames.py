"""What web processes and the engine tell each other, as bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.errors import CANCELLED
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.messages import OK, Call, Chunk, Outcome, StageTime
from mosec_asgi.remote import frames
from mosec_asgi.remote.frames import HEADER, MAGIC, MAX_BODY, Decoder
from mosec_asgi.request import Request

IDS = st.integers(1, frames.MOST_CALL_ID - 1)
TIMES = st.lists(st.builds(StageTime, st.text(), st.floats(0, 9), st.floats(0, 9)), max_size=3).map(tuple)
REQUESTS = st.none() | st.builds(Request, st.text(), st.text(), st.sampled_from(["POST", "GET"]))
CALLS = st.builds(
    Call,
    IDS,
    st.integers(0, 9),
    st.binary(max_size=99),
    st.text(),
    st.none() | st.floats(0.001, 9),
    st.booleans(),
    st.booleans(),
    st.integers(-10, 10),
    st.text(),
    REQUESTS,
    st.text(),
    st.integers(0, 1 << 40),
    st.text(),
)
OUTCOMES = st.builds(
    Outcome,
    IDS,
    st.sampled_from([OK, 400, 408, 429, 503]),
    st.binary(max_size=99),
    st.none() | st.integers(1, 60),
    st.binary(max_size=9),
    TIMES,
)
CHUNKS = st.builds(Chunk, IDS, st.binary(max_size=99), TIMES)


def decoded(data: bytes) -> list[Any]:
    decoder = Decoder()
    decoder.receive_data(data)
    entries = decoder.next_frame()
    assert entries is not None
    assert decoder.next_frame() is None
    assert not decoder.pending
    return entries


@given(CALLS)
def test_a_call_crosses(call: Call) -> None:
    [entry] = decoded(frames.encode([frames.plain_call(call, call.payload)]))  # type: ignore[arg-type]
    assert len(entry) == frames.CALL_FIELDS
    assert frames.call_of(entry, entry[0], entry[2]) == call


def test_where_a_payload_lies_crosses_in_its_place() -> None:
    [entry] = decoded(frames.encode([frames.plain_call(Call(3, 0, b"body", "r"), (b"there",))]))
    assert frames.call_of(entry, 1 << 41 | 3, "held") == Call(1 << 41 | 3, 0, "held", "r")  # type: ignore[arg-type]
    assert entry[2] == (b"there",)


@given(OUTCOMES)
def test_an_outcome_crosses(outcome: Outcome) -> None:
    payload: Any = outcome.payload
    [entry] = decoded(frames.encode([frames.plain_outcome(outcome, outcome.call_id, payload)]))
    assert frames.outcome_of(entry, payload) == outcome
    # The usual result is no more than a number and its bytes.
    assert (len(entry) == 2) == (
        outcome.code == OK and not outcome.head and not outcome.times and outcome.retry_after is None
    )


@given(CHUNKS)
def test_a_chunk_crosses(chunk: Chunk) -> None:
    [entry] = decoded(frames.encode([(chunk.call_id, chunk.payload, frames.plain_times(chunk.times))]))
    assert frames.chunk_of(entry) == chunk


def test_one_that_nobody_waits_for_is_settled_as_such() -> None:
    assert frames.cancelled(7) == Outcome(7, CANCELLED, b"")


@given(st.lists(st.lists(st.binary(max_size=40), max_size=3), max_size=6), st.data())
def test_frames_are_read_however_they_are_cut(sent: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(frames.encode(list(entries)) for entries in sent)
    decoder, read, at = Decoder(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        decoder.receive_data(stream[at : at + size])
        at += size
        while (entries := decoder.next_frame()) is not None:
            read.append(entries)
    assert read == sent
    assert not decoder.pending


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        HEADER.pack(MAGIC, MAX_BODY + 1),
        HEADER.pack(MAGIC, 3) + b"\xff\xff\xff",
        HEADER.pack(MAGIC, 0),
        frames.encode("no list"),  # type: ignore[arg-type]
        frames.encode([1, 2]).replace(b"i", b"?"),
    ],
)
def test_garbage_is_no_frame(data: bytes) -> None:
    decoder = Decoder()
    decoder.receive_data(data)
    with pytest.raises(FrameError, match="no frame"):
        decoder.next_frame()
