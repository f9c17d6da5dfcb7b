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
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.errors import MosecTimeoutError
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import Share
from mosec_asgi.pool.codec import as_input, examples
from mosec_asgi.pool.counting import remove_if_orphaned
from mosec_asgi.pool.executor import Executor
from mosec_asgi.pool.port import Port
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.pool.timer import KernelTimer
from mosec_asgi.streaming import ContinuousWorker, is_async, streams
from mosec_asgi.worker import Worker, introduce

# Seconds that a worker has to end, once it has nothing more to do. Its server, where it lives, waits less.
END_SECONDS = 10.0
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
# Bytes of a process's name.
_MOST_NAME = 15
if sys.platform == "linux":
    # One that nobody else uses.
    _SERVER_DIED = signal.SIGRTMAX - 1

logger = log.internal_logger(__name__)


class _ServerDied(SystemExit):
    """Raised wherever the worker is. No `Exception`: it passes through a `forward` that catches those."""


class Runner(Protocol):
    """Runs the tasks of one worker, in the way that its class asks for."""

    def request_ids(self) -> Sequence[str]:
        """Return the ids of the requests on whose behalf the code that asks is running, for the logs."""

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example, and let go of what comes of it; raises what it raises."""

    def serve(self) -> None:
        """Run what comes until the port ends."""

    def close(self) -> None:
        """Release what the worker took."""


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
    end_with_the_server()
    name_process(spec.stage, spec.worker_id)
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


def runner_for(worker: Worker, spec: WorkerSpec, port: Port, kernel: KernelTimer | None = None) -> Runner:
    """Return what runs a worker of this class."""
    if isinstance(worker, ContinuousWorker):
        from mosec_asgi.pool.continuous import ContinuousRunner

        return ContinuousRunner(worker, spec, port, kernel)
    if is_async(type(worker)):
        # Only here: it loads asyncio, which other workers do not need.
        from mosec_asgi.pool.concurrent import ConcurrentRunner

        return ConcurrentRunner(worker, spec, port, kernel)
    # One before the last stage returns its results, as in mosec.
    if streams(type(worker)) and not spec.next_stages:
        from mosec_asgi.pool.stream_executor import StreamExecutor

        return StreamExecutor(worker, spec, port, kernel)
    return Executor(worker, spec, port, kernel)


def speaker_for(runner: Runner, spec: WorkerSpec) -> log.Speaker:
    """Return who speaks in the log lines of a worker."""

    def speaker() -> dict[str, object]:
        return {"stage": spec.stage, "worker": spec.worker_id, "request_id": " ".join(runner.request_ids())}

    return speaker


def load(spec: WorkerSpec) -> Worker:
    """Make the worker, with its number, stage and batch size known before its `__init__` runs."""
    worker = spec.worker.__new__(spec.worker, *spec.args, **spec.kwargs)
    introduce(worker, spec.worker_id, spec.stage, spec.max_batch_size, made=False)
    worker._strict_json = spec.strict_json
    worker.__init__(*spec.args, **spec.kwargs)  # type: ignore[misc]  # __new__ and __init__ apart: it knows its numbers
    introduce(worker, spec.worker_id, spec.stage, spec.max_batch_size, made=True)
    return worker


def _awake(worker: Worker, spec: WorkerSpec) -> Worker:
    """Make a worker that was loaded in another process one of its own."""
    introduce(worker, spec.worker_id, spec.stage, spec.max_batch_size, made=True)
    # Python's `random` has done so by itself.
    for library in ("numpy.random", "torch"):
        if library in sys.modules:
            sys.modules[library].seed()
    worker.after_fork()
    return worker


def warm_up(runner: Runner, examples: Sequence[Any], spec: WorkerSpec) -> None:
    """Run the worker's examples; a failure is logged and the worker serves all the same, as in mosec."""
    batches = spec.max_batch_size > 1 and not issubclass(spec.worker, ContinuousWorker)
    try:
        for place, example in enumerate(examples, 1):
            runner.rehearse(as_input(example, batched=batches))
            logger.debug("warmed up with example %d of %d", place, len(examples))
    except (Exception, MosecTimeoutError):
        logger.exception(
            "warm-up failed: `example` and `multi_examples` must be what `forward` takes%s",
            ", a list of items" if batches else "",
            extra={"stage": spec.stage, "worker": spec.worker_id},
        )


def name_process(stage: str, worker_id: int) -> None:
    """Have `ps` and `top` show the stage and the number of a worker, like `Inference_2:1` (Linux)."""
    # The kernel cuts a name after 15 bytes: the class is shortened, rather than what tells two workers apart.
    kind, _, place = stage.rpartition("_")
    end = f"_{place}:{worker_id}"
    name = kind.encode()[: max(0, _MOST_NAME - len(end))].decode(errors="ignore") + end
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as file:
        file.write(name)


def _kernel_timer() -> KernelTimer | None:
    try:
        return KernelTimer()
    except OSError as error:
        logger.debug("no timer of the kernel: %s", error)
        return None


def end_with_the_server() -> None:
    """Have the kernel send a signal when the server dies, which ends this process in good order (Linux).

    The end of the pipe says so too, but a worker that is loading, or at work, does not read it for a long time.
    """
    if sys.platform == "linux":
        signal.signal(_SERVER_DIED, _server_died)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SERVER_DIED, 0, 0, 0)
        server = multiprocessing.parent_process()
        if server is not None and server.pid != os.getppid():
            # It has died before it could be asked for.
            sys.exit(1)


def _server_died(*_: object) -> None:
    raise _ServerDied(1)
