"""The busy program beside a benchmark runs for as long as it is wanted, and not longer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, benchmark, wait_until

busy = benchmark("busy")
problems = benchmark("problems")
processes = benchmark("processes")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HOLDER = f"""
import sys
sys.path.append({str(ROOT / "benchmarks")!r})
from busy import busy_loop
with busy_loop() as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""


def test_it_keeps_a_processor_busy_and_is_gone_after_an_error() -> None:
    def fail(process: subprocess.Popen[bytes]) -> None:
        wait_until(lambda: processes.read_stat(process.pid).own > 0.3, "the loop runs")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), busy.busy_loop() as process:
        fail(process)
    assert process.returncode == -signal.SIGKILL


def test_it_ends_with_a_benchmark_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        holder.kill()
        try:
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the loop has ended")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_loop_that_ended_early_is_an_error() -> None:
    def end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    with pytest.raises(problems.BenchmarkError, match="before the measurement was over"), busy.busy_loop() as process:
        end(process)
