"""The servers under test: started, checked, and stopped without a trace.

Each gets a session, and so a process group, of its own; what is left of a group at the end is killed.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from load import Load
from problems import BenchmarkError

SERVICES = Path(__file__).parent / "services"
ROUTE = "/inference"
SECONDS_TO_START = 30.0
SECONDS_TO_STOP = 10.0
POLL = 0.02


@dataclass(frozen=True, slots=True)
class Checkout:
    """A version of this package.

    Attributes:
        name: what it is called.
        folder: where its files lie; the package is in it.
        without: the shorter way that is switched off in it, see `services/ways.py`; empty for none.
        variables: of its environment, by their names.
    """

    name: str
    folder: Path
    without: str = ""
    variables: tuple[tuple[str, str], ...] = ()


Package = Literal["mosec", "mosec_asgi", "litserve", "bare", "uvicorn", "static"]
# Where one answers 200 once it is ready.
READY = {"mosec_asgi": "/readyz", "static": "/readyz", "litserve": "/health"}


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that runs.

    Attributes:
        package: whose it is.
        name: what it is called: the package, or its version.
        process: its main process, which leads the process group.
        port: where it listens on 127.0.0.1.
        log: the file with all that it prints.
    """

    package: Package
    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where the load goes."""
        return f"http://127.0.0.1:{self.port}{ROUTE}"

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Send one request; return the status and the body of the answer.

        Raises:
            OSError: nobody answers.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS_TO_START)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def failure(self, what: str) -> BenchmarkError:
        """Return an error that shows the end of the server's log."""
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return BenchmarkError("\n".join([f"{self.name}: {what}", *lines]))


def check_mosec() -> None:
    """Make sure that mosec can be run.

    Raises:
        BenchmarkError: it is not installed.
    """
    if importlib.util.find_spec("mosec") is None:
        raise BenchmarkError(
            "mosec, to compare with, is not installed: pip install 'mosec-asgi[compare]' "
            "(its wheels exist for Linux and macOS only)"
        )


def check_litserve() -> None:
    """Make sure that LitServe can be run.

    Raises:
        BenchmarkError: it is not installed.
    """
    if importlib.util.find_spec("litserve") is None:
        raise BenchmarkError("LitServe, to compare with, is not installed: pip install 'mosec-asgi[compare-litserve]'")


@contextlib.contextmanager
def running(service: str, packages: Sequence[Package | Checkout], load: Load) -> Iterator[list[RunningServer]]:
    """Run a service under each of `packages` for the time of a block, each ready and answering rightly.

    Args:
        service: the file under `services/`.
        packages: whose; "bare", "uvicorn" and "static" are services of their own, and LitServe's is in
            `litserve_<service>.py`. A checkout is ours as it lies there.
        load: whose example is asked.

    Raises:
        BenchmarkError: one does not start, or its answer is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        servers: list[RunningServer] = []
        try:
            for package in packages:
                servers.append(start(service, package, Path(folder)))
            for server in servers:
                _wait_ready(server)
                _check_answer(server, load)
            yield servers
        finally:
            stop(servers)


@contextlib.contextmanager
def alone(service: str, *, under_uvicorn: bool = False) -> Iterator[RunningServer]:
    """Run a service that is written for mosec_asgi alone, for the time of a block from when it is ready.

    Args:
        service: the file under `services/`.
        under_uvicorn: start it as `uvicorn <service>:server`.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        server = start(service, "mosec_asgi", Path(folder), under_uvicorn=under_uvicorn)
        try:
            _wait_ready(server)
            yield server
        finally:
            stop([server])


def start(service: str, package: Package | Checkout, folder: Path, *, under_uvicorn: bool = False) -> RunningServer:
    """Start a service; `folder` is for its sockets and its log."""
    checkout = package if isinstance(package, Checkout) else None
    package = "mosec_asgi" if isinstance(package, Checkout) else package
    # Their environment is ours without the settings that somebody may have there: both run with their defaults, and
    # what is installed for development is compiled once, as what pip has installed is.
    ours = {name for name in os.environ if name.startswith("MOSEC_")} | {"PYTHONDONTWRITEBYTECODE", "BENCH_CHECKOUT"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["BENCH_PACKAGE"] = "mosec" if package == "mosec" else "mosec_asgi"
    if checkout is not None:
        # Before all that is installed. The service makes sure of it: see services/package.py.
        environment["PYTHONPATH"] = environment["BENCH_CHECKOUT"] = str(checkout.folder)
        environment["BENCH_WITHOUT"] = checkout.without
        environment |= dict(checkout.variables)
    program = SERVICES / f"{_program(service, package)}.py"
    port = _free_port()
    command = [sys.executable, str(program), "--address", "127.0.0.1", "--port", str(port)]
    # For mosec's unix sockets; ours accepts it and needs none.
    command += ["--path", str(folder / "sockets")]
    if under_uvicorn:
        command = [sys.executable, "-m", "uvicorn", f"{program.stem}:server", "--app-dir", str(SERVICES)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    log = folder / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return RunningServer(package, package if checkout is None else checkout.name, process, port, log)


def _program(service: str, package: Package) -> str:
    if package in ("bare", "static"):
        return package
    if package == "uvicorn":
        return "bare_uvicorn"
    return f"litserve_{service}" if package == "litserve" else service


def _free_port() -> int:
    """Return a port that nobody listens on, outside the range from which clients' own ports are drawn."""
    while True:
        port = random.randrange(10_000, 12_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _wait_ready(server: RunningServer) -> None:
    path = READY.get(server.package, "/")
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise server.failure(f"ended with {server.process.returncode} at its start")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.ask("GET", path)[0] == 200:
                return
        time.sleep(POLL)
    raise server.failure(f"GET {path} is not answered 200 after {SECONDS_TO_START:.0f} s")


def _check_answer(server: RunningServer, load: Load) -> None:
    # Also makes sure of mosec's workers: its GET / is answered by the HTTP side alone, a POST by a worker.
    status, body = server.ask("POST", ROUTE, load.example)
    if status != 200 or not load.is_right(body):
        raise server.failure(f"POST {ROUTE} with {load.example} is answered {status} {body!r}")


def stop(servers: Sequence[RunningServer]) -> None:
    """Ask servers to stop, and kill what is left of them."""
    for server in servers:
        server.process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
