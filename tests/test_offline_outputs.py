"""Records in files: each by one call to the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from mosec_asgi.offline.faults import Halted
from mosec_asgi.offline.outputs import Places, RecordFile, _write


def test_a_file_is_made_with_its_first_record_which_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    file = RecordFile(path)
    file.close()
    assert not path.exists()
    file = RecordFile(path)
    file.append(b"one\n")
    assert path.read_bytes() == b"one\n"
    file.append(b"two\n")
    file.close()
    other = RecordFile(path)
    other.append(b"three\n")
    other.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_a_part_that_the_system_left_out_is_written_too() -> None:
    class Slow:
        def __init__(self) -> None:
            self.got = b""

        def write(self, data: bytes) -> int:
            self.got += data[:3]
            return len(data[:3])

    slow = Slow()
    _write(slow, b"a whole record\n")  # type: ignore[arg-type]
    assert slow.got == b"a whole record\n"


def test_what_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(Halted, match="nowhere/out cannot be written: No such file"):
        RecordFile(tmp_path / "nowhere" / "out").append(b"x")
    full = Path("/dev/full")
    if full.exists():
        file = RecordFile(full)
        with pytest.raises(Halted, match="No space left"):
            file.append(b"x")
        file.close()


def test_files_lie_beside_the_output() -> None:
    plain = Places.of("a/out.jsonl", None, converted=False)
    assert plain.results() == [Path("a/out.jsonl"), Path("a/out.jsonl.errors.jsonl")]
    table = Places.of("a/out.csv", "b", converted=True)
    assert table.results() == [Path("a/out.csv"), Path("a/out.csv.records.jsonl"), Path("b")]
    assert table.state == Path("a/out.csv.run.json")
