"""Processes that a service cannot do without."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

DAEMON_CHECK_SECONDS = 0.2


async def watch(name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]) -> None:
    """Call `on_exit` with the name and the exit code of a process once it has ended."""
    # Polled: the user's code has started the process and may reap it, so there is no other way to watch it.
    while (code := _exit_code(process)) is None:  # noqa: ASYNC110 - nothing sets an event
        await asyncio.sleep(DAEMON_CHECK_SECONDS)
    on_exit(name, code)


def _exit_code(process: subprocess.Popen[Any] | BaseProcess) -> int | None:
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()
