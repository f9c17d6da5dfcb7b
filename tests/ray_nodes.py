"""Two nodes of Ray on this machine, for tests: a program of its own, so that Ray is not part of the tests' process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO

from harness import processes

CPUS = 2
# The least that Ray takes.
STORE_BYTES = 80 * 1024 * 1024


class RayNodes:
    """A cluster of two nodes, or more: `with RayNodes() as nodes: ...`.

    Attributes:
        address: of its head.
    """

    def __init__(self, store_bytes: int = STORE_BYTES) -> None:
        self.address = ""
        self._store = store_bytes
        self._program: subprocess.Popen[str]
        self._folder: tempfile.TemporaryDirectory[str]

    def __enter__(self) -> RayNodes:
        # Sockets lie below it, and their paths must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._program = subprocess.Popen(
            [sys.executable, __file__, str(self._store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "RAY_TMPDIR": self._folder.name, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        self.address = self._answer()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        self._program.wait()
        assert self._program.stdout is not None
        self._program.stdout.close()
        self._folder.cleanup()

    def add(self, resource: str = "") -> str:
        """Add a node, which has 100 of a resource; return its id."""
        return self._ask(f"add {resource}")

    def remove(self, node: str) -> None:
        """Kill a node, as if its machine were gone."""
        self._ask(f"remove {node}")

    @property
    def second(self) -> str:
        """The id of the node beside the head."""
        return self._ask("second")

    @property
    def _in(self) -> IO[str]:
        assert self._program.stdin is not None
        return self._program.stdin

    def _ask(self, command: str) -> str:
        print(command, file=self._in, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            if line.startswith("answer:"):
                return line.removeprefix("answer:").strip()
        raise AssertionError("the program with Ray's nodes has ended")


def _commands() -> Iterator[list[str]]:
    for line in sys.stdin:
        yield line.split()


def main() -> None:
    """Start two nodes, and do what is asked at standard input."""
    from ray.cluster_utils import Cluster

    store = int(sys.argv[1])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": CPUS,
            "object_store_memory": store,
            "include_dashboard": False,
            # A node that is gone is noticed sooner than by default.
            "_system_config": {
                "health_check_initial_delay_ms": 1000,
                "health_check_period_ms": 500,
                "health_check_timeout_ms": 3000,
                "health_check_failure_threshold": 2,
            },
        },
    )
    nodes = {}

    def add(resources: dict[str, float]) -> str:
        node = cluster.add_node(num_cpus=CPUS, object_store_memory=store, resources=resources)
        nodes[node.node_id] = node
        return str(node.node_id)

    second = add({"second": 100})
    print("answer:", cluster.address, flush=True)
    try:
        for words in _commands():
            answer = ""
            if words[0] == "add":
                answer = add({words[1]: 100} if len(words) > 1 else {})
            elif words[0] == "remove":
                node = nodes.pop(words[1])
                # With its workers, which would live on for a while without it.
                raylet = node.all_processes["raylet"][0].process.pid
                for pid in [raylet, *(pid for pid, parent, _, _ in processes() if parent == raylet)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                cluster.remove_node(node, allow_graceful=False)
            elif words[0] == "second":
                answer = second
            print("answer:", answer, flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
