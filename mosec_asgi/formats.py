"""What the formats share: JSON, how deep a body may nest, numpy as plain values.

A body comes from anyone. What is decoded here, or by a mixin, is the value that its format defines or a
`DecodingError`, and it must pass the rest of its way: `forward`, a pickle to the next stage, an encoder. Those recurse,
and each has its own limit (a pickle of nested models holds about 190 levels under Python 3.11, orjson writes 254,
pydantic reads 200), so that a body nested deeper than `MAX_DEPTH` levels is refused at once, by every format.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from mosec_asgi.errors import DecodingError, EncodingError

# Levels of arrays and objects in a body.
MAX_DEPTH = 128

_CONTAINERS = frozenset((dict, list, tuple))
# Makes integers easy to find: digits become 0, and what may stand before a number becomes a comma, but for its sign.
_NUMBERS = bytes.maketrans(b"123456789[: \t\n\r", b"000000000,,,,,,")
_LONG, _LONGER = b"0" * 19, b"0" * 20
_DIGITS = b"0123456789"


# How bodies begin that are no JSON for sure.
_BEGINNINGS = {
    b"\x89PNG\r\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp or audio/wav",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"%PDF-": "application/pdf",
    b"PK\x03\x04": "application/zip",
    b"\x1f\x8b": "gzip without the header `content-encoding: gzip`",
    b"\x28\xb5\x2f\xfd": "zstd without the header `content-encoding: zstd`",
    b"\x93NUMPY": "a file of numpy",
    b"<": "XML or HTML",
}
# A value follows the sign; base64 ends with it.
_FORM = re.compile(rb"[\w.%+-]+=[^{}\[\]\n=][^{}\[\]\n]*\Z")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def loads_json(data: bytes, *, strict: bool = False) -> Any:
    """Decode JSON, integers of any size included.

    Args:
        data: the body.
        strict: by the letter of RFC 8259. Otherwise what Python's `json` takes beside it is taken as well, as in mosec:
            NaN and Infinity, numbers too large for a float, a byte order mark, UTF-16 and UTF-32, lone surrogates. Only
            a body that is no strict JSON costs more for that.

    Raises:
        DecodingError: the body is not JSON, or is nested deeper than `MAX_DEPTH` levels.
    """
    if type(data) is not bytes:
        data = data.encode() if isinstance(data, str) else bytes(data)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if strict:
            raise not_json(data, str(error)) from error
        return _loads_as_python(data, error)
    if len(data) <= 2 * MAX_DEPTH:
        # Nothing so short nests too deeply, and few digits are no huge integer.
        if len(data) - len(data.translate(None, _DIGITS)) < len(_LONG):
            return value
    elif may_nest_deeply(data):
        check_depth(value)
    # orjson reads an integer that 64 bits cannot hold as a float; the standard library is exact, and much slower.
    return json.loads(data) if _may_hold_huge_integer(data) else value


def _loads_as_python(data: bytes, refusal: json.JSONDecodeError) -> Any:
    """Decode what is no strict JSON as Python's `json` does."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise too_deep() from None
    # Also for what is no text in its encoding, and for an integer of more digits than Python reads.
    except ValueError as error:
        further = isinstance(error, json.JSONDecodeError) and error.pos > refusal.pos
        if type(error) is ValueError:
            raise DecodingError(
                "the body is not JSON: it holds an integer of more digits than are read (4300)"
            ) from error
        if data in _MARKS:
            raise DecodingError("the body is not JSON: it is empty but for a byte order mark") from error
        raise not_json(data, str(error if further else refusal)) from refusal
    check_depth(value)
    return value


def not_json(data: bytes, reason: str) -> DecodingError:
    """Return the error for a body that is not JSON; it says what else the body seems to be.

    Args:
        data: the body.
        reason: what is wrong with it.
    """
    kind = _kind_of(data)
    hint = (
        f"; it looks like {kind}, and application/json is expected here: send JSON, or have the worker override "
        "`deserialize`"
        if kind
        else ""
    )
    return DecodingError(f"the body is not JSON: {reason}{hint}")


def _kind_of(data: bytes) -> str:
    """Return what a body that is not JSON seems to be; empty where nobody can tell."""
    if data.startswith(b"--") and b"content-disposition" in data[:4096].lower():
        return "multipart/form-data"
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return kind
    if _FORM.match(data[:4096]):
        return "application/x-www-form-urlencoded"
    try:
        data[:4096].decode()
    except UnicodeDecodeError as error:
        # Not where a character is only cut in two.
        return "" if error.start > 4090 else "binary data"
    return ""


def to_utf8(data: bytes) -> bytes | None:
    """Return JSON in UTF-8 without a byte order mark; None where it is that already, or has no such form."""
    encoding = json.detect_encoding(data)
    if encoding == "utf-8":
        return None
    try:
        return data.decode(encoding).encode()
    except UnicodeError:
        return None


def may_nest_deeply(data: bytes) -> bool:
    """Whether JSON has so many brackets that it could be nested deeper than `MAX_DEPTH` levels; quick."""
    return len(data) > 2 * MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH


def check_depth(value: Any) -> None:
    """Check how deep a decoded value nests; takes about 25 ns for each item in it.

    Args:
        value: anything; dictionaries, lists and tuples are looked into.

    Raises:
        DecodingError: it is nested deeper than `MAX_DEPTH` levels.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _containers_in(container)]
        if not level:
            return
    raise too_deep()


def too_deep() -> DecodingError:
    """Return the error for a body that is nested too deeply."""
    return DecodingError(f"the body is nested deeper than {MAX_DEPTH} levels")


def plain(value: Any) -> Any:
    """Return a numpy array or scalar as plain Python values; the hook of encoders for types that they do not know.

    Args:
        value: what the encoder does not know.

    Raises:
        TypeError: it is not numpy's; the text names its type.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be encoded")


def dumps_rare(data: Any, default: Callable[[Any], Any] = plain) -> bytes:
    """Encode what orjson's quick way refuses: keys that are no text, arrays that are not contiguous, huge integers.

    Args:
        data: what is to be JSON; NaN becomes null.
        default: makes plain values of those of types that the encoder does not know, or raises a `TypeError`.

    Raises:
        EncodingError: a value cannot be encoded as JSON; the text names its type.
    """

    def known(value: Any) -> Any:
        return _without_nan(default(value))

    try:
        return orjson.dumps(data, default=known, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        try:
            return json.dumps(_without_nan(data), default=known, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodingError(f"the result cannot be encoded as JSON: {error}") from error


def _without_nan(value: Any) -> Any:
    """Return `value` with NaN and infinities as None, as orjson writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


def _containers_in(value: Any) -> Iterable[Any]:
    """Return the containers right inside of a value."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return ()
    items = value.values() if kind is dict else value
    # Most containers of a large body hold numbers only: their types are gathered at the speed of C.
    if _CONTAINERS.isdisjoint(map(type, items)):
        return ()
    return [item for item in items if type(item) in _CONTAINERS]


def _may_hold_huge_integer(data: bytes) -> bool:
    """Whether a body could hold an integer that 64 bits cannot; quick, and mistaken only by what lies in strings."""
    marked = data.translate(_NUMBERS)
    if _LONG not in marked:
        return False
    # The fraction of a float may be as long.
    return b"-" + _LONG in marked or b"," + _LONGER in marked or marked.startswith(_LONGER)
