"""`mosec-asgi map` as a program: killed, stopped, in a pipe; no line lost, none twice, no process left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import TESTS, environment_of_programs, session_members, wait_until

LINES = 3000


def command_of(folder: Path, *arguments: str, server: str = "offline_workers:server") -> list[str]:
    places = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return [sys.executable, "-m", "mosec_asgi", "map", server, "--app-dir", str(TESTS), *places, *arguments]


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; nothing of that may be left at the end of the block."""
    with subprocess.Popen(command, start_new_session=True, env=environment_of_programs(), **options) as process:
        try:
            yield process
            process.wait(60)
            wait_until(lambda: not session_members(process.pid), "processes are left")
        finally:
            for pid in session_members(process.pid):
                os.kill(pid, signal.SIGKILL)


def run(command: list[str], data: bytes | None = None) -> tuple[int, bytes, str]:
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate(data, timeout=60)
    return process.returncode, output, errors.decode()


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(folder: Path, lines: int = LINES) -> None:
    """Write lines of which each twentieth fails, before or in its worker."""
    with (folder / "in.jsonl").open("w") as file:
        for number in range(1, lines + 1):
            bad = "nonsense" if number % 40 else json.dumps({"m": number})
            file.write((bad if number % 20 == 0 else json.dumps({"n": number})) + "\n")


def check(folder: Path, *, ordered: bool, lines: int = LINES) -> None:
    """Check that each line has its own record, once."""
    found, failed = records(folder / "out.jsonl"), records(folder / "out.jsonl.errors.jsonl")
    numbers = [row["line"] for row in found]
    assert sorted(numbers) == [number for number in range(1, lines + 1) if number % 20]
    assert all(row["output"]["double"] == 2 * row["line"] for row in found)
    assert sorted(row["line"] for row in failed) == list(range(20, lines + 1, 20))
    assert all(row["code"] == (422 if row["line"] % 40 == 0 else 400) for row in failed)
    if ordered:
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("ordered", [True, False])
def test_whenever_it_is_killed_each_line_is_there_once_in_the_end(tmp_path: Path, ordered: bool) -> None:
    chance = random.Random(ordered)
    written(tmp_path)
    command = command_of(tmp_path, "--resume", *([] if ordered else ["--unordered"]))
    output = tmp_path / "out.jsonl"
    # At the start, while models load, and at random places; a record of 3 bytes and more makes no place certain.
    for share in sorted([0.0, *(chance.random() * 0.9 for _ in range(3))]):
        enough = int(share * LINES * len('{"line":1000,"output":{"double":2000,"batch":0}}\n'))
        with started(command) as process:
            wait_until(lambda e=enough, p=process: size(output) >= e or p.poll() is not None, "no record")  # type: ignore[misc]
            process.kill()
        if chance.random() < 0.5 and output.exists():
            # Cut short, as a kill in the middle of a write leaves it.
            os.truncate(output, max(0, size(output) - chance.randrange(1, 40)))
    code, _, errors = run(command)
    assert code == 3, errors
    check(tmp_path, ordered=ordered)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_hand_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    written(tmp_path, 10_000)
    output = tmp_path / "out.jsonl"
    with started(command_of(tmp_path), stderr=subprocess.PIPE) as process:
        wait_until(lambda: size(output), "no record")
        # As a terminal does, to all that it has started.
        os.killpg(process.pid, number)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 128 + number
    assert "stopping: no more lines are taken" in said
    assert "to go on: mosec-asgi map" in said
    assert "--resume" in said
    assert "Traceback" not in said
    lines = [row["line"] for row in records(output)]
    failed = [row["line"] for row in records(tmp_path / "out.jsonl.errors.jsonl")]
    # Nothing of what was taken is left out.
    assert sorted(lines + failed) == list(range(1, len(lines + failed) + 1))
    assert len(lines) < 9_000
    code, _, said = run(command_of(tmp_path, "--resume"))
    assert code == 3, said
    check(tmp_path, ordered=True, lines=10_000)


def test_a_second_signal_drops_what_is_in_hand(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "from mosec_asgi import Server\nfrom offline_workers import Slow\nserver = Server(timeout=100_000)\n"
        "server.append_worker(Slow)\n"
    )
    (tmp_path / "in.jsonl").write_text("0\n50\n")
    command = command_of(tmp_path, "--app-dir", str(tmp_path), server="slow:server")
    with started(command, stderr=subprocess.PIPE) as process:
        wait_until(lambda: size(tmp_path / "out.jsonl"), "no record")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = b""
        while b"again to drop" not in said:
            said += os.read(process.stderr.fileno(), 1000)
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130
    assert b"dropped what was in hand" in said
    assert b"Traceback" not in said
    assert [row["line"] for row in records(tmp_path / "out.jsonl")] == [1]


def test_a_signal_ends_a_wait_for_standard_input(tmp_path: Path) -> None:
    command = command_of(tmp_path, "--input", "-")
    with started(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # More than are in hand at a time, and then nothing.
        process.stdin.write(b'{"n": 1}\n' * 500)
        process.stdin.flush()
        wait_until(lambda: size(tmp_path / "out.jsonl"), "no record")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()
    assert process.returncode == 130, said
    lines = [row["line"] for row in records(tmp_path / "out.jsonl")]
    assert lines == list(range(1, len(lines) + 1))


def test_a_pipe_carries_records_alone(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    command = command_of(
        tmp_path, "--input", "-", "--output", "-", "--errors", str(errors), "--route", "/v1/various"
    )  # fmt: skip
    code, output, said = run(command, b'"print"\n"bytes"\n"x"\n')
    assert code == 3
    assert [json.loads(line) for line in output.splitlines()] == [
        {"line": 1, "output": "printed"},
        {"line": 3, "output": "x"},
    ]
    assert "printed by the model" in said
    assert [row["line"] for row in records(errors)] == [2]


def test_a_reader_that_ends_early_ends_the_run(tmp_path: Path) -> None:
    written(tmp_path, 20_000)
    command = command_of(tmp_path, "--output", "-", "--errors", str(tmp_path / "errors"))
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 1
    assert "whoever reads standard output has ended" in said
    assert "Traceback" not in said


def test_models_that_do_not_start_end_the_run_with_their_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from mosec_asgi import Server, Worker\n\n\nclass Broken(Worker):\n    def __init__(self):\n"
        '        raise OSError("no weights")\n\n    def forward(self, data):\n        return data\n\n\n'
        "server = Server()\nserver.append_worker(Broken)\n"
    )
    written(tmp_path, 20)
    code, _, said = run(command_of(tmp_path, "--app-dir", str(tmp_path), server="broken:server"))
    assert code == 1
    assert "no weights" in said
    assert "to go on:" in said


def test_wrong_use_exits_with_2_and_help_says_the_exit_codes(tmp_path: Path) -> None:
    code, _, said = run(command_of(tmp_path))
    assert code == 2
    assert "in.jsonl cannot be read: No such file" in said
    code, output, _ = run([sys.executable, "-m", "mosec_asgi", "map", "--help"])
    assert code == 0
    for text in (b"--resume", b"exit codes: 0 all lines are done", b"errors.jsonl"):
        assert text in output
