from __future__ import annotations

import time
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mosec_asgi.mixin.url_encoded import read_pairs

PIECES = ["%41", "%e2%82%ac", "%ff", "%", "%%", "%4", "%g1", "%3d", "%0a", "=", "==", "&", "+", " ", "\n", "\r\n", "_",
          "a", "é", "%C3", "%A9", "=3D", "=\n", "\t", "%00", "\x00"]  # fmt: skip


def by_the_standard_library(data: bytes) -> list[tuple[str, str]]:
    return parse_qsl(data.decode(), keep_blank_values=True, errors="strict")


@given(st.one_of(st.lists(st.sampled_from(PIECES)).map("".join).map(str.encode), st.binary()))
@example(b"a=%\r\n=%3D&&=&b&c=d=e&%")
def test_a_form_reads_as_by_the_standard_library(data: bytes) -> None:
    try:
        expected = by_the_standard_library(data)
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            read_pairs(data)
    else:
        assert read_pairs(data) == expected


@pytest.mark.parametrize("piece", [b"%41", b"%E2%82%AC", b"%41x", b"%"])
def test_megabytes_of_escapes_take_a_fraction_of_its_time(piece: bytes) -> None:
    data = b"a=" + piece * (1_000_000 // len(piece))
    began = time.process_time()
    expected = by_the_standard_library(data)
    theirs = time.process_time() - began
    began = time.process_time()
    assert read_pairs(data) == expected
    assert time.process_time() - began < theirs / 3
