"""A busy program beside a measurement: one process that does nothing but run, on one processor."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from problems import BenchmarkError

# It looks whether its parent is still there, so that it ends even where the benchmark is killed by SIGKILL.
PROGRAM = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy_loop() -> Iterator[subprocess.Popen[bytes]]:
    """Run one for the time of a block, and stop it however the block ends.

    Raises:
        BenchmarkError: it ended before, so that not all was measured beside it.
    """
    # The parent's id as this process knows it: a child that asks for it may come too late.
    command = [sys.executable, "-c", PROGRAM, str(os.getpid())]
    # A session of its own: Ctrl-C is for the benchmark, which stops it then.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
        if process.poll() is not None:
            raise BenchmarkError(f"the busy loop ended with {process.returncode} before the measurement was over")
    finally:
        process.kill()
        process.wait()
