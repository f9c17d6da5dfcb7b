"""The fork server: the process from which web processes are forked. It does nothing else, so a fork is always safe.

It is itself forked before the program has an event loop, threads or workers. What the program has imported by then is
shared by its web processes. The program and the fork server send each other messages over a pair of sockets:

    to the fork server
    FORK index              fork a web process, which gets the connection to the engine that comes with this message
    SIGNAL pid number       send a web process a signal, if it still runs
    STOP_LISTENING          close the listening sockets, whose queues end once the web processes have closed theirs

    from the fork server
    STARTED index pid       a web process runs
    ENDED index status      a web process has ended, or could not be forked

When the program ends, for whatever reason, its web processes end, and then the fork server.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.host.listening import Listener

FORK, SIGNAL, STOP_LISTENING, STARTED, ENDED = 1, 2, 3, 4, 5
MESSAGE = struct.Struct("<Bii")
# Seconds that web processes have for their end when the program is gone.
LAST_SECONDS = 5.0
_POLL_SECONDS = 0.05
# In the place of the exit code of one that could not be forked.
_NOT_FORKED = 0

logger = log.internal_logger(__name__)


def start(
    listeners: Sequence[Listener], serve: Callable[[int, socket.socket, Listener], int]
) -> tuple[int, socket.socket]:
    """Fork the process.

    Args:
        listeners: for each web process, where it listens.
        serve: what a web process does, given its index, its connection to the engine, and where it listens; returns its
            exit code.

    Returns:
        its number, and the program's end of the pair.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    # What is there stays: the collector would write to its pages, which would then be copied for each process.
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid:
        theirs.close()
        ours.setblocking(False)
        return pid, ours
    code = 1
    try:
        ours.close()
        code = _ForkServer(theirs, listeners, serve).run()
    except BaseException:
        logger.exception("the process that starts web processes has failed")
    finally:
        _exit(code)


def resume(pid: int) -> None:
    """Have that process run, where somebody has stopped it (SIGSTOP): only it can end web processes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


class _ForkServer:
    """Runs in that process."""

    def __init__(
        self,
        control: socket.socket,
        listeners: Sequence[Listener],
        serve: Callable[[int, socket.socket, Listener], int],
    ) -> None:
        self._control = control
        self._listeners = listeners
        self._serve = serve
        # Their indices by their numbers.
        self._running: dict[int, int] = {}
        self._woken, self._wake = os.pipe()

    def run(self) -> int:
        # A terminal's ctrl-c reaches the program alone, which leads this one.
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._hear():
                return self._end()

    def _hear(self) -> bool:
        """Do what the program says; False where it has ended."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE.size, 1)
        except OSError:
            return False
        if len(message) != MESSAGE.size:
            return False
        kind, first, second = MESSAGE.unpack(message)
        if kind == FORK:
            if descriptors:
                self._fork(first, socket.socket(fileno=descriptors[0]))
            else:
                self._not_forked(first, "there is no descriptor left for its connection")
        elif kind == SIGNAL and first in self._running:
            os.kill(first, second)
        elif kind == STOP_LISTENING:
            for listener in self._listeners:
                listener.sock.close()
        return True

    def _fork(self, index: int, connection: socket.socket) -> None:
        # A signal that comes before the process has its own handlers must not be lost, as it is led to its end by one.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            connection.close()
            self._not_forked(index, error.strerror or str(error))
            return
        if not pid:
            self._be_web_process(index, connection)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        connection.close()
        self._running[pid] = index
        self._tell(STARTED, index, pid)

    def _not_forked(self, index: int, why: str) -> None:
        # It is tried again, as with one that ended at once: processes or memory may be short for a moment only.
        logger.error("no web process can be forked: %s", why)
        self._tell(ENDED, index, _NOT_FORKED)

    def _be_web_process(self, index: int, connection: socket.socket) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            self._control.close()
            os.close(self._woken)
            os.close(self._wake)
            mine = self._listeners[index]
            for listener in self._listeners:
                if listener.sock is not mine.sock:
                    listener.sock.close()
            code = self._serve(index, connection, mine)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except StartupError as error:
            logger.error("a web process could not be started: %s", error)
        except BaseException:
            logger.exception("a web process has failed")
        finally:
            _exit(code)

    def _reap(self) -> None:
        for pid in list(self._running):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                self._tell(ENDED, self._running.pop(pid), os.waitstatus_to_exitcode(status))

    def _tell(self, kind: int, first: int, second: int) -> None:
        with contextlib.suppress(OSError):
            self._control.send(MESSAGE.pack(kind, first, second))

    def _end(self) -> int:
        """Wait for the end of the web processes, which have lost the engine as well; kill what is left."""
        end = time.monotonic() + LAST_SECONDS
        while self._running and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            self._reap()
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return 0


def _exit(code: int) -> NoReturn:
    """End this process without what the program does at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
