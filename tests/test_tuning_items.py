"""The sample, from a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.tuning import items


def test_no_more_than_the_first_items_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"n": {number}}}\n' for number in range(items.MOST_ITEMS + 10)))
    found = items.read(str(path))
    assert len(found) == items.MOST_ITEMS
    assert found[1] == {"n": 1}
    assert items.read(str(path), "n")[1] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no items"), ("\n\n", "no items"), ('{"n": 1}\n{"n"\n', "line 2 of"), ("[1]\n", "no 'n'")],
)
def test_what_is_no_sample_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(WrongUse, match=message):
        items.read(str(path), "n")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="cannot be read"):
        items.read(str(tmp_path / "none.jsonl"))


def test_a_device_is_refused_and_a_pipe_is_known_as_one(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="/dev/zero is a device: name a file"):
        items.read("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    assert items.is_pipe(str(tmp_path / "pipe"))
    (tmp_path / "file").write_text("1\n")
    assert not items.is_pipe(str(tmp_path / "file"))
    assert not items.is_pipe("-")
    assert not items.is_pipe(str(tmp_path / "none"))
