"""Real server programs as processes: start one, wait until it is ready, ask it, stop it, look for what it left behind.

Each program gets a session, and so a process group, of its own. What is left of it, workers above all, is found by that
group, whatever has become of their parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")
R = TypeVar("R")

ROOT = Path(__file__).parent.parent
TESTS = Path(__file__).parent
SERVICES = TESTS / "services"
# Seconds; far above what anything here needs, so that only a hang reaches it.
DEADLINE = 30.0
POLL = 0.01


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait until `condition` is true; fail with `what` when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(POLL)


def exit_code_without_terminal(command: Sequence[str], log: Path, cwd: Path | None = None) -> int:
    """Close the terminal of a service once its workers are ready; return the exit code with which it ends.

    Args:
        command: its program and arguments.
        log: the file for what it prints.
        cwd: the folder in which it runs; None for that of the tests.
    """
    child, terminal = pty.fork()
    if not child:
        if cwd is not None:
            os.chdir(cwd)
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        for number in (1, 2):
            os.dup2(output, number)
        os.execve(command[0], command, environment_of_programs())
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(pid)

    try:
        wait_until(lambda: log.exists() and "all workers are ready" in log.read_text(), "the service is ready")
        os.close(terminal)
        wait_until(has_ended, "it ends")
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return ended[0]


async def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Do as `wait_until` does, and let the event loop run meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        await asyncio.sleep(POLL)


def _own_ports() -> Iterator[int]:
    """Yield ports that no other test is given, be it of this process or of one that runs tests beside it."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (32_000 - 12_000) // processes
    first = 12_000 + number * share
    # From anywhere, for the sake of another run of the tests on this machine.
    start = random.randrange(share)
    for place in itertools.count(start):
        yield first + place % share


_ports = _own_ports()


