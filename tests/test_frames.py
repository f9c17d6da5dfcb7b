from __future__ import annotations

import contextlib
import dataclasses
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import CANCELLED
from mosec_asgi.ipc import frames
from mosec_asgi.messages import Cancels, Chunks, Credits, ForwardTime, Results, Tasks

NUMBERS = st.integers(0, 2**64 - 1)
SHORTS = st.integers(0, 2**16 - 1)
CODES = st.sampled_from(sorted(frames.STATUSES))
SECONDS = st.floats(0, 1e9)
PAYLOADS = st.binary(max_size=60)


@st.composite
def tasks(draw: st.DrawFn) -> Tasks:
    rows = draw(st.lists(st.tuples(NUMBERS, SHORTS, st.text(max_size=20), PAYLOADS), max_size=6))
    ids, flags, names, payloads = zip(*rows, strict=True) if rows else ((), (), (), ())
    requests = draw(st.just(()) | st.tuples(*[PAYLOADS for _ in rows]))
    return Tasks(ids, flags, names, payloads, requests)


@st.composite
def forwards(draw: st.DrawFn) -> ForwardTime:
    ago = draw(SECONDS)
    return ForwardTime(ago, draw(st.floats(0, ago)), draw(st.integers(0, 2**32 - 1)))


@st.composite
def results(draw: st.DrawFn) -> Results:
    rows = draw(st.lists(st.tuples(NUMBERS, CODES, PAYLOADS), max_size=6))
    ids, codes, payloads = zip(*rows, strict=True) if rows else ((), (), ())
    timed = draw(st.just(()) | st.tuples(*[forwards() for _ in rows]))
    label = st.tuples(NUMBERS, st.text(max_size=12))
    labels = draw(st.just(()) | st.lists(label, min_size=len(rows), max_size=len(rows)).map(tuple))
    return Results(ids, codes, payloads, draw(SECONDS), timed, labels)


@st.composite
def events(draw: st.DrawFn) -> Chunks:
    # A task may stand there several times.
    rows = draw(st.lists(st.tuples(NUMBERS | st.just(1), PAYLOADS), max_size=6))
    ids, payloads = zip(*rows, strict=True) if rows else ((), ())
    return Chunks(ids, payloads)


@st.composite
def taken(draw: st.DrawFn) -> Credits:
    rows = draw(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6))
    ids, sizes = zip(*rows, strict=True) if rows else ((), ())
    return Credits(ids, sizes)


BLOCKS = st.lists(NUMBERS, max_size=6).map(tuple)
FRAMES = st.one_of(
    tasks(),
    results(),
    events(),
    taken(),
    st.builds(Cancels, st.lists(NUMBERS, max_size=6).map(tuple)),
    st.builds(frames.Kept, BLOCKS),
    st.builds(frames.Released, BLOCKS),
    st.builds(frames.Freed, BLOCKS),
    st.just(frames.Ready()),
    st.builds(frames.Failed, st.text(max_size=40)),
)


def encode(frame: frames.Frame) -> bytes:
    match frame:
        case Tasks():
            return frames.encode_tasks(frame)
        case Results():
            return frames.encode_results(frame)
        case Chunks():
            return frames.encode_chunks(frame)
        case Cancels():
            return frames.encode_cancels(frame)
        case Credits():
            return frames.encode_credits(frame)
        case frames.Kept() | frames.Released() | frames.Freed():
            return frames.encode_blocks(frame)
        case frames.Ready():
            return frames.encode_ready()
        case frames.Failed():
            return frames.encode_failed(frame.text)
        case frames.Noted():
            return frames.encode_noted(frame)
        case frames.Finish():
            return frames.encode_finish()
        case frames.Counted():
            return frames.encode_counted(frame)


# Of what a frame has one, and not a column of many.
SINGLE = (str, bytes, int, float)


def fields(frame: frames.Frame) -> dict[str, Any]:
    return frame._asdict() if isinstance(frame, tuple) else dataclasses.asdict(frame)


def plain(frame: frames.Frame) -> frames.Frame:
    """Return a frame with tuples for columns, whose type the decoder leaves open."""
    columns = {name: value if isinstance(value, SINGLE) else tuple(value) for name, value in fields(frame).items()}
    return type(frame)(**columns)


def decoded(decoder: frames.Decoder) -> Iterator[frames.Frame]:
    while (frame := decoder.next_frame()) is not None:
        yield plain(frame)


def header(
    *, magic: int = frames.MAGIC, kind: int = frames.Kind.RESULTS, count: int = 0, length: int = 0, seconds: float = 0.0
) -> bytes:
    return frames.HEADER.pack(magic, kind, count, length, seconds)


