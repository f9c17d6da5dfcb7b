"""What `mosec-asgi map` makes of a model's time, and of SIGKILL: `make map`.

A model of 5 ms a batch and 0.1 ms an item, in batches of 64, over a file: first once without a fault, for the rate, and
then killed at random times and gone on with by `--resume`. Both outputs must hold every line exactly once, in order.
The model sleeps, and on a busy machine for longer than it should, so how much of its time it was at work stands beside
the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import processes
from problems import BenchmarkError

ROOT = Path(__file__).parent.parent
SERVICES = Path(__file__).parent / "services"
BATCH = 64
SECONDS_PER_BATCH = 0.005 + 0.0001 * BATCH
LIMIT = BATCH / SECONDS_PER_BATCH
LEAST_SHARE = 0.9
KILLS = 3
LOOK_SECONDS = 0.1
PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Seen:
    """What was seen of one run of the command.

    Attributes:
        code: its exit code.
        seconds: from its first record to its end.
        lines: in its output at the end.
        server: seconds of processor time of the command's own process.
        workers: the same of its workers, as of the last look.
        memory: the most bytes that its own process held, as of the last look.
    """

    code: int
    seconds: float
    lines: int
    server: float = 0.0
    workers: float = 0.0
    memory: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Map a model over a file, also through SIGKILL.")
    parser.add_argument("--lines", type=int, default=200_000, help="of the file (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=KILLS, help="how often the run is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mosec-asgi-map-") as folder:
        source = Path(folder, "in.jsonl")
        _write_input(source, options.lines)
        try:
            _undisturbed(source, options.lines)
            _killed(source, options.lines, options.kills, random.Random(options.seed))
        except BenchmarkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def _write_input(path: Path, lines: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(item(number)) + "\n" for number in range(1, lines + 1))


def item(number: int) -> dict[str, object]:
    """Return what stands in a line of the input."""
    return {"number": number, "text": f"this is the text of line {number}"}


def _undisturbed(source: Path, lines: int) -> None:
    output = source.with_name("whole.jsonl")
    seen = _run(source, output)
    if seen.code != 0:
        raise BenchmarkError(f"the command has ended with {seen.code}")
    check(output, lines)
    rate = lines / seen.seconds
    print(f"{lines:,} lines in {seen.seconds:.1f} s from the first to the last: {rate:,.0f} lines/s")
    share = rate / LIMIT
    missed = "" if share >= LEAST_SHARE else " MISSED"
    print(f"  {share:.3f} of the model's limit of {LIMIT:,.0f}/s (at least {LEAST_SHARE}){missed}")
    within, all_of_it = map(float, source.with_name("times").read_text().split())
    print(f"  the model was at work for {within / all_of_it:.3f} of the time between its first batch and its last; a")
    print(f"  batch took it {within / lines * BATCH * 1000:.1f} ms, in the place of {SECONDS_PER_BATCH * 1000:.1f}")
    if processes.KNOWN:
        own, workers = (seconds / lines * 1e6 for seconds in (seen.server, seen.workers))
        print(f"  processor time for each line, starts included: {own:.1f} µs, and {workers:.1f} µs of the worker")
        print(f"  memory of the command's own process: {seen.memory / 1e6:.0f} MB at most")


def _killed(source: Path, lines: int, kills: int, chance: random.Random) -> None:
    output = source.with_name("killed.jsonl")
    # Not so late that the run has ended before it is killed.
    at = sorted(chance.sample(range(1, lines * 9 // 10), kills))
    for number, place in enumerate(at, 1):
        seen = _run(source, output, kill_at=place)
        print(f"killed {number} of {kills}, at about line {place:,}: {seen.lines:,} whole lines there", flush=True)
        if seen.code != -signal.SIGKILL:
            raise BenchmarkError(f"the command was to be killed, and has ended with {seen.code}")
    seen = _run(source, output)
    if seen.code != 0:
        raise BenchmarkError(f"the last run has ended with {seen.code}")
    check(output, lines)
    print(f"  gone on with after each: {lines:,} lines, every one exactly once, in order")


def check(output: Path, lines: int) -> None:
    """Check that an output holds each line's own result, once, in order.

    Raises:
        BenchmarkError: it does not.
    """
    if (errors := output.with_name(f"{output.name}.errors.jsonl")).exists():
        raise BenchmarkError(f"lines have failed: {errors.read_text()[:500]}")
    count = 0
    with output.open() as file:
        for count, text in enumerate(file, 1):
            record = json.loads(text)
            if record != {"line": count, "output": item(count)}:
                raise BenchmarkError(f"at place {count} stands {text.strip()[:200]}")
    if count != lines:
        raise BenchmarkError(f"{count:,} records for {lines:,} lines")


def _run(source: Path, output: Path, kill_at: int | None = None) -> Seen:
    """Run the command, and kill it once so many lines are there."""
    command = [sys.executable, "-m", "mosec_asgi", "map", "mapped:server", "--app-dir", str(SERVICES)]
    command += ["--input", str(source), "--output", str(output), "--resume"]
    paths = os.pathsep.join(filter(None, [str(ROOT), str(SERVICES), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "BENCH_PACKAGE": "mosec_asgi", "PYTHONPATH": paths}
    environment["MAPPED_TIMES"] = str(source.with_name("times"))
    before = _size(output)
    kill_size = None if kill_at is None else sum(len(_record(number)) for number in range(1, kill_at + 1))
    seen = Seen(0, 0.0, 0)
    with subprocess.Popen(command, env=environment) as process:
        limit = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and _size(output) == before:
            if time.monotonic() > limit:
                process.kill()
                raise BenchmarkError(f"no record after {PATIENCE_SECONDS:.0f} s")
            time.sleep(0.001)
        began = time.monotonic()
        while process.poll() is None:
            if kill_size is not None and _size(output) >= kill_size:
                process.kill()
            _look(process.pid, seen)
            # Ends as soon as the command does.
            try:
                process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        seen.seconds = time.monotonic() - began
        seen.code = process.returncode
    with output.open("rb") as file:
        seen.lines = sum(line.endswith(b"\n") for line in file)
    return seen


def _look(pid: int, seen: Seen) -> None:
    """Note the processor time of a command and its workers so far."""
    if not processes.KNOWN:
        return
    members = processes.members(pid)
    if pid in members and len(members) > 1:
        seen.server = members[pid].own
        seen.memory = max(seen.memory, _peak(pid))
        # They end before the command does.
        seen.workers = max(seen.workers, sum(stat.own for member, stat in members.items() if member != pid))


def _peak(pid: int) -> int:
    """Return the most bytes that a process has held; 0 of one that has ended by now."""
    try:
        text = (processes.PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    # One that has ended and was not waited for has no such line.
    kilobytes = text.partition("VmHWM:")[2].split()
    return 1024 * int(kilobytes[0]) if kilobytes else 0


def _record(number: int) -> str:
    return json.dumps({"line": number, "output": item(number)}, separators=(",", ":")) + "\n"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
