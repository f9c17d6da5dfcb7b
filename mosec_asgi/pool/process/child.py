"""Inside the worker process: load the worker, warm it up, run what comes, end with the server.

The process runs one thread. The end of its pipe asks it to stop, whether the server closed it or died, so no worker
outlives its server. The interrupt and terminate signals are ignored: ctrl-c reaches the whole process group, and it is
the server that decides when its workers stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback

from mosec_asgi import log
from mosec_asgi.inside.codec import examples
from mosec_asgi.inside.counting import hung_up, remove_if_orphaned
from mosec_asgi.inside.loading import load, runner_for, speaker_for, warm_up
from mosec_asgi.inside.port import Port
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import KernelTimer
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import Share
from mosec_asgi.worker import Worker

# Seconds that a worker has to end, once it has nothing more to do. Its server, where it lives, waits less.
END_SECONDS = 10.0
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    # One that nobody else uses.
    _SERVER_DIED = signal.SIGRTMAX - 1

logger = log.internal_logger(__name__)


class _ServerDied(SystemExit):
    """Raised wherever the worker is. No `Exception`: it passes through a `forward` that catches those."""


def main(
    spec: WorkerSpec,
    sock: socket.socket,
    progress: ProgressPage,
    share: Share | None = None,
    *,
    preloaded: Worker | None = None,
) -> None:
    """Run a worker until its pipe ends. The target of the worker process.

    A worker that cannot start sends its traceback through the pipe and exits with status 1.

    Args:
        spec: what to run.
        sock: its pipe.
        progress: where it notes how far it has come.
        share: what it shares with the server for large payloads.
        preloaded: the worker, where this process was forked from one that had loaded it.
    """
    told = False
    try:
        _main(spec, sock, progress, share, preloaded)
    except _ServerDied:
        told = True
        raise
    finally:
        # A forked worker is not the server's child and cannot tell; its template can.
        if preloaded is None:
            remove_if_orphaned(spec.metrics_directory, sock, told=told)


def _main(
    spec: WorkerSpec, sock: socket.socket, progress: ProgressPage, share: Share | None, preloaded: Worker | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_the_server(None if preloaded is None else sock)
    log.configure(spec.log_level, text=spec.log_text)
    log.speak_as(lambda: {"stage": spec.stage, "worker": spec.worker_id})
    port = Port(sock, progress)
    kernel = _kernel_timer()
    try:
        port.memory = None if share is None else Mapped(share)
        worker = load(spec) if preloaded is None else _awake(preloaded, spec)
        rehearsals = examples(worker)
        runner = runner_for(worker, spec, port, kernel)
        log.speak_as(speaker_for(runner, spec))
    except Exception:
        port.failed(traceback.format_exc())
        sys.exit(1)
    try:
        warm_up(runner, rehearsals, spec)
        port.ready()
        runner.serve()
    finally:
        if sys.platform == "linux":
            # The end of the pipe was read first; the signal must not interrupt what is under way already.
            signal.signal(_SERVER_DIED, signal.SIG_IGN)
        if kernel is not None:
            # Whatever `Worker.close`, or a thread that goes on, does: with the server dead, nobody else ends it.
            kernel.set(END_SECONDS)
        runner.close()


def _awake(worker: Worker, spec: WorkerSpec) -> Worker:
    """Make a worker that was loaded in another process one of its own."""
    worker._worker_id = spec.worker_id
    # Python's `random` has done so by itself.
    for library in ("numpy.random", "torch"):
        if library in sys.modules:
            sys.modules[library].seed()
    worker.after_fork()
    return worker


def _kernel_timer() -> KernelTimer | None:
    try:
        return KernelTimer()
    except OSError as error:
        logger.debug("no timer of the kernel: %s", error)
        return None


def end_with_the_server(pipe: socket.socket | None = None) -> None:
    """Have the kernel send a signal when the server dies, which ends this process in good order (Linux).

    The end of the pipe says so too, but a worker that is loading, or at work, does not read it for a long time.

    Args:
        pipe: of a worker that was forked from a template, whose death the kernel tells as well. Where the other end is
            still there, the server lives, and the worker goes on.
    """

    def server_died(*_: object) -> None:
        if pipe is not None and not hung_up(pipe):
            _watch_the_server(pipe)
        else:
            raise _ServerDied(1)

    if sys.platform == "linux":
        signal.signal(_SERVER_DIED, server_died)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SERVER_DIED, 0, 0, 0)
        server = multiprocessing.parent_process()
        if server is not None and server.pid != os.getppid():
            # It has died before it could be asked for.
            sys.exit(1)


def _watch_the_server(pipe: socket.socket) -> None:
    """Do what the kernel does for a child of the server: send this process the signal once the other end is gone.

    In a thread, which asks for nothing but that end. Only for a worker that has lost its template.
    """

    def watch() -> None:
        # A pipe that is closed here belongs to a worker that is ending.
        with contextlib.suppress(ValueError):
            hung_up(pipe, None)
        os.kill(os.getpid(), _SERVER_DIED)

    threading.Thread(target=watch, name="mosec_asgi server watch", daemon=True).start()
