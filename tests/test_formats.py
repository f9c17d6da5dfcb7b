from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import DecodingError
from mosec_asgi.formats import MAX_DEPTH, check_depth, loads_json, plain


@pytest.mark.parametrize(
    "number",
    [2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**63), -(2**63) - 1, 10**19, -(10**18), -(10**19), 10**300],
)
@pytest.mark.parametrize(
    "template", ["%d", "-%d", " %d ", "[%d]", "[1,%d]", '{"a":%d}', '{"a": %d}', "[\n%d\t]", "[0.5,\r%d]"]
)
def test_an_integer_of_any_size_is_that_integer(number: int, template: str) -> None:
    body = (template % abs(number) if template == "-%d" else template % number).encode()
    received = loads_json(body)
    assert received == json.loads(body)
    while isinstance(received, (list, dict)):
        received = list(received.values())[-1] if isinstance(received, dict) else received[-1]
    assert type(received) is int


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('0123456789-,: [\\"', max_size=40),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from([None, 1, "\t"]),
)
def test_what_the_standard_library_reads_is_read_the_same(value: Any, indent: Any) -> None:
    received = loads_json(json.dumps(value, indent=indent).encode())
    assert received == value
    assert repr(received) == repr(value)


@pytest.mark.parametrize("kind", [bytearray, memoryview, bytes.decode])
def test_other_kinds_of_bytes_and_text_are_read_as_well(kind: Any) -> None:
    assert loads_json(kind(b'{"a": 36893488147419103232}')) == {"a": 2**65}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"9" * 5000,
        b"01",
        b"- 1",
        b"nan",
        b'"\xff"',
        b"{" * 100_000,
    ],
    ids=lambda body: repr(body)[:20],
)
def test_what_is_no_json_or_too_much_is_a_decoding_error_with_a_reason(body: bytes) -> None:
    with pytest.raises(DecodingError, match=r"^the body is not JSON: ."):
        loads_json(body)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[0.5,[],{"b":', b"},1]")])
def test_a_body_may_nest_so_deep_and_no_deeper(opening: bytes, closing: bytes) -> None:
    step = 2 if b"{" in opening and b"[" in opening else 1
    most = MAX_DEPTH // step

    def nested(times: int) -> bytes:
        return opening * times + b"1" + closing * times

    assert loads_json(nested(most)) == orjson.loads(nested(most))
    for times in (most + 1, 400 // step, 1000 // step):
        with pytest.raises(DecodingError, match=f"^the body is nested deeper than {MAX_DEPTH} levels$"):
            loads_json(nested(times))


def test_many_brackets_beside_each_other_are_not_deep() -> None:
    value = {"rows": [[0.5] * 10] * 1000, "maps": [{"a": {}}] * 1000, "text": "[{" * 1000}
    assert loads_json(json.dumps(value).encode()) == value


def test_depth_counts_dictionaries_lists_and_tuples() -> None:
    value: Any = 1
    for level in range(MAX_DEPTH):
        value = {"a": value} if level % 3 == 0 else [1, value] if level % 3 == 1 else (value, "b")
    check_depth(value)
    for deeper in ([value], (value,), {"a": value}):
        with pytest.raises(DecodingError, match="nested deeper"):
            check_depth(deeper)


def test_numpy_becomes_plain_and_nothing_else() -> None:
    assert plain(np.arange(3)) == [0, 1, 2]
    assert type(plain(np.float32(0.5))) is float
    with pytest.raises(TypeError, match=r"^a value of type builtins.set cannot be encoded$"):
        plain({1})


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[Infinity,-Infinity]", [float("inf"), -float("inf")]),
        (b"1e400", float("inf")),
        (b"9" * 400, int("9" * 400)),
        (rb'"\ud800"', "\ud800"),
        (b'"\xed\xa0\x80"', "\ud800"),
        (b"\xef\xbb\xbf1", 1),
        ('{"a":1}'.encode("utf-16"), {"a": 1}),
        ('{"a":1}'.encode("utf-16-le"), {"a": 1}),
        ("[1]".encode("utf-32"), [1]),
    ],
    ids=lambda body: repr(body)[:20],
)
def test_what_pythons_json_takes_is_taken_unless_strict(body: bytes, value: Any) -> None:
    assert loads_json(body) == value
    with pytest.raises(DecodingError, match="the body is not JSON"):
        loads_json(body, strict=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("end", [b"1" + b"]" * (MAX_DEPTH + 1), b""])
def test_no_way_of_reading_goes_deeper(strict: bool, end: bytes) -> None:
    for body in (b"[" * (MAX_DEPTH + 1) + end, b"[" * MAX_DEPTH + b"[NaN" + end[1:]):
        with pytest.raises(DecodingError):
            loads_json(body, strict=strict)
    with pytest.raises(DecodingError, match="nested deeper"):
        loads_json(b"[" * 100_000)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--', "multipart/form-data"),
        (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"text=hello+you&n=1", "application/x-www-form-urlencoded"),
        (b"\x81\xa1a\x01", "binary data"),
        (b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_a_body_of_another_type_is_called_so_and_the_remedy_named(body: bytes, kind: str) -> None:
    with pytest.raises(DecodingError, match=f"it looks like {kind}.*application/json.*`deserialize`"):
        loads_json(body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"1" * 5000, "an integer of more digits than are read"),
        (b'{"a": [' + b"1" * 5000 + b"]}", "an integer of more digits than are read"),
        (b"\xef\xbb\xbf", "empty but for a byte order mark"),
        (b"\xff\xfe", "empty but for a byte order mark"),
    ],
)
def test_what_is_wrong_is_said_though_a_reader_blames_something_else(body: bytes, text: str) -> None:
    with pytest.raises(DecodingError, match=text):
        loads_json(body)


@pytest.mark.parametrize("text", [b"hello world!1", b"hello world!12"])
def test_base64_is_no_form(text: bytes) -> None:
    with pytest.raises(DecodingError) as raised:
        loads_json(base64.b64encode(text))
    assert "looks like" not in str(raised.value)


def test_a_slip_in_json_is_no_other_type() -> None:
    for body in (b'{"a": 1,}', b"nope", b'{"a": "b=c"', "é".encode(), b'{"a": "' + "é".encode() * 3000):
        with pytest.raises(DecodingError) as raised:
            loads_json(body)
        assert "looks like" not in str(raised.value)


def test_the_reason_is_that_of_the_reader_that_came_further() -> None:
    with pytest.raises(DecodingError, match=r"column 6 \(char 5\)"):
        loads_json(b"[NaN,}")
