"""Inside the template of a preloaded stage: load the worker once, then fork a process for each request.

The template runs no forward, no thread and no event loop. It reads requests from one socket. Each holds a worker's
arguments and a pipe on which the template reports the process's number at its start and its exit status at its end. The
template exits when the socket ends or the server dies. The kernel then signals its workers, as it does when a server
dies; they check whether the server has died, and if not, serve on.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from mosec_asgi import log
from mosec_asgi.inside.counting import remove_if_orphaned
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.loading import load
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.pool.process import child, group
from mosec_asgi.pool.process.port import SocketPort
from mosec_asgi.worker import Worker

# A process's number, then its exit status as `multiprocessing` counts it: negative for a signal.
NUMBER = struct.Struct("=q")
# In place of an exit status that is not known.
UNKNOWN = 1 << 32
REQUEST_SIZE = 1 << 16
# The most descriptors with one request: the pipe for the reports, and those in its arguments.
MOST_DESCRIPTORS = 32

logger = log.internal_logger(__name__)


class PassedDescriptor:
    """A descriptor in a worker's arguments, pickled as its place among the descriptors that come with the request."""

    # The descriptors of the request that is being unpickled.
    received: list[int] = []

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        """Return the descriptor's number on this side."""
        return self.received[self._place]


class Request:
    """A request for one worker.

    Attributes:
        fate: the pipe on which its number and its exit status are reported.
    """

    def __init__(self, data: bytes, descriptors: list[int]) -> None:
        self.fate, *self._passed = descriptors
        self._data = data

    def arguments(self) -> tuple[Any, ...]:
        """Return the worker's arguments; the caller then owns the descriptors in them."""
        PassedDescriptor.received, self._passed = self._passed, []
        arguments: tuple[Any, ...] = reduction.ForkingPickler.loads(self._data)
        return arguments

    def let_go(self) -> None:
        """Close all descriptors but the pipe: the worker has them, or nobody has taken them."""
        for descriptor in self._passed:
            os.close(descriptor)
        self._passed = []

    def close(self) -> None:
        """Close all."""
        self.let_go()
        os.close(self.fate)

    def tell(self, number: int) -> None:
        """Report the worker's number, or its exit status."""
        # The server may have closed the pipe.
        with contextlib.suppress(BrokenPipeError):
            os.write(self.fate, NUMBER.pack(number))

    def fail(self, text: str) -> None:
        """Report why the worker could not start, as the worker itself would."""
        _, sock, page, *_ = self.arguments()
        SocketPort(sock, page).failed(text)
        self.tell(os.getpid())
        self.tell(1)
        sock.close()
        page.close()
        self.close()


def main(spec: WorkerSpec, sock: socket.socket) -> NoReturn:
    """Load the worker and fork processes from it until the socket ends. The target of the template process."""
    status = 1
    try:
        status = _main(spec, sock)
        remove_if_orphaned(spec.metrics_directory, sock, told=False)
    except Ending:
        # The server has died. The kernel signals that once, maybe after the socket has ended.
        remove_if_orphaned(spec.metrics_directory, sock, told=True)
    except Exception:
        logger.exception("the template of stage %s has failed", spec.stage)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        group.end_members_of_dead_server()
        # Without waiting for its workers, as `multiprocessing` would: they hear of its end.
        os._exit(status)


def _main(spec: WorkerSpec, sock: socket.socket) -> int:
    group.begin_worker()
    group.free_children()
    child.end_with_the_server()
    child.name_process(spec.stage, "template")
    log.configure(spec.log_level, text=spec.log_text)
    log.speak_as(lambda: {"stage": spec.stage})
    worker = _load(spec, sock)
    if worker is None:
        return 1
    _Template(worker, sock).serve()
    return 0


def _load(spec: WorkerSpec, sock: socket.socket) -> Worker | None:
    """Make the worker; if that fails, report it for each request, and return None."""
    try:
        worker = load(spec)
    except Ending:
        raise
    except BaseException:
        text = traceback.format_exc()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while (request := _receive(sock)) is not None:
                request.fail(text)
        return None
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        logger.warning(
            "%s has started threads in its __init__ (%s), which forked workers do not have; start them in after_fork",
            spec.worker.__name__,
            ", ".join(others),
            extra={"stage": spec.stage},
        )
    # A garbage collection would write to every object that the workers share with the template, and so copy its page.
    gc.collect()
    gc.freeze()
    return worker


def _receive(sock: socket.socket) -> Request | None:
    """Return the next request; None where the server has closed the socket."""
    data, descriptors, _, _ = socket.recv_fds(sock, REQUEST_SIZE, MOST_DESCRIPTORS)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return Request(data, list(descriptors)) if data else None


class _Template:
    """The loaded worker, and the processes that have been forked from it."""

    def __init__(self, worker: Worker, sock: socket.socket) -> None:
        self._worker = worker
        self._sock = sock
        self._selector = selectors.PollSelector()
        # By the pidfd.
        self._forked: dict[int, tuple[BaseProcess, Request]] = {}
        # User code may ignore this signal or reap all children, and the exit statuses would be lost here. The workers
        # get the old handler back.
        self._on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def serve(self) -> None:
        """Fork a worker for each request, and reap the workers, until the server closes the socket."""
        self._selector.register(self._sock, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._forked:
                    self._reap(key.fd)
                elif (request := _receive(self._sock)) is not None:
                    self._fork(request)
                else:
                    return

    def _fork(self, request: Request) -> None:
        process = multiprocessing.get_context("fork").Process(target=self._run, args=(request,), daemon=False)
        try:
            with group.forking_a_worker():
                process.start()
        except OSError as error:
            request.fail(f"the worker could not be forked from its template: {error}")
            return
        pid = process.pid
        assert pid is not None
        # The worker cannot have been reaped, so the number is still its own.
        watched = os.pidfd_open(pid)
        request.tell(pid)
        request.let_go()
        self._forked[watched] = (process, request)
        self._selector.register(watched, selectors.EVENT_READ)

    def _reap(self, watched: int) -> None:
        process, request = self._forked.pop(watched)
        self._selector.unregister(watched)
        os.close(watched)
        process.join()
        if process.pid is not None:
            group.end_group(process.pid)
        request.tell(UNKNOWN if process.exitcode is None else process.exitcode)
        request.close()
        if process.exitcode is not None:
            # If a thread of the user has reaped it, `multiprocessing` believes that it still runs, and refuses.
            process.close()

    def _run(self, request: Request) -> None:
        """Run a worker, in the forked process."""
        if self._on_child is not None:
            signal.signal(signal.SIGCHLD, self._on_child)
        # Only the template needs these; above all the other workers' pipes, which must end with the template.
        self._sock.close()
        for watched, (_, sibling) in self._forked.items():
            os.close(watched)
            os.close(sibling.fate)
        os.close(request.fate)
        child.main(*request.arguments(), preloaded=self._worker)