def free_port() -> int:
    """Return a port that nobody listens on, outside the range from which clients' own ports are drawn."""
    while True:
        port = next(_ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def processes() -> Iterator[tuple[int, int, int, str]]:
    """Yield number, parent, session and state of each process of the machine."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,sess=,stat="], capture_output=True, text=True, check=True
        )
        for pid, parent, session, state in map(str.split, listed.stdout.splitlines()):
            yield int(pid), int(parent), int(session), state[0]
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may hold anything.
                state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                yield int(entry.name), int(parent), int(session), state


def session_members(session: int) -> list[int]:
    """Return the processes of a session that still run, workers with groups of their own among them; no zombies."""
    return [pid for pid, _, owner, state in processes() if owner == session and state not in "ZX"]


def child_processes(parent: int) -> list[int]:
    """Return the direct children of a process, zombies included."""
    return [pid for pid, owner, _, _ in processes() if owner == parent]


def skip_module_without(*packages: str) -> None:
    """Skip the module that calls this where one of the packages is not installed; none is imported.

    Some take seconds to import, and each process that runs tests collects all modules.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed", allow_module_level=True)


def benchmark(name: str) -> ModuleType:
    """Import a module of `benchmarks/`, where one imports the other by its bare name."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        # Last: one of its modules has the name of one of the standard library.
        sys.path.append(folder)
    return importlib.import_module(name)


@dataclass
class Program:
    """A program that runs.

    Attributes:
        process: the process that was started.
        port: the port that it was given.
        log: the file with all that it prints.
        client: asks it.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """Return its log lines that are JSON."""
        rows = []
        for line in self.output.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and "fields" in row:
                    rows.append(row)
        return rows

    def messages(self) -> list[str]:
        """Return the messages of its log lines."""
        return [row["fields"]["message"] for row in self.lines()]

    def answers(self, path: str) -> bool:
        """Whether GET `path` is answered 200."""
        try:
            return self.client.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def restarts(self, stage: str) -> int:
        """Return how many workers of a stage were started in place of dead ones."""
        return self.metric(f'worker_restarts_total{{stage="{stage}"}}')

    def metric(self, name: str) -> int:
        """Return what `/metrics` says of a number, whose name goes without the prefix of the service."""
        lines = self.client.get("/metrics").text.splitlines()
        [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(f"mosec_service_{name} ")]
        return int(float(value))

    def batches(self, stage: str, path: str = "/metrics") -> tuple[int, int]:
        """Return how many items a stage has got in batches, and how many batches these were, over all its workers."""
        totals = {"sum": 0.0, "count": 0.0}
        for line in self.client.get(path).text.splitlines():
            name, _, value = line.rpartition(" ")
            kind = name.partition("{")[0].removeprefix("mosec_service_batch_size_")
            if kind in totals and f'stage="{stage}"' in name:
                totals[kind] += float(value)
        return int(totals["sum"]), int(totals["count"])

    def ask_together(self, stage: str, ask: Callable[[T], R], items: Sequence[T], tasks: int | None = None) -> list[R]:
        """Ask for all items at once, and again until a batch of several was among those of `stage`; return the answers.

        All items together are so many `tasks` of the stage, one each where it is None. A quick model on a slow machine
        may be done with each before the next one comes.
        """
        deadline = time.monotonic() + DEADLINE
        with ThreadPoolExecutor(len(items)) as threads:
            while True:
                before = self.batches(stage)
                answers = list(threads.map(ask, items))
                requests, batches = (now - then for now, then in zip(self.batches(stage), before, strict=True))
                assert requests == (len(items) if tasks is None else tasks)
                if batches < requests:
                    return answers
                assert time.monotonic() < deadline, f"no batch of several at {stage}"

    def wait_ready(self, path: str = "/readyz", seconds: float = DEADLINE) -> None:
        """Wait until GET `path` is answered 200; fail if the program ends before."""

        def ready_or_ended() -> bool:
            assert self.process.poll() is None, f"it has ended with {self.process.returncode}:\n{self.output}"
            return self.answers(path)

        wait_until(ready_or_ended, f"{path} is not answered 200", seconds)

    def wait_for_output(self, text: str) -> None:
        """Wait until the program has printed `text`; fail if it ends before."""

        def printed_or_ended() -> bool:
            ended = self.process.poll() is not None
            if text in self.output:
                return True
            assert not ended, f"it has ended with {self.process.returncode} without {text!r}:\n{self.output}"
            return False

        wait_until(printed_or_ended, f"{text!r} is not printed")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself, not to its children."""
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for the program's end and return its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {seconds} s:\n{self.output}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the program by a signal, make sure that no process of it is left, and return its exit code."""
        self.send(number)
        code = self.wait()
        # The workers are gone before the program is; the process that `multiprocessing` keeps beside it, just after.
        self.assert_nothing_left(3.0)
        return code

    def members(self) -> list[int]:
        """Return the processes of the program that still run, itself included."""
        return session_members(self.process.pid)

    def assert_nothing_left(self, seconds: float = DEADLINE) -> None:
        """Wait until no process of the program runs any more."""
        wait_until(lambda: not self.members(), f"its processes {self.members()} still run\n{self.output}", seconds)


def environment_of_programs() -> dict[str, str]:
    """Return this process's variables without settings of ours; programs can import what lies among the tests."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MOSEC_")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return variables


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stops: bool = True,
) -> Iterator[Program]:
    """Run a command for the time of a block.

    At the block's end a program that still runs is stopped, and must leave no process behind; one that the block has
    ended itself must have left none either. Whatever happens, the whole group is killed in the end.

    Args:
        command: the program and its arguments; `{port}` stands for its port.
        log: a file for all that it prints.
        port: to use; a free one if None.
        environment: variables to set on top of this process's own.
        cwd: the working directory.
        stops: end it in good order, and look for what is left; False kills it at once.
    """
    port = free_port() if port is None else port
    variables = environment_of_programs()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [argument.replace("{port}", str(port)) for argument in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**variables, **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
    # No proxy and no certificates: loading them takes longer than a request.
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        transport=httpx.HTTPTransport(verify=False, limits=httpx.Limits(max_connections=None)),
        timeout=DEADLINE,
    )
    try:
        program = Program(process, port, log, client)
        yield program
        if stops:
            if process.poll() is None:
                program.stop()
            program.assert_nothing_left(5.0)
    finally:
        client.close()
        for pid in session_members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def python(file: Path, *arguments: str) -> list[str]:
    """Return the command that runs a server program on `{port}`."""
    return [sys.executable, str(file), "--port", "{port}", *arguments]


def written(folder: Path, text: str, name: str = "server.py") -> Path:
    """Write a program to a file and return its path."""
    file = folder / name
    file.write_text(text)
    return file


def rewritten_service(name: str, folder: Path) -> Path:
    """Return one of `tests/services`, written for mosec, as a copy that imports this package: nothing else differs."""
    text = (SERVICES / f"{name}.py").read_text()
    assert text.count("from mosec import") == 1, f"{name} must import mosec in one place"
    for package in ("mosec", "mosec.mixin"):
        text = text.replace(f"from {package} import", f"from {package.replace('mosec', 'mosec_asgi')} import")
    return written(folder, text, f"{name}.py")


@contextlib.contextmanager
def serving(
    folder: Path,
    stages: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    by: str = "run",
    stops: bool = True,
) -> Iterator[Program]:
    """Serve stages of `tests/workers.py` for the time of a block, by a program such as users write.

    Args:
        folder: for the program, and for what it prints.
        stages: Python statements that append workers to `server`.
        arguments: of the program.
        environment: variables to set.
        by: "run" for `python server.py`, "uvicorn" for `uvicorn server:server`, "mounted" for the same with a FastAPI
            app that has the service at /ml.
        stops: see `running`.
    """
    lines = [
        "from mosec_asgi import Server",
        "from workers import *",
        "server = Server()",
        *textwrap.dedent(stages).strip().splitlines(),
        'if __name__ == "__main__":',
        "    server.run()",
    ]
    file = written(folder, "\n".join(lines) + "\n")
    mounting = "from fastapi import FastAPI\nfrom server import server\napp = FastAPI(lifespan=server.lifespan)\n"
    written(folder, mounting + 'app.mount("/ml", server)\n', "app.py")
    uvicorn = [sys.executable, "-m", "uvicorn", "--port", "{port}", *arguments]
    commands = {
        "run": python(file, *arguments),
        "uvicorn": [*uvicorn, "server:server"],
        "mounted": [*uvicorn, "app:app"],
    }
    with running(commands[by], folder / "output.log", environment=environment, cwd=folder, stops=stops) as program:
        if by == "mounted":
            program.client.base_url = f"{program.url}/ml"
        program.wait_ready()
        yield program
