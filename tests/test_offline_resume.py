"""What is found of a run: whole records count, half ones are cut off, and another's are left alone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from mosec_asgi.offline.done import Done
from mosec_asgi.offline.faults import Halted, WrongUse
from mosec_asgi.offline.outputs import Places
from mosec_asgi.offline.records import Failed, Line, Plain
from mosec_asgi.offline.resume import Run, locked, recover

FORM = Plain("jsonl", "/r")
STATE: dict[str, Any] = {"input": {"size": 1}, "format": "jsonl", "ordered": True}


def record(number: int) -> bytes:
    return FORM.output(Line(number, 1), "x" * (number % 7), 200)


def error(number: int) -> bytes:
    return FORM.error(Line(number, 1, b"1"), Failed(500, "no"))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.of(str(tmp_path / "out"), None, converted=False)


def resumed(places: Places, state: dict[str, Any] = STATE) -> Run:
    with locked(places) as run:
        run.go_on(state, FORM.number, 1000)
        return run


def begun(places: Places, *, overwrite: bool = False) -> None:
    with locked(places) as run:
        run.begin(STATE, overwrite=overwrite)


def test_wherever_a_file_ends_whole_records_count_and_the_rest_goes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    whole = b"".join(map(record, (3, 1, 2)))
    ends = [len(record(3)), len(record(3) + record(1)), len(whole)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        done = Done()
        recover(path, FORM.number, 10, done)
        count = sum(end <= size for end in ends)
        assert len(done) == count
        assert path.read_bytes() == whole[: [0, *ends][count]]


def test_errors_and_results_are_both_done(places: Places) -> None:
    begun(places)
    places.output.write_bytes(record(1) + record(4))
    places.errors.write_bytes(error(2) + error(3) + error(5)[:-1])
    run = resumed(places)
    assert [number for number in range(10) if number in run.done] == [1, 2, 3, 4]
    assert (run.failed, run.finished) == (2, False)
    assert places.errors.read_bytes() == error(2) + error(3)


class FullDisk(FileIO):
    """Takes ten bytes, and then fails, or takes no more."""

    fails = True

    def write(self, data: Any) -> int:
        written = super().write(data[:10])
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


@pytest.mark.parametrize("fails", [True, False])
def test_a_full_disk_is_said_and_leaves_no_half_state(places: Places, *, fails: bool) -> None:
    with FullDisk(places.state, "w+b") as file:
        file.fails = fails
        with pytest.raises(Halted, match="cannot be written: No space left"):
            Run(file, places).begin(STATE, overwrite=False)
    assert places.state.read_bytes() == b""
    begun(places)
    before = places.state.read_bytes()
    with FullDisk(places.state, "r+b") as file:
        file.fails = fails
        with pytest.raises(Halted, match="cannot be written: No space left"):
            Run(file, places).end(0)
    assert places.state.read_bytes() == before
    assert not resumed(places).finished


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (record(1) + b"\0" * 50 + b"\n", "line 2: this is no record"),
        (record(1) + record(1), "line 2: this is a second record of line 1"),
        (record(1001), "line 1: this is no record"),
    ],
)
def test_what_is_damaged_is_refused_and_left_as_it_is(places: Places, data: bytes, text: str) -> None:
    begun(places)
    places.output.write_bytes(data)
    with pytest.raises(Halted, match=text):
        resumed(places)
    assert places.output.read_bytes() == data


def test_another_input_or_another_way_is_noticed(places: Places) -> None:
    begun(places)
    places.output.write_bytes(record(1))
    for key, text in (("input", "input file"), ("ordered", "--unordered"), ("route", "--route")):
        with pytest.raises(WrongUse, match=f"begun with another {text}"):
            resumed(places, {**STATE, key: "other"})
    assert len(resumed(places).done) == 1


def test_to_go_on_with_nothing_is_to_begin(places: Places) -> None:
    assert len(resumed(places).done) == 0
    assert resumed(places).finished is False
    # Ended between making the file and writing into it.
    places.state.write_bytes(b"")
    resumed(places)
    assert places.state.read_bytes()


def test_an_output_of_which_nothing_is_known_is_refused(places: Places) -> None:
    places.output.write_bytes(b"precious")
    for call in (resumed, begun):
        with pytest.raises(WrongUse, match="out exists"):
            call(places)
        assert not places.state.exists(), "nothing was done, and nothing is left of it"
    assert places.output.read_bytes() == b"precious"
    places.state.write_bytes(b"[]\n")
    with pytest.raises(WrongUse, match="does not say of which run"):
        resumed(places)
    begun(places, overwrite=True)
    assert not places.output.exists()


def test_a_run_that_is_finished_says_so_whatever_has_become_of_its_files(places: Places) -> None:
    with locked(places) as run:
        run.begin(STATE, overwrite=False)
        run.end(failed=3)
    run = resumed(places)
    assert (run.finished, run.failed) == (True, 3)
    begun(places)
    assert not resumed(places).finished


def test_one_run_at_a_time(places: Places) -> None:
    program = (
        "import sys, pathlib\nfrom mosec_asgi.offline.outputs import Places\n"
        "from mosec_asgi.offline.resume import locked\n"
        "with locked(Places.of(sys.argv[1], None, converted=False)):\n    print('has it', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(places.output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"has it\n"
        with pytest.raises(WrongUse, match="another run writes to"):
            begun(places)
        other.kill()
    begun(places)
