"""A service written for mosec, run by this package and, where its wheel is installed, by mosec beside it."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from harness import SERVICES, Program, python, rewritten_service, running

MOSEC = importlib.util.find_spec("mosec") is not None


@dataclass
class Pair:
    """The same service run by this package and by mosec.

    Attributes:
        programs: ours, and mosec's where it is installed.
    """

    programs: list[Program]

    @property
    def ours(self) -> Program:
        return self.programs[0]

    def post(self, path: str, body: bytes) -> list[httpx.Response]:
        """Send both the same request; return their answers, ours first."""
        return [program.client.post(path, content=body) for program in self.programs]


def post_together(program: Program, path: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
    """Send requests at the same time; return their answers in the same order."""
    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(lambda body: program.client.post(path, content=body), bodies))


@contextlib.contextmanager
def serving_both(service: str, folder: Path, *arguments: str) -> Iterator[Pair]:
    """Run a service under this package and under mosec for the time of a block."""
    with contextlib.ExitStack() as stack:
        command = python(rewritten_service(service, folder), *arguments)
        programs = [stack.enter_context(running(command, folder / "ours.log"))]
        if MOSEC:
            # Short, because unix sockets are in it, and known, because mosec is killed and cannot remove it.
            path = stack.enter_context(tempfile.TemporaryDirectory(prefix="mosec"))
            command = python(SERVICES / f"{service}.py", *arguments, "--path", f"{path}/s")
            programs.append(stack.enter_context(running(command, folder / "mosec.log", stops=False)))
        programs[0].wait_ready()
        for program in programs[1:]:
            program.wait_ready("/")
        yield Pair(programs)
