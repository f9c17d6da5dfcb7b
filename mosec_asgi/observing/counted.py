"""Checks what a worker on another machine has counted before it lies among the files of others.

All files are added up by one call of prometheus_client, which ends with the first that it cannot read, and may not end
at all where a length is negative. So one that does not hold what it should would take the metrics of all others with
it: as long as its worker lives, and for ever once it has been folded.

The format is that of `prometheus_client.mmap_dict`: how many bytes are in use, four bytes that mean nothing, and rows.
A row is the length of its key, the key, spaces up to a multiple of eight bytes, and two numbers. A key is JSON: the
name of the metric, the name of the sample, the labels, the help text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Set

_HEAD_SIZE = 8
_LENGTH = struct.Struct("i")
_NUMBERS_SIZE = struct.calcsize("dd")


def check(kind: str, values: bytes, known: Set[bytes] = frozenset()) -> Set[bytes]:
    """Check what a file is to hold, and return the keys in it.

    Args:
        kind: of the metrics, which is the beginning of the file's name.
        values: what it holds.
        known: keys that have been found right, as those of the same file a second ago. They take most of the time.

    Raises:
        ValueError: it could not be shown; the text says why.
    """
    from prometheus_client import Metric

    keys = frozenset(_keys(values))
    for key in keys - known:
        try:
            metric, name, labels, text = json.loads(key)
            _check_texts([metric, name, text, *labels, *labels.values()])
            # It knows which names are allowed.
            Metric(metric, text, kind.partition("_")[0])
            if kind == "histogram" and "le" in labels:
                float(labels["le"])
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"a series has the key {key[:80]!r}: {error}") from error
    return keys


def _keys(values: bytes) -> Iterator[bytes]:
    if len(values) < _HEAD_SIZE or _LENGTH.unpack_from(values)[0] != len(values):
        raise ValueError(f"the file of {len(values)} bytes says that it has another number")
    position = _HEAD_SIZE
    while position < len(values):
        start = position + _LENGTH.size
        size = _LENGTH.unpack_from(values, position)[0] if start <= len(values) else -1
        # One to eight spaces follow.
        position = start + size + 8 - (start + size) % 8 + _NUMBERS_SIZE
        if size < 0 or position > len(values):
            raise ValueError("a series ends behind the file's end")
        yield values[start : start + size]


def _check_texts(texts: list[object]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r:.40} is no text")
        # Half of a pair of surrogates cannot be written.
        text.encode()
