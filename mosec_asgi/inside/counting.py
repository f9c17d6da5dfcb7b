"""The worker's side of custom metrics; see `mosec_asgi.observing.custom`.

A spawned worker only needs the variable in its environment. Nothing here loads prometheus_client.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import sys
import time
from typing import Any

# Attributes of prometheus_client's metrics that are used here and are not public.
_PARTS = ("_is_parent", "_metric_init")
# The most seconds from the first sign of a server's death until it is not the parent any more; in fact it takes far
# less.
DEATH_SECONDS = 0.5


def share_after_fork() -> None:
    """Make a forked worker count in the server's directory, also in metrics that were made before the fork.

    The server has loaded prometheus_client without its multiprocess mode. What the server itself has counted is not
    shown for the worker. Of metrics made before the fork, those of the default registry are found.
    """
    client: Any = sys.modules.get("prometheus_client")
    values: Any = sys.modules.get("prometheus_client.values")
    if client is None or values is None or values.ValueClass is not values.MutexValue:
        return
    values.ValueClass = values.get_value_class()
    if values.ValueClass is values.MutexValue:
        # No directory: the variable is not set.
        return
    # These are not public. Without them, metrics that were made before the fork are not shown for the worker.
    for metric in list(getattr(client.REGISTRY, "_collector_to_names", ())):
        if isinstance(metric, client.metrics.MetricWrapperBase) and all(hasattr(metric, part) for part in _PARTS):
            # A metric with labels holds one metric for each combination of their values.
            for one in metric._metrics.values() if metric._is_parent() else [metric]:
                one._metric_init()


def remove_if_orphaned(directory: str, sock: socket.socket, *, told: bool) -> None:
    """Remove the directory of a server that has died; only its workers are left to do so.

    Args:
        directory: the server's own; empty if it has none.
        sock: the worker's end of the pipe.
        told: the kernel has said that the server has died.
    """
    if directory and (told or hung_up(sock)) and _server_has_died():
        # Imported here: it loads compressors, which no worker needs.
        import shutil

        shutil.rmtree(directory, ignore_errors=True)


def hung_up(sock: socket.socket, wait: int | None = 0) -> bool:
    """Whether the other end is closed, and not only silent.

    Args:
        sock: this end.
        wait: milliseconds to wait for that; None waits for as long as it takes.
    """
    poll = select.poll()
    poll.register(sock, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(wait))


def _server_has_died() -> bool:
    """Whether this process is an orphan.

    A process becomes an orphan a little after the end of the pipe and the kernel's signal, which is sent when the first
    thread of the server ends.
    """
    server = multiprocessing.parent_process()
    until = time.monotonic() + DEATH_SECONDS
    while server is not None and os.getppid() == server.pid and time.monotonic() < until:
        time.sleep(0.005)
    return server is not None and os.getppid() != server.pid
