"""What the formats share: strict JSON, how deep a body may nest, numpy as plain values.

A body comes from anyone. What is decoded here, or by a mixin, is the value that its format defines or a
`DecodingError`, and it must pass the rest of its way: `forward`, a pickle to the next stage, an encoder. Those recurse,
and each has its own limit (a pickle of nested models holds about 190 levels under Python 3.11, orjson writes 254,
pydantic reads 200), so that a body nested deeper than `MAX_DEPTH` levels is refused at once, by every format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson

from mosec_asgi.errors import DecodingError

# Levels of arrays and objects in a body.
MAX_DEPTH = 128

_CONTAINERS = frozenset((dict, list, tuple))
# Makes integers easy to find: digits become 0, and what may stand before a number becomes a comma, but for its sign.
_NUMBERS = bytes.maketrans(b"123456789[: \t\n\r", b"000000000,,,,,,")
_LONG, _LONGER = b"0" * 19, b"0" * 20
_DIGITS = b"0123456789"


def loads_json(data: bytes) -> Any:
    """Decode JSON strictly, integers of any size included.

    Args:
        data: the body.

    Raises:
        DecodingError: the body is not JSON, or is nested deeper than `MAX_DEPTH` levels.
    """
    if type(data) is not bytes:
        data = data.encode() if isinstance(data, str) else bytes(data)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DecodingError(f"the body is not JSON: {error}") from error
    if len(data) <= 2 * MAX_DEPTH:
        # Nothing so short nests too deeply, and few digits are no huge integer.
        if len(data) - len(data.translate(None, _DIGITS)) < len(_LONG):
            return value
    elif may_nest_deeply(data):
        check_depth(value)
    # orjson reads an integer that 64 bits cannot hold as a float; the standard library is exact, and much slower.
    return json.loads(data) if _may_hold_huge_integer(data) else value


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