def assert_well_formed(frame: frames.Frame) -> None:
    # That of the requests may be left out, that of the times, and that of the labels.
    optional = {"requests": (), "forwards": (), "labels": ()}
    columns = [
        value for name, value in fields(frame).items() if not isinstance(value, SINGLE) and value != optional.get(name)
    ]
    assert len({len(column) for column in columns}) <= 1
    assert all(type(payload) is bytes for payload in getattr(frame, "payloads", ()))
    if isinstance(frame, Results):
        assert frames.STATUSES.issuperset(frame.codes)
    # What was read can be written: every number and every text is within the format's bounds.
    encode(frame)


@settings(max_examples=150, deadline=None)
@given(sent=st.lists(FRAMES, max_size=5), data=st.data())
def test_frames_survive_any_cutting_of_the_stream(sent: list[frames.Frame], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = frames.Decoder()
    received: list[frames.Frame] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > begin:
            decoder.receive_data(stream[begin:end])
            received += decoded(decoder)
    assert received == sent
    assert decoder.pending == 0


@settings(max_examples=30, deadline=None)
@given(sent=st.lists(FRAMES, min_size=1, max_size=4))
def test_a_stream_that_comes_byte_by_byte_gives_each_frame_with_its_last_byte(sent: list[frames.Frame]) -> None:
    decoder = frames.Decoder()
    for frame in sent:
        encoded = encode(frame)
        for place, byte in enumerate(encoded):
            assert decoder.next_frame() is None
            assert decoder.pending == place
            decoder.receive_data(bytes([byte]))
        assert list(decoded(decoder)) == [frame]


def test_many_tasks_are_one_frame() -> None:
    sent = Tasks(range(500), [3] * 500, [f"request-{i}" for i in range(500)], [b"x" * i for i in range(500)])
    encoded = frames.encode_tasks(sent)
    decoder = frames.Decoder()
    decoder.receive_data(encoded)
    assert list(decoded(decoder)) == [plain(sent)]


def test_the_largest_numbers_and_wide_request_ids_pass() -> None:
    sent = Tasks((2**64 - 1, 0), (2**16 - 1, 0), ("Ünïcødé-日本-🦀", ""), (b"", bytes(range(256))))
    decoder = frames.Decoder()
    decoder.receive_data(frames.encode_tasks(sent))
    assert list(decoded(decoder)) == [sent]


def test_payloads_are_copies_that_do_not_hold_the_stream() -> None:
    first = frames.encode_results(Results([1], [200], [b"abc"], 0.5))
    decoder = frames.Decoder()
    decoder.receive_data(first[:10])
    decoder.receive_data(first[10:])
    frame = decoder.next_frame()
    assert isinstance(frame, Results)
    assert type(frame.payloads[0]) is bytes
    # A buffer that still had a view of it could not grow.
    decoder.receive_data(first[:10])
    decoder.receive_data(first[10:])
    assert plain(frame) == next(decoded(decoder))


def test_a_text_that_is_not_unicode_still_tells_why_a_worker_failed() -> None:
    decoder = frames.Decoder()
    decoder.receive_data(frames.encode_failed("no file 'caf\udce9'"))
    assert decoder.next_frame() == frames.Failed("no file 'caf\\udce9'")


def test_columns_of_unequal_length_are_refused_when_written() -> None:
    with pytest.raises(ValueError, match=r"argument|size|values to unpack"):
        frames.encode_tasks(Tasks([1, 2], [0], ["a", "b"], [b"", b""]))
    with pytest.raises(ValueError, match=r"argument|size|values to unpack"):
        frames.encode_results(Results([1], [200, 200], [b""], 0.0))
    with pytest.raises(ValueError, match=r"argument|size|values to unpack"):
        frames.encode_chunks(Chunks([1, 2], [b""]))
    with pytest.raises(ValueError, match=r"argument|size|values to unpack"):
        frames.encode_credits(Credits([1], [1, 2]))


# -- bytes that are no frames ------------------------------------------------------------------------------------------


def take_all(decoder: frames.Decoder, data: bytes) -> None:
    """Feed `data`; nothing but well-formed frames or a `FrameError` may come of it."""
    decoder.receive_data(data)
    with contextlib.suppress(frames.FrameError):
        while (frame := decoder.next_frame()) is not None:
            assert_well_formed(frame)


@settings(max_examples=150, deadline=None)
@given(chunks=st.lists(st.binary(max_size=80), max_size=4))
def test_garbage_raises_nothing_but_a_frame_error(chunks: list[bytes]) -> None:
    for chunk in chunks:
        take_all(frames.Decoder(), chunk)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.integers(0, 255) | st.sampled_from(frames.Kind),
    count=st.integers(0, 2**32 - 1) | st.integers(0, 4),
    body=st.binary(max_size=120),
    seconds=st.floats(),
)
@example(kind=frames.Kind.NOTED, count=1, body=bytes(16), seconds=0.0)
@example(kind=frames.Kind.FINISH, count=0, body=b"", seconds=0.0)
@example(kind=frames.Kind.COUNTED, count=3, body=b"sumabc", seconds=0.0)
def test_a_header_before_garbage_raises_nothing_but_a_frame_error(
    kind: int, count: int, body: bytes, seconds: float
) -> None:
    take_all(frames.Decoder(), header(kind=kind, count=count, length=len(body), seconds=seconds) + body)


