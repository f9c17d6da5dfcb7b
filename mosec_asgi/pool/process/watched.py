"""The process of a worker: its exit is noticed through the event loop, and it is always reaped."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing.connection
import multiprocessing.util
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from mosec_asgi import log
from mosec_asgi.pool.process.group import end_group
from mosec_asgi.pool.process.preload import ForkedProcess

logger = log.internal_logger(__name__)


class WatchedProcess:
    """A process that has been started."""

    def __init__(self, process: BaseProcess | ForkedProcess) -> None:
        """Take over a process; `watch` begins to wait for its exit."""
        self._process = process
        # Kept, because the process's own object may be closed when the number is needed.
        self._pid = process.pid
        self._code: int | None = None
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_exit: Callable[[], None] = _nothing
        self._watched = _exit_descriptor(process)
        _running.add(self)
        _reap_at_exit(os.getpid())

    def watch(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]) -> None:
        """Have `on_exit` called once, on the loop, when the process has ended."""
        self._loop = loop
        self._on_exit = on_exit
        loop.add_reader(self._watched, self._exited)

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid if isinstance(self._process, ForkedProcess) else self._pid

    def kill(self) -> None:
        """Kill the process. Idempotent; its exit is noticed as any other."""
        if self in _running:
            self._process.kill()

    def describe_exit(self) -> str:
        """Say how the process ended."""
        code = self._process.exitcode if self in _running else self._code
        if code is None:
            return "has ended, nobody knows how" if self._ended else "is still running"
        return f"was killed by signal {_signal(-code)}" if code < 0 else f"exited with status {code}"

    def reap(self, timeout: float) -> None:
        """Wait for the process to end, without a loop; kill it after `timeout` seconds."""
        if self in _running and isinstance(self._process, BaseProcess):
            # Not by `join`: it waits for the sentinel; see `_exit_descriptor`.
            multiprocessing.connection.wait([self._watched], timeout)
        else:
            self._process.join(timeout)
        if not self._has_ended():
            self._process.kill()
            self._process.join()
        self._end_group()
        self._forget()

    def _end_group(self) -> None:
        """Kill the processes that it has left behind, unless it was never forked from its template."""
        if isinstance(self._process, ForkedProcess):
            # Its template, which has reaped it, does that.
            return
        if self._pid is not None:
            end_group(self._pid)

    def _has_ended(self) -> bool:
        if isinstance(self._process, ForkedProcess):
            return self._process.ended
        return self._process.exitcode is not None

    def _exited(self) -> None:
        self._process.join(0)
        # A readable pidfd is proof of the end. The exit status may still be missing, if other code has reaped the
        # process or SIGCHLD is ignored.
        if self._has_ended() or self._watched != self._process.sentinel:
            self._ended = True
            self._end_group()
            if self._loop is not None:
                self._loop.remove_reader(self._watched)
            self._on_exit()
            self._forget()

    def _forget(self) -> None:
        if self in _running:
            _running.discard(self)
            if self._watched != self._process.sentinel:
                os.close(self._watched)
            self._code = self._process.exitcode
            if self._has_ended():
                # The process object holds descriptors until it is garbage collected, which may be long after.
                self._process.close()
            # The listener refers to this process: neither must wait for the garbage collector.
            self._on_exit = _nothing


def _nothing() -> None:
    """Do nothing: the process has ended."""


def _signal(number: int) -> str:
    """Return the number of a signal, and its name where it has one."""
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        # A signal of one's own choice, above SIGRTMIN.
        return str(number)


def forget_all() -> None:
    """Forget the server's processes, in a process that was forked from the server."""
    _running.clear()


# `_reap_all` must find a process that runs, even if its owner has dropped it.
_running: set[WatchedProcess] = set()


def _reap_all() -> None:
    """End the workers of a server that ends without a shutdown, before `multiprocessing` waits for them for ever."""
    for worker in list(_running):
        worker.kill()
    for worker in list(_running):
        # An event loop in another thread may have heard of its end meanwhile.
        if worker in _running:
            worker.reap(1.0)


@functools.lru_cache(maxsize=1)
def _reap_at_exit(pid: int) -> None:
    """Have `_reap_all` run when process `pid`, this one, exits: once, and before `multiprocessing` joins all children.

    Not by `atexit`, which a process that `multiprocessing` has started does not run, nor at import, since such a
    process forgets what its parent had registered.
    """
    multiprocessing.util.Finalize(None, _reap_all, exitpriority=100)


def _exit_descriptor(process: BaseProcess | ForkedProcess) -> int:
    """Return a descriptor that becomes readable when the process ends.

    `multiprocessing`'s sentinel is a pipe that the worker's own children inherit and may keep open after its death; a
    pidfd (Linux) is not fooled by them.
    """
    if isinstance(process, BaseProcess) and hasattr(os, "pidfd_open") and process.pid is not None:
        try:
            return os.pidfd_open(process.pid)
        except OSError:
            logger.debug("no pidfd for process %s, using its sentinel", process.pid)
    return process.sentinel
