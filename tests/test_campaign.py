"""Histories on all cores: what comes of them, and that nothing stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from harness import child_processes, environment_of_programs, processes, wait_until

SIMULATE = [sys.executable, "-m", "mosec_asgi.testing", "simulate", "--processes", "2", "--histories"]


def test_histories_of_several_processes_are_summed_up() -> None:
    finished = subprocess.run([*SIMULATE, "101"], capture_output=True, text=True, env=environment_of_programs())
    assert finished.returncode == 0, finished.stderr
    assert "101 of 101 histories" in finished.stderr
    assert finished.stdout.endswith("all contracts held\n")


def alive() -> set[int]:
    return {pid for pid, _, _, state in processes() if state != "Z"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_processes_end_with_it_however_it_ends(number: signal.Signals) -> None:
    with subprocess.Popen(
        [*SIMULATE, "1000000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment_of_programs()
    ) as program:
        try:
            # Two that run histories, and one that keeps account of what multiprocessing shares.
            wait_until(lambda: len(child_processes(program.pid)) == 3, "its processes do not start")
            children = child_processes(program.pid)
        finally:
            program.send_signal(number)
    wait_until(lambda: not alive() & set(children), "its processes live on")
