from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.ipc.arena import PAGE
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.ipc.reference import Contents, Kind, Span, pack, unpack

SPANS = st.builds(Span, st.integers(0, 2**40).map(lambda page: page * PAGE), st.integers(1, 2**60))
PARCELS = st.one_of(
    st.builds(Contents, st.just(Kind.BYTES), st.lists(SPANS, min_size=1, max_size=1), st.just(b"")),
    st.builds(Contents, st.just(Kind.PICKLE), st.lists(SPANS, min_size=1, max_size=5), st.binary(min_size=1)),
    st.builds(Contents, st.just(Kind.LARGE_PICKLE), st.lists(SPANS, min_size=1, max_size=5), st.just(b"")),
)


@given(PARCELS)
def test_a_reference_is_read_as_it_was_written(contents: Contents) -> None:
    assert unpack(pack(*contents)) == contents


@given(st.binary(max_size=80))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    try:
        contents = unpack(data)
    except FrameError:
        return
    assert contents.spans
    assert all(length and begin % PAGE == 0 for begin, length in contents.spans)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        pack(Kind.BYTES, []),
        pack(Kind.BYTES, [Span(0, 5), Span(PAGE, 5)]),
        pack(Kind.BYTES, [Span(0, 5)], b"stream"),
        pack(Kind.LARGE_PICKLE, [Span(0, 5)], b"stream"),
        pack(Kind.PICKLE, [Span(0, 5)]),
        pack(Kind.BYTES, [Span(0, 0)]),
        pack(Kind.BYTES, [Span(7, 5)]),
        pack(Kind.BYTES, [Span(0, 5)])[:-1],
        struct.pack("<B3xI", 9, 1) + struct.pack("<QQ", 0, 5),
        struct.pack("<B3xI", 1, 2**32 - 1) + struct.pack("<QQ", 0, 5),
    ],
)
def test_what_is_no_reference_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match="no reference"):
        unpack(data)