@settings(max_examples=200, deadline=None)
@given(frame=FRAMES, data=st.data())
def test_a_flipped_bit_is_noticed_or_leaves_a_well_formed_frame(frame: frames.Frame, data: st.DataObject) -> None:
    encoded = bytearray(encode(frame))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    take_all(frames.Decoder(), bytes(encoded))


@pytest.mark.parametrize("place", range(8 * frames.HEADER.size))
def test_no_flipped_bit_of_a_header_passes_unnoticed(place: int) -> None:
    """Nor does one of the length, unless the rest is waited for; the padding and the time mean nothing to the frame."""
    sent = Results((7,), (200,), (b"payload",), 0.25)
    encoded = bytearray(frames.encode_results(sent))
    encoded[place // 8] ^= 1 << place % 8
    decoder = frames.Decoder()
    decoder.receive_data(bytes(encoded))
    try:
        frame = decoder.next_frame()
    except frames.FrameError:
        return
    if frame is None:
        assert decoder.pending == len(encoded)
        return
    assert isinstance(frame, Results)
    assert place // 8 == 3 or place // 8 >= 16
    assert (frame.ids, frame.codes, frame.payloads) == ((7,), (200,), [b"payload"])


def test_a_body_above_the_limit_is_refused_by_its_header_alone() -> None:
    decoder = frames.Decoder(max_body=1000)
    decoder.receive_data(header(length=1000))
    assert decoder.next_frame() is None
    decoder = frames.Decoder(max_body=1000)
    decoder.receive_data(header(length=1001))
    with pytest.raises(frames.FrameError, match="body of 1001 bytes"):
        decoder.next_frame()


def test_another_magic_is_refused_before_its_body_comes() -> None:
    decoder = frames.Decoder()
    decoder.receive_data(header(magic=frames.MAGIC ^ 1, length=1 << 30))
    with pytest.raises(frames.FrameError, match="magic"):
        decoder.next_frame()


@pytest.mark.parametrize("kind", [0, len(frames.Kind) + 1, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(header(kind=kind))
    with pytest.raises(frames.FrameError, match=f"kind {kind}"):
        decoder.next_frame()


@pytest.mark.parametrize("frame", [frames.Noted(3, 1 << 40), frames.Finish(), frames.Counted("gauge_max", b"values")])
def test_what_is_said_to_and_by_an_actor_crosses(frame: frames.Frame) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(encode(frame))
    assert decoder.next_frame() == frame
    assert decoder.next_frame() is None


@pytest.mark.parametrize("length", [15, 17])
def test_a_note_of_another_length_is_refused(length: int) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(header(kind=frames.Kind.NOTED, count=1, length=length) + bytes(length))
    with pytest.raises(frames.FrameError):
        decoder.next_frame()


@pytest.mark.parametrize("kind", [frames.Kind.READY, frames.Kind.FAILED, frames.Kind.FINISH])
def test_a_notice_with_rows_is_refused(kind: frames.Kind) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(header(kind=kind, count=1))
    with pytest.raises(frames.FrameError):
        decoder.next_frame()


@pytest.mark.parametrize(("count", "body"), [(0, b""), (7, b"counter"), (9, b"counter"), (2, b"\xff\xffx")])
def test_metrics_without_a_kind_or_values_are_refused(count: int, body: bytes) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(header(kind=frames.Kind.COUNTED, count=count, length=len(body)) + body)
    with pytest.raises(frames.FrameError):
        decoder.next_frame()


def test_a_ready_notice_with_a_body_is_refused() -> None:
    decoder = frames.Decoder()
    decoder.receive_data(header(kind=frames.Kind.READY, length=1) + b"x")
    with pytest.raises(frames.FrameError):
        decoder.next_frame()


@pytest.mark.parametrize(
    "encoded",
    [
        frames.encode_results(Results([1], [200], [b"abc"], 0.0)),
        frames.encode_tasks(Tasks([1], [0], ["id"], [b"abc"])),
        frames.encode_chunks(Chunks([1, 1], [b"abc", b"d"])),
        frames.encode_cancels(Cancels([1, 2])),
        frames.encode_credits(Credits([1, 2], [3, 4])),
    ],
    ids=["results", "tasks", "events", "cancel", "taken"],
)
@pytest.mark.parametrize("surplus", [-1, 1])
def test_lengths_that_do_not_add_up_to_the_body_are_refused(encoded: bytes, surplus: int) -> None:
    magic, kind, count, length, seconds = frames.HEADER.unpack_from(encoded)
    body = (encoded[frames.HEADER.size :] + b"x")[: length + surplus]
    decoder = frames.Decoder()
    decoder.receive_data(frames.HEADER.pack(magic, kind, count, len(body), seconds) + body)
    # A table alone is cut short where it ends.
    with pytest.raises(frames.FrameError, match=r"do not add up|a table of 2 rows"):
        decoder.next_frame()


def test_a_request_id_that_is_no_text_is_refused() -> None:
    encoded = frames.encode_tasks(Tasks([1], [0], ["id"], [b""]))
    decoder = frames.Decoder()
    decoder.receive_data(encoded[:-2] + b"\xff\xff")
    with pytest.raises(frames.FrameError, match="not UTF-8"):
        decoder.next_frame()


def peak_memory(data: bytes) -> int:
    tracemalloc.start()
    try:
        take_all(frames.Decoder(), data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ROW = struct.Struct("<QQHH")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(length=1 << 33, count=2**32 - 1), id="a body that has not come"),
        pytest.param(header(kind=frames.Kind.TASKS, length=1 << 33, count=3) + b"x" * 500, id="a body begun"),
        pytest.param(header(count=2**32 - 1, length=20) + b"x" * 20, id="more results than the body holds"),
        pytest.param(
            header(kind=frames.Kind.TASKS, count=2**32 - 1, length=20) + b"x" * 20, id="more tasks than the body holds"
        ),
        pytest.param(
            header(kind=frames.Kind.CHUNKS, count=2**32 - 1, length=20) + b"x" * 20,
            id="more events than fit",
        ),
        pytest.param(
            header(kind=frames.Kind.CANCELS, count=2**32 - 1, length=16) + b"x" * 16,
            id="more numbers than fit",
        ),
        pytest.param(
            header(kind=frames.Kind.TASKS, count=1, length=ROW.size) + ROW.pack(1, 1 << 33, 0, 0), id="a long payload"
        ),
    ],
)
def test_no_memory_is_taken_for_what_is_only_declared(data: bytes) -> None:
    peak_memory(data)  # once for what is made at first use
    assert peak_memory(data) < 100_000


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_a_time_that_is_no_length_of_time_is_refused(seconds: float) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(frames.encode_results(Results([1], [200], [b""], seconds)))
    with pytest.raises(frames.FrameError):
        decoder.next_frame()


@pytest.mark.parametrize(
    "forward", [(1.0, 2.0, 1), (1.0, -0.5, 1), (float("inf"), 1.0, 1), (float("nan"), 0.0, 1), (1.0, float("nan"), 1)]
)
def test_a_time_of_forward_that_does_not_lie_before_its_answer_is_refused(forward: tuple[float, float, int]) -> None:
    decoder = frames.Decoder()
    sent = Results([1, 2], [200, 200], [b"", b""], 3.0, [ForwardTime(2.0, 1.0, 1), ForwardTime(*forward)])
    decoder.receive_data(frames.encode_results(sent))
    with pytest.raises(frames.FrameError, match="`forward` took"):
        decoder.next_frame()


@pytest.mark.parametrize("status", [0, 1, 100, 199, 201, 204, 301, 399, 600, 999, 2**16 - 1])
def test_a_status_that_no_answer_has_is_refused(status: int) -> None:
    decoder = frames.Decoder()
    decoder.receive_data(frames.encode_results(Results([1, 2], [200, status], [b"", b""], 0.0)))
    with pytest.raises(frames.FrameError, match=rf"statuses \[{status}\]"):
        decoder.next_frame()


@pytest.mark.parametrize("status", [200, 400, 408, 422, CANCELLED, 500, 599])
def test_a_result_an_error_and_a_task_that_nobody_waits_for_are_statuses(status: int) -> None:
    decoder = frames.Decoder()
    sent = Results((1,), (status,), (b"text",), 0.5)
    decoder.receive_data(frames.encode_results(sent))
    assert list(decoded(decoder)) == [sent]


def test_pieces_of_one_stream_keep_their_order_in_a_frame() -> None:
    sent = Chunks((1, 2, 1, 1), (b"first", b"other", b"", b"last"))
    decoder = frames.Decoder()
    decoder.receive_data(frames.encode_chunks(sent))
    assert list(decoded(decoder)) == [sent]
