"""Profile the server under the load of one scenario: `python benchmarks/profile.py echo`.

py-spy samples the server's process and its workers from outside. For each process the functions that the time is spent
in are printed, by their own time (without what they call) and by their total time (with it). What C code does (uvloop's
waiting and writing, the HTTP parser, orjson) counts as own time of the Python function that called it. A sample is
taken at the next system call or soon after it, so that functions that make one look more expensive than they are.

Before that, without py-spy, the processor time of a request is measured, by what the system counts for each process
(Linux): the number to compare versions by, for it depends less than others on what else the machine does.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import processes
import servers
from problems import BenchmarkError
from scenarios import PROFILED, Scenario

WARM_UP_SECONDS = 1
# The system counts in hundredths of a second: with this, to about a tenth of a microsecond a request.
CPU_SECONDS = 5
# py-spy stops the server for each sample: more of them would change what they show.
SAMPLES_PER_SECOND = 200
# The load outlasts the sampling at both ends, py-spy's own start included.
MARGIN_SECONDS = 3

# A line of py-spy's: the process, below its parents; the stack, outermost first; how often it was seen.
_LINE = re.compile(r'(?:process (?P<pid>\d+):"[^"]*";)+(?P<stack>.*) (?P<count>\d+)')


@dataclass
class Profile:
    """What the samples of one process say, in samples.

    Attributes:
        samples: all of them; an idle process has none.
        own: by function, how often it was running itself.
        total: by function, how often it or something that it called was.
    """

    samples: int = 0
    own: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)

    def add(self, stack: Sequence[str], count: int) -> None:
        """Count a stack, outermost function first, that was seen `count` times."""
        self.samples += count
        self.own[stack[-1]] += count
        for function in set(stack):
            self.total[function] += count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Profile mosec_asgi under the load of one scenario.")
    parser.add_argument("scenario", choices=[scenario.name for scenario in PROFILED])
    parser.add_argument("--seconds", type=int, default=8, help="how long to sample (default: %(default)s)")
    parser.add_argument("--top", type=int, default=25, help="functions a table (default: %(default)s)")
    options = parser.parse_args(arguments)
    (scenario,) = (scenario for scenario in PROFILED if scenario.name == options.scenario)
    try:
        scenario.load.check()
        _profile(_find_py_spy(), scenario, options.seconds, options.top)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _find_py_spy() -> str:
    # First beside this Python, so that a virtual environment need not be active.
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise BenchmarkError(f"py-spy takes the samples and is not installed: {sys.executable} -m pip install py-spy")
    return found


def _profile(py_spy: str, scenario: Scenario, seconds: int, top: int) -> None:
    print(f"{scenario.name}: {scenario.title}; {seconds} s at {SAMPLES_PER_SECOND} samples/s", flush=True)
    with (
        servers.running(scenario.service, ["mosec_asgi"], scenario.load) as (server,),
        ThreadPoolExecutor(1) as thread,
    ):
        scenario.load.put_on(server.url, scenario.connections, WARM_UP_SECONDS)
        _print_cpu_time(server, scenario)
        measuring = thread.submit(scenario.load.put_on, server.url, scenario.connections, seconds + MARGIN_SECONDS)
        lines = _record(py_spy, server.process.pid, seconds)
        measurement = measuring.result()
        main_process = server.process.pid
    print(f"{measurement.per_second:,.0f} {scenario.load.unit} meanwhile, slowed by the sampling")
    for pid, profile in sorted(read_samples(lines).items()):
        name = "server process: the event loop" if pid == main_process else f"worker process {pid}"
        busy = profile.samples / (seconds * SAMPLES_PER_SECOND)
        print(f"\n== {name}, busy {busy:.0%} of the time")
        _print_counts("own time", profile.own, profile.samples, top)
        # Without what is in every sample: the way from the program's start to its loop.
        inner = Counter({function: count for function, count in profile.total.items() if count < profile.samples})
        _print_counts("total time", inner, profile.samples, top)


def _print_cpu_time(server: servers.RunningServer, scenario: Scenario) -> None:
    if not processes.KNOWN:
        return
    pid = server.process.pid
    before = processes.members(pid)
    measurement = scenario.load.put_on(server.url, scenario.connections, CPU_SECONDS)
    after = processes.members(pid)
    print(f"{measurement.per_second:,.0f} {scenario.load.unit}; of processor time, each of them takes")
    for each in sorted(before.keys() & after.keys()):
        total = (after[each].own - before[each].own) / measurement.done * 1e6
        system = (after[each].system - before[each].system) / measurement.done * 1e6
        if total > 0:
            name = "the server" if each == pid else f"worker {each}"
            print(f"  {total:6.1f} µs of {name}, {system:.1f} of them in the kernel")


def _print_counts(title: str, counts: Counter[str], samples: int, top: int) -> None:
    print(f"\n  {title}, % of the {samples} samples")
    for function, count in counts.most_common(top):
        print(f"  {count / samples:6.1%}  {function}")


def _record(py_spy: str, pid: int, seconds: int) -> list[str]:
    """Sample a process and its children; return py-spy's lines.

    Raises:
        BenchmarkError: py-spy failed, most often because it may not look into other processes.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        output = Path(folder) / "samples"
        command = [py_spy, "record", "--pid", str(pid), "--subprocesses", "--function", "--format", "raw"]
        command += ["--rate", str(SAMPLES_PER_SECOND), "--duration", str(seconds), "--output", str(output)]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode or not output.exists():
            raise BenchmarkError(
                f"py-spy failed:\n{finished.stdout}{finished.stderr}"
                "If it may not look into other processes: run this with sudo, or in a container with SYS_PTRACE"
            )
        return output.read_text().splitlines()


def read_samples(lines: Iterable[str]) -> dict[int, Profile]:
    """Sum up py-spy's lines in its format `raw` by process."""
    profiles: dict[int, Profile] = {}
    for line in lines:
        # multiprocessing's resource tracker, which only waits, is no worker.
        if (found := _LINE.fullmatch(line)) and "main (multiprocessing/resource_tracker.py" not in line:
            profile = profiles.setdefault(int(found["pid"]), Profile())
            profile.add(found["stack"].split(";"), int(found["count"]))
    return profiles


if __name__ == "__main__":
    sys.exit(main())
