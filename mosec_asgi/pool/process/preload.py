"""Workers that are forked from a template, a process that has loaded their model once: see `pool.process.template`.

A stage uses a `ForkedProcess` like a process of `multiprocessing`. Before the fork it stands for its template: it has
the template's number, to kill it kills the template, and it ends with the template. So a template that hangs while it
loads is ended by the start timeout of the workers that wait for it. Workers that have been forked outlive their
template, and the start of the next worker starts a new one.

The program that runs the server may ignore SIGCHLD, or reap all its children. So only a pidfd shows the end of a
process, and the exit status, which may be lost, comes from the process that has it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import context, reduction
from multiprocessing.process import BaseProcess
from typing import Any

from mosec_asgi import log
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.pool.process import template
from mosec_asgi.pool.process.edited import SourceFiles
from mosec_asgi.pool.process.group import hold_group, interrupt_held, kill_held

# Seconds to wait for events that normally come at once: a template without workers ends, it reports the status of a
# worker that has ended, or a killed process is gone.
SOON = 1.0

logger = log.internal_logger(__name__)


class Template:
    """The process from which the workers of one stage are forked; it is started with the first of them."""

    def __init__(self, sources: SourceFiles) -> None:
        """Prepare; nothing is started.

        Args:
            sources: detects edits of the files that the process imports.
        """
        self._sources = sources
        self._process: TemplateProcess | None = None
        self._sock: socket.socket | None = None
        self._end: Callable[[], None] = _nothing

    def fork(self, arguments: tuple[Any, ...]) -> ForkedProcess:
        """Ask for a worker.

        Args:
            arguments: of `child.main`, its `WorkerSpec` first.

        Raises:
            OSError: there is no descriptor left, or the template does not read its requests.
        """
        if not hasattr(os, "pidfd_open"):
            raise OSError("preload needs Linux 5.3 or later; leave it out here")
        if self._process is None or self._process.ended:
            self.close()
            self._start(arguments[0])
        assert self._process is not None
        assert self._sock is not None
        # The template has made the worker, so its arguments, which may be large, need not be sent again.
        arguments = (replace(arguments[0], args=(), kwargs={}), *arguments[1:])
        collected = _Descriptors()
        context.set_spawning_popen(collected)  # type: ignore[arg-type]  # it needs no more of one than that
        try:
            data = reduction.ForkingPickler.dumps(arguments)
        finally:
            context.set_spawning_popen(None)
        heard, told = os.pipe()
        try:
            socket.send_fds(self._sock, [data], [told, *collected.descriptors])
        except (BrokenPipeError, ConnectionResetError):
            # The template has just died, and the worker ends with it, because its pipe is closed.
            logger.debug("the template of %s has ended", arguments[0].stage)
        except OSError:
            os.close(heard)
            raise
        finally:
            os.close(told)
        return ForkedProcess(self._process, heard)

    def close(self) -> None:
        """End the process, if there is one. Idempotent."""
        self._end()
        self._end = _nothing
        self._process = self._sock = None

    def _start(self, spec: WorkerSpec) -> None:
        self._sources.warn_of_edits(spec)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        process = multiprocessing.get_context("spawn").Process(
            target=template.main,
            args=(replace(spec, worker_id=0), theirs),
            name=f"mosec_asgi {spec.stage} template",
            daemon=False,
        )
        try:
            with interrupt_held():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._sock = TemplateProcess(process, spec.stage), ours
        # Also without a call of `close`: `multiprocessing` waits for its processes when the program ends.
        self._end = multiprocessing.util.Finalize(self, _end, (self._process, ours), exitpriority=90)
        logger.debug("the template is process %s", process.pid, extra={"stage": spec.stage})


class TemplateProcess:
    """The process of a template that has been started.

    What it has started itself, in the worker's `__init__`, ends with it; where it dies before its workers, which may
    need that, with the last of them.
    """

    def __init__(self, process: BaseProcess, stage: str) -> None:
        """Take over a process of `multiprocessing`, whose parent this process is."""
        assert process.pid is not None
        self.pid = process.pid
        self._process = process
        self._stage = stage
        self._pidfd = -1
        self._missed = False
        # Workers that have been asked for and have not ended.
        self._workers = 0
        # pidfds of what it has left behind.
        self._left: list[int] = []
        self._looked = False
        # The process has been started a moment ago. Where it has ended since, somebody else may have reaped it.
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._pidfd < 0 or _readable(self._pidfd, 0)

    @property
    def exitcode(self) -> int | None:
        """Its exit status, as in `multiprocessing`; None while it runs, and if other code has taken the status."""
        return self._process.exitcode

    def kill(self) -> None:
        """End it. Idempotent."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def join(self, seconds: float) -> None:
        """Wait until it has ended, for at most `timeout` seconds."""
        if self._pidfd >= 0:
            _readable(self._pidfd, seconds)
        if self.ended:
            # Not by its sentinel, because the processes that it has forked keep that open.
            self._process.join(0)
            self._look_for_what_is_left()

    def add_worker(self) -> None:
        """Count a worker that is asked for."""
        self._workers += 1

    def worker_ended(self) -> None:
        """Count one less; after the last of a template that is dead, end what it has left behind."""
        self._workers -= 1
        if not self._workers:
            self._end_what_is_left()

    def _look_for_what_is_left(self) -> None:
        """Find it while the number of the process is not another's, which it may be after somebody else reaped it.

        Where that is so, its workers have told of its end at once; without them it may be long ago.
        """
        if not self._looked and (self.exitcode is not None or self._workers):
            self._looked = True
            self._left = hold_group(self.pid)
            if not self._workers:
                self._end_what_is_left()

    def _end_what_is_left(self) -> None:
        left, self._left = self._left, []
        kill_held(left)

    def miss(self) -> None:
        """Log, once, that it has ended before its workers."""
        if not self._missed:
            self._missed = True
            self.join(SOON)
            logger.warning(
                "process %d, from which the workers are forked, has ended%s; they serve on, and the next worker that "
                "is started loads the model again",
                self.pid,
                "" if self.exitcode is None else f" with exit code {self.exitcode}",
                extra={"stage": self._stage},
            )

    def close(self) -> None:
        """Close its descriptors; it counts as ended from here on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class ForkedProcess:
    """A worker's process, forked by its template. `launcher` uses it like a process of `multiprocessing`.

    Attributes:
        sentinel: becomes readable when there is news of the process.
        ended: whether it has ended, as of the last look.
        exitcode: as in `multiprocessing`; None also where it has ended and its exit status is not known.
    """

    def __init__(self, owner: TemplateProcess, fate: int) -> None:
        self.ended = False
        self.exitcode: int | None = None
        self._template = owner
        # A pipe on which its template reports its number, and later its exit status.
        self._fate = fate
        self._heard = b""
        self._pid: int | None = None
        self._pidfd = -1
        owner.add_worker()
        # Its template is dead, and it lives: nobody tells its exit status any more.
        self._orphaned = False
        # Both descriptors as one.
        self._news = select.epoll()
        self._news.register(fate, select.EPOLLIN)
        self.sentinel = self._news.fileno()

    @property
    def pid(self) -> int | None:
        """Its number; before the fork, that of its template."""
        self.join(0)
        return self._pid or self._template.pid

    def kill(self) -> None:
        """End it; before the fork, its template. Idempotent."""
        self.join(0)
        if not self.ended:
            self._kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for at most `timeout` seconds."""
        while not self.ended and self._news.poll(timeout):
            if self._orphaned:
                self._orphan_ended()
            # If the process has ended, its template reports the status at once.
            elif _readable(self._fate, SOON):
                self._hear(os.read(self._fate, 2 * template.NUMBER.size))
            else:
                # The template hangs; its other workers serve on without it.
                self._template.kill()
                self._orphan_ended()

    def close(self) -> None:
        """Close its descriptors."""
        self._news.close()
        os.close(self._fate)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _hear(self, news: bytes) -> None:
        self._heard += news
        numbers = [number for (number,) in template.NUMBER.iter_unpack(self._heard)]
        if not news:
            self._abandoned()
        elif len(numbers) == 2:
            self._pid, code = numbers
            self._ended(None if code == template.UNKNOWN else code)
        else:
            (self._pid,) = numbers
            # No other process can have the number: the template has not reaped the worker yet.
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(self._pid)
                self._news.register(self._pidfd, select.EPOLLIN)

    def _abandoned(self) -> None:
        """Go on without the template, which has ended; a worker that was not forked yet has ended with it."""
        if self._pidfd >= 0:
            self._orphaned = True
            self._news.unregister(self._fate)
            self._template.miss()
        else:
            self._template.kill()
            self._template.join(SOON)
            self._ended(self._template.exitcode if self._pid is None else None)

    def _orphan_ended(self) -> None:
        code = None
        # It may have become our child, if this process adopts orphans.
        with contextlib.suppress(ChildProcessError):
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if status is not None:
                code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._ended(code)

    def _ended(self, code: int | None) -> None:
        self.ended, self.exitcode = True, code
        self._template.worker_ended()

    def _kill(self) -> None:
        if self._pidfd < 0:
            self._template.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class _Descriptors:
    """Collects the descriptors in a worker's arguments, in place of a spawned process, while they are pickled."""

    DupFd = template.PassedDescriptor

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        """Have a descriptor sent along; return its place."""
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1


def _readable(descriptor: int, seconds: float) -> bool:
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    return bool(readable.poll(seconds * 1000))


def _end(process: TemplateProcess, sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The socket is not closed yet: to the template, its end means the server's death.
        sock.shutdown(socket.SHUT_WR)
    process.join(SOON)
    sock.close()
    if not process.ended:
        process.kill()
        process.join(SOON)
    process.close()


def _nothing() -> None:
    """End nothing: there is no process."""
