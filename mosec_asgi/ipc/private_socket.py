"""A Unix socket at a path that only this user can open, and root; who connects is asked of the kernel all the same.

Modes and groups of folders are easily wrong, and what is read from such a socket is trusted.

Of several programs that begin to listen at one path, in whatever moment, one does. A program that was killed has left
its file, which must be removed before another is made; so each looks, removes and listens while it holds a lock on the
folder. The lock is the kernel's (`flock`): it ends with its holder, and leaves no file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator

from mosec_asgi import log

# What keeps everybody from being accepted, and seconds before the next try.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_SECONDS = 1.0
# Seconds in which whoever listens at a path must take a connection, or is there all the same.
PROBE_SECONDS = 1.0
# Seconds for which the folder's lock is waited for, and between two tries. It is held for as long as a probe takes.
LOCK_SECONDS, LOCK_PAUSE_SECONDS = 5.0, 0.01

_CREDENTIALS = struct.Struct("3i")

logger = log.internal_logger(__name__)


class CannotListen(Exception):
    """There can be no socket at the path; the text says why."""


class Taken(CannotListen):
    """Another program listens at the path.

    Attributes:
        process: its number; 0 where the system does not tell.
    """

    def __init__(self, process: int) -> None:
        super().__init__("another program listens there" + (f", process {process}" if process else ""))
        self.process = process


class PrivateSocket:
    """Takes connections of this user, or of root, at a path, on the running event loop."""

    def __init__(self, path: str, name: str, client: str) -> None:
        """Prepare; `start` listens.

        Args:
            path: of the socket.
            name: what the logs call it.
            client: what they call who connects.
        """
        self._path = path
        self._name = name
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._inode = 0
        # Nobody could be accepted, which was said.
        self._is_short = False

    def start(self, take: Callable[[socket.socket], object], *, backlog: int, takes_over: bool = False) -> None:
        """Listen.

        Args:
            take: is given each connection.
            backlog: see `listen`.
            takes_over: see `listen`.

        Raises:
            CannotListen: that is not possible.
        """
        self._sock = sock = listen(self._path, backlog=backlog, takes_over=takes_over)
        self._inode = os.lstat(self._path).st_ino
        self._loop.add_reader(sock.fileno(), self._accept, sock, take)

    def close(self) -> None:
        """Listen no more, and remove the socket's file. Idempotent."""
        if self._sock is None:
            return
        sock, self._sock = self._sock, None
        if not self._loop.is_closed():
            self._loop.remove_reader(sock.fileno())
        sock.close()
        remove(self._path, self._inode)

    def _listen_again(self, sock: socket.socket, take: Callable[[socket.socket], object]) -> None:
        if self._sock is sock:
            self._loop.add_reader(sock.fileno(), self._accept, sock, take)

    def _accept(self, sock: socket.socket, take: Callable[[socket.socket], object]) -> None:
        try:
            connection, _ = sock.accept()
        except OSError as error:
            if error.errno in SHORTAGES:
                # He stays in the queue, and would be found there at once, again and again.
                self._tell_shortage(error)
                self._loop.remove_reader(sock.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._listen_again, sock, take)
            else:
                # Whoever it was has gone.
                logger.debug("no connection to %s: %s", self._name, error)
            return
        self._is_short = False
        if (user := stranger(connection)) is not None:
            logger.warning("%s was opened by user %d, and is only for user %d", self._name, user, os.geteuid())
            connection.close()
            return
        take(connection)

    def _tell_shortage(self, error: OSError) -> None:
        if not self._is_short:
            self._is_short = True
            files = error.errno in (errno.EMFILE, errno.ENFILE)
            logger.warning(
                "no %s can connect now: %s; tried again every %g s%s",
                self._client,
                error.strerror,
                PAUSE_SECONDS,
                ". Raise the limit of open files: `ulimit -n`, LimitNOFILE= of systemd" if files else "",
            )


def listen(path: str, *, backlog: int, takes_over: bool = False) -> socket.socket:
    """Listen at a path, without blocking.

    Args:
        path: of the socket.
        backlog: connections that may wait to be accepted.
        takes_over: remove a socket at which somebody listens.

    Raises:
        Taken: somebody listens there.
        CannotListen: that is not possible.
    """
    with _locked(os.path.dirname(path) or os.curdir):
        _remove_left_behind(path, in_use=takes_over)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Linux gives the file the mode of the socket, so that nobody can open it before the next line; others do
            # not.
            os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)
            sock.bind(path)
            os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            why = "there is no such folder" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
            raise CannotListen(why) from error
        sock.setblocking(False)
        return sock


def remove(path: str, inode: int) -> None:
    """Remove the file of a socket, unless another has taken its place."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def stranger(connection: socket.socket) -> int | None:
    """Return the user at the other end, where that is neither this one nor root.

    None where the system does not tell who it is, and only the file's mode protects the socket.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    _, user = _peer(connection)
    return None if user in (0, os.geteuid()) else user


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end, where the system tells."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    return process, user


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep others out who would begin to listen in the same folder, for the time of a block.

    Raises:
        CannotListen: another program keeps the lock.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # It is not there, which `bind` says, or must not be read.
        yield
        return
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise CannotListen("another program keeps its folder locked") from None
            time.sleep(LOCK_PAUSE_SECONDS)
        except OSError as error:
            # A file system without such locks, as some that lie on other machines.
            logger.debug("the folder of a socket cannot be locked: %s", error)
            return
        else:
            return


def _remove_left_behind(path: str, *, in_use: bool) -> None:
    """Remove a socket on which nobody listens any more, as a program leaves it that was killed.

    Args:
        path: where it may be.
        in_use: remove one on which somebody listens, too.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotListen(error.strerror or str(error)) from error
    if not stat.S_ISSOCK(mode):
        raise CannotListen("a file is there that is no socket")
    if in_use:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError as error:
            raise CannotListen(f"a socket is there: {error.strerror or error}") from error
        else:
            raise Taken(_peer(probe)[0] if hasattr(socket, "SO_PEERCRED") else 0)
