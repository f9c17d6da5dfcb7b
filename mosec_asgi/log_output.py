"""Where log lines go: standard error, without waiting for whoever reads it.

A pipe or a socket that nobody reads is full after some hundred lines, and a write to it then waits: in the server for
the event loop, and so for every request. Here such a write is never waited for. What finds no room is kept, up to
`MOST_KEPT`, and a thread, which lives only as long as something is kept, writes it once there is room. What does not
fit there either is dropped and counted, and a line says how many as soon as there is room again.

Standard error itself stays as it is: other processes share it, and would not expect that a write to it is refused. A
pipe is opened once more, by its name in /proc, and a socket is asked for each write. Where neither can be had, and
towards files and terminals, a line is written as by `logging.StreamHandler`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

# Bytes of lines that wait for a reader.
MOST_KEPT = 1 << 20
# Seconds that a program which ends waits for a reader of its last lines.
END_SECONDS = 1.0

# Writes as much of some bytes as there is room for; `BlockingIOError` where there is none.
Write = Callable[[bytes], int]


class PatientHandler(logging.Handler):
    """Writes lines to a pipe or a socket that may be full."""

    def __init__(self, descriptor: int, write: Write) -> None:
        """Begin with nothing kept.

        Args:
            descriptor: turns writable when there is room.
            write: writes to it without waiting.
        """
        super().__init__()
        self._descriptor = descriptor
        self._write = write
        self._kept: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._following = False
        # In a process that is forked from this one, what is kept is this one's to write, and the thread does not run.
        self._owner = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it, or drop it. Its lock is held."""
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
        except Exception:
            self.handleError(record)
            return
        if self._owner != os.getpid():
            self._begin_anew()
        if not self._kept:
            line = self._written(line)
        if line:
            self._keep(line)
            self._ensure_following()

    def flush(self) -> None:
        """Wait for what is kept to be written, for a short time: `logging` asks for it at the program's end."""
        until = time.monotonic() + END_SECONDS
        self.acquire()
        try:
            while self._kept and self._owner == os.getpid() and (left := until - time.monotonic()) > 0:
                self._wait_for_room(left)
                self._catch_up()
        finally:
            self.release()

    def _keep(self, line: bytes) -> None:
        if self._bytes + len(line) > MOST_KEPT or self._dropped:
            self._dropped += 1
        else:
            self._kept.append(line)
            self._bytes += len(line)

    def _written(self, line: bytes) -> bytes:
        """Write a line; return what is left of it. Nobody is left to tell where there is nobody to read it."""
        try:
            return line[self._write(line) :]
        except BlockingIOError:
            return line
        except OSError:
            return b""

    def _ensure_following(self) -> None:
        if not self._following:
            # There may be no thread to have, as at the very end of a program: the next line tries again.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._follow, name="mosec_asgi log", daemon=True).start()
                self._following = True

    def _follow(self) -> None:
        """Write what is kept as there is room for it, until nothing is."""
        done = False
        while not done:
            self._wait_for_room(None)
            self.acquire()
            try:
                done = self._catch_up()
                self._following = not done
            finally:
                self.release()

    def _wait_for_room(self, seconds: float | None) -> None:
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        room.poll(None if seconds is None else seconds * 1000)

    def _catch_up(self) -> bool:
        """Write what there is room for; whether nothing is kept any more."""
        while self._kept:
            rest = self._written(self._kept[0])
            if rest:
                self._bytes += len(rest) - len(self._kept[0])
                self._kept[0] = rest
                return False
            self._bytes -= len(self._kept.popleft())
            if not self._kept and self._dropped:
                self._kept.append(self._report())
                self._bytes, self._dropped = len(self._kept[0]), 0
        return True

    def _report(self) -> bytes:
        """Return a line that says what was dropped."""
        text = f"{self._dropped} log lines were dropped: nobody has read standard error"
        record = logging.LogRecord("mosec_asgi.log", logging.WARNING, __file__, 0, text, None, None)
        self.filter(record)
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _begin_anew(self) -> None:
        self._owner = os.getpid()
        self._kept.clear()
        self._bytes = self._dropped = 0
        self._following = False


# The one for standard error, and of which file it is: all loggers share it, and a service may start more than once.
_shared: tuple[tuple[int, int], PatientHandler] | None = None


def handler_for_stderr() -> logging.Handler:
    """Return a handler that writes to standard error and does not wait for it to be read, wherever that can be had."""
    global _shared
    stream = sys.stderr
    if stream is not sys.__stderr__ or stream is None:
        # What the program has put in its place may do more than to write.
        return logging.StreamHandler(stream)
    try:
        file = os.fstat(stream.fileno())
        which = file.st_dev, file.st_ino
        if _shared is None or _shared[0] != which:
            if stat.S_ISFIFO(file.st_mode):
                _shared = which, _to_pipe(stream.fileno())
            elif stat.S_ISSOCK(file.st_mode):
                _shared = which, _to_socket(stream.fileno())
            else:
                return logging.StreamHandler(stream)
        return _shared[1]
    except (OSError, ValueError):
        # It is no file, or cannot be opened once more.
        return logging.StreamHandler(stream)


def _to_pipe(descriptor: int) -> PatientHandler:
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return PatientHandler(own, lambda data: os.write(own, data))


def _to_socket(descriptor: int) -> PatientHandler:
    own = socket.socket(fileno=os.dup(descriptor))
    return PatientHandler(own.fileno(), lambda data: own.send(data, socket.MSG_DONTWAIT))
