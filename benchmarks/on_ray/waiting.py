"""Processes of Ray that wait for actors: each that is started later takes one, in the place of a new process.

Ray needs nearly half a second of processor time to start one. And each that waits takes 0.7 % of a processor for as
long: Ray looks for signals a hundred times a second. So most of them are stopped until those before them are taken; a
node takes the one first that has waited longest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

import grpc
import processes
from ray._private.node import Node
from ray.core.generated.common_pb2 import Language
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

# So many of each node start at once, and seconds that they may take.
AT_ONCE, START_SECONDS = 2, 60.0
# Seconds for which one is left alone that looks as if it waited: its node may not know of it yet.
SETTLE_SECONDS = 2.0
# For which a node keeps one that nobody takes.
KEPT_SECONDS = 3600
# So many of each node run, and so often one more, should a node take them in another order.
AWAKE, MORE_SECONDS = 5, 1.0


class Waiting:
    """Those of one node."""

    def __init__(self, node: Node) -> None:
        """Begin with none."""
        self._node = node
        self._raylet = node.all_processes["raylet"][0].process.pid
        self._seen: dict[int, float] = {}
        self._stopped: deque[int] = deque()
        self._awake: set[int] = set()
        self._more = 0.0

    def __len__(self) -> int:
        return len(self._seen)

    def request(self, count: int) -> None:
        """Have the node start some more."""
        request = PrestartWorkersRequest(
            language=Language.PYTHON, num_workers=count, keep_alive_duration_secs=KEPT_SECONDS
        )
        with grpc.insecure_channel(f"{self._node.node_ip_address}:{self._node.node_manager_port}") as channel:
            NodeManagerServiceStub(channel).PrestartWorkers(request)

    def look(self) -> None:
        """Note which have begun to wait, and stop those that have for a while."""
        now = time.monotonic()
        for pid, stat in processes.members(self._raylet).items():
            if stat.parent == self._raylet and pid not in self._seen and _waits(pid):
                self._seen[pid] = now
        for pid, since in self._seen.items():
            if now - since > SETTLE_SECONDS and pid not in self._stopped and pid not in self._awake:
                if len(self._awake) < AWAKE:
                    self._awake.add(pid)
                else:
                    _send(pid, signal.SIGSTOP)
                    self._stopped.append(pid)

    def wake(self) -> None:
        """Have others run in the place of those that were taken."""
        now = time.monotonic()
        self._awake = {pid for pid in self._awake if _waits(pid)}
        wanted = AWAKE - len(self._awake)
        if now - self._more > MORE_SECONDS:
            wanted, self._more = max(1, wanted), now
        for _ in range(min(wanted, len(self._stopped))):
            pid = self._stopped.popleft()
            _send(pid, signal.SIGCONT)
            self._awake.add(pid)

    def end(self) -> None:
        """Have all run."""
        while self._stopped:
            _send(self._stopped.popleft(), signal.SIGCONT)


@contextlib.contextmanager
def waiting(nodes: Sequence[Node], count: int) -> Iterator[list[Waiting]]:
    """Have so many processes of each node wait for actors."""
    each = [Waiting(node) for node in nodes]
    try:
        for ready in range(0, count, AT_ONCE):
            for one in each:
                one.request(min(AT_ONCE, count - ready))
            _wait_for(each, min(ready + AT_ONCE, count))
        time.sleep(SETTLE_SECONDS)
        for one in each:
            one.look()
        yield each
    finally:
        for one in each:
            one.end()


def _wait_for(each: Sequence[Waiting], count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while any(len(one) < count for one in each):
        if time.monotonic() > deadline:
            sys.exit(f"Ray has started {[len(one) for one in each]} processes, and {count} were to wait for actors")
        time.sleep(0.1)
        for one in each:
            one.look()


def _waits(pid: int) -> bool:
    try:
        return (processes.PROC / str(pid) / "cmdline").read_bytes().startswith(b"ray::IDLE")
    except OSError:
        return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
