"""Inside the worker process: load the worker, warm it up, run what comes, end with the server.

The process runs one thread. The end of its pipe asks it to stop, whether the server closed it or died, so no worker
outlives its server. The interrupt and terminate signals are ignored: the server decides when its workers
stop. Processes that the worker starts handle these signals as usual, and end with the worker (`group`).
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
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.loading import load, runner_for, speaker_for, warm_up
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import KernelTimer, kernel_timer
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import Share
from mosec_asgi.pool.process import group
from mosec_asgi.pool.process.port import SocketPort
from mosec_asgi.worker import Worker, set_identity

# Seconds that a worker has to end, once it has nothing more to do. Its server, where it lives, waits less.
END_SECONDS = 10.0
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
# Bytes of a process's name.
_MOST_NAME = 15
if sys.platform == "linux":
    # A signal that nothing else uses.
    _SERVER_DIED = signal.SIGRTMAX - 1

logger = log.internal_logger(__name__)


class ServerDied(Ending, SystemExit):
    """Raised wherever the worker is; the process exits without a traceback."""


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
    except ServerDied:
        told = True
        raise
    finally:
        # A forked worker is a child of its template, so only the template can see that the server has died.
        if preloaded is None:
            remove_if_orphaned(spec.metrics_directory, sock, told=told)


def _main(
    spec: WorkerSpec, sock: socket.socket, progress: ProgressPage, share: Share | None, preloaded: Worker | None
) -> None:
    group.begin_worker()
    # Two timers: the one that bounds `forward` is set and cleared often and must not disarm the other.
    kernel, end = kernel_timer(), kernel_timer()
    end_with_the_server(end, None if preloaded is None else sock)
    name_process(spec.stage, spec.worker_id)
    log.configure(spec.log_level, text=spec.log_text)
    log.speak_as(lambda: {"stage": spec.stage, "worker": spec.worker_id})
    port = SocketPort(sock, progress)
    _keep_from_children(port, progress, share)
    try:
        port.memory = None if share is None else Mapped(share)
        worker = load(spec) if preloaded is None else _awake(preloaded, spec)
        rehearsals = examples(worker)
        runner = runner_for(worker, spec, port, kernel)
        log.speak_as(speaker_for(runner, spec))
    except Ending:
        raise
    except BaseException:
        port.failed(traceback.format_exc())
        sys.exit(1)
    try:
        warm_up(runner, rehearsals, spec)
        port.ready()
        runner.serve()
    finally:
        # If the server is dead, nobody else ends a `Worker.close` or a thread that hangs. This comes first, because the
        # signal of the server's death may raise here as well.
        if end is not None:
            end.set(END_SECONDS)
        if sys.platform == "linux":
            # The end of the pipe was noticed first; the signal must not interrupt the cleaning up.
            signal.signal(_SERVER_DIED, _nothing)
        if kernel is not None:
            kernel.set(0.0)
        group.end_members_in(END_SECONDS * 0.9)
        runner.close()


def _keep_from_children(port: SocketPort, progress: ProgressPage, share: Share | None) -> None:
    """Keep programs that the worker starts, and processes that it forks, from inheriting its pipe and memory."""
    progress.forget()
    os.set_inheritable(port.fileno(), False)
    if share is not None:
        os.set_inheritable(share.descriptor, False)
    # In a forked process the objects still own these numbers, so another, harmless file takes the numbers.
    descriptors = [port.fileno()] if share is None else [port.fileno(), share.descriptor]

    def let_go() -> None:
        port.disown()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    group.free_children(let_go)
    group.end_members_at_exit()


def _awake(worker: Worker, spec: WorkerSpec) -> Worker:
    """Prepare a preloaded worker for its life in this process."""
    set_identity(worker, spec.worker_id, spec.stage, spec.max_batch_size, made=True)
    # Python's own `random` is seeded anew at each fork.
    for library in ("numpy.random", "torch"):
        if library in sys.modules:
            sys.modules[library].seed()
    worker.after_fork()
    return worker


def name_process(stage: str, worker: int | str) -> None:
    """Have `ps` and `top` show the stage and the number of a worker, like `Inference_2:1` (Linux)."""
    # The kernel cuts a name after 15 bytes: the class is shortened, rather than what tells two workers apart.
    kind, _, place = stage.rpartition("_")
    end = f"_{place}:{worker}"
    name = kind.encode()[: max(0, _MOST_NAME - len(end))].decode(errors="ignore") + end
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as file:
        file.write(name)


def end_with_the_server(end: KernelTimer | None = None, pipe: socket.socket | None = None) -> None:
    """Have the kernel send a signal when the server dies, which ends this process in good order (Linux).

    The end of the pipe says the same, but a worker that loads or works may not read it for a long time.

    Args:
        end: a timer that is set then, so that the process ends even where the signal's exception is lost or delayed: it
            may be raised in a `finally`, or in code that goes on all the same.
        pipe: of a worker that was forked from a template, since the kernel signals the template's death as well. If
            the other end is still there, the server lives, and the worker goes on.
    """

    def server_died(*_: object) -> None:
        if pipe is not None and not hung_up(pipe):
            _watch_the_server(pipe)
            return
        if end is not None:
            end.set(END_SECONDS)
        raise ServerDied(1)

    if sys.platform == "linux":
        signal.signal(_SERVER_DIED, server_died)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SERVER_DIED, 0, 0, 0)
        server = multiprocessing.parent_process()
        if server is not None and server.pid != os.getppid():
            # The server has died before the signal was requested.
            sys.exit(1)


def _nothing(*_: object) -> None:
    """Do nothing about a signal."""


def _watch_the_server(pipe: socket.socket) -> None:
    """Send this process the signal once the server is gone, as the kernel does for a child of the server.

    Runs in a thread that waits for the end of the pipe. Only for a worker that has lost its template.
    """

    def watch() -> None:
        # If this process has closed the pipe itself, the worker is ending.
        with contextlib.suppress(ValueError):
            hung_up(pipe, None)
        os.kill(os.getpid(), _SERVER_DIED)

    threading.Thread(target=watch, name="mosec_asgi server watch", daemon=True).start()
