"""What a worker on another machine has counted: what prometheus_client has written is right, and all else refused."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from mosec_asgi.observing.counted import check

GOOD = json.dumps(["n", "n_total", {"path": "/"}, "help"])


def written(tmp_path: Path, *keys: str) -> bytes:
    """Return what prometheus_client's file holds of these keys."""
    path = tmp_path / "file"
    file = MmapedDict(str(path))
    for key in keys:
        file.write_value(key, 1.0, 0.0)
    used = file._used
    file.close()
    return path.read_bytes()[:used]


def head(size: int) -> bytes:
    return size.to_bytes(4, sys.byteorder) + bytes(4)


def row(size: int, key: bytes) -> bytes:
    return struct.pack("i", size) + key + struct.pack("dd", 1.0, 0.0)


# Of all lengths, as each has its own padding.
@pytest.mark.parametrize("length", range(1, 10))
def test_what_the_library_has_written_is_right(tmp_path: Path, length: int) -> None:
    keys = [json.dumps(["n", "n_total", {"path": "x" * (length + place)}, "\u00e4"]) for place in range(4)]
    assert check("counter", written(tmp_path, *keys)) == {key.encode() for key in keys}


def test_nothing_is_right(tmp_path: Path) -> None:
    assert check("counter", written(tmp_path)) == set()


@pytest.mark.parametrize(
    "values",
    [
        b"",
        b"abc",
        head(1_000_000) + bytes(60),
        head(8) + bytes(60),
        head(10) + bytes(2),
        # prometheus_client goes round and round here, on its way back.
        head(56) + bytes(24) + row(-28, bytes(4)),
        head(32) + row(1_000, bytes(4)),
        head(32) + row(5, bytes(4)),
    ],
)  # fmt: skip
def test_lengths_that_do_not_add_up_are_refused(values: bytes) -> None:
    with pytest.raises(ValueError, match=r"says that it has another number|ends behind|has the key"):
        check("counter", values)


@pytest.mark.parametrize(
    "key",
    [
        "{{{{",
        "1234",
        "[" * 100_000,
        json.dumps(["n", "n", {}]),
        json.dumps(["n", "n", [], "help"]),
        json.dumps(["n", "n", {"a": 1}, "help"]),
        json.dumps([1, "n", {}, "help"]),
        json.dumps(["", "n", {}, "help"]),
        json.dumps(["n", "n", {"le": "wide"}, "help"]),
        json.dumps(["n", "n", {"a": "\ud800"}, "help"]),
    ],
)
def test_a_series_that_cannot_be_shown_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="a series has the key"):
        check("histogram", written(tmp_path, GOOD, key))


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    values = written(tmp_path, GOOD, "{{{{")
    assert check("counter", values, {b"{{{{"}) == {GOOD.encode(), b"{{{{"}
