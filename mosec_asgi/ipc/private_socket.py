"""A Unix socket at a path that only this user can open, and root; who connects is asked of the kernel all the same.

Modes and groups of folders are easily wrong, and what is read from such a socket is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable

from mosec_asgi import log

# What keeps everybody from being accepted, and seconds before the next try.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_SECONDS = 1.0

_CREDENTIALS = struct.Struct("3i")

logger = log.internal_logger(__name__)


class CannotListen(Exception):
    """There can be no socket at the path; the text says why."""


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
                reason = error.strerror
                logger.warning("no %s can connect now: %s; tried again in %g s", self._client, reason, PAUSE_SECONDS)
                self._loop.remove_reader(sock.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._listen_again, sock, take)
            else:
                # Whoever it was has gone.
                logger.debug("no connection to %s: %s", self._name, error)
            return
        if (user := stranger(connection)) is not None:
            logger.warning("%s was opened by user %d, and is only for user %d", self._name, user, os.geteuid())
            connection.close()
            return
        take(connection)


def listen(path: str, *, backlog: int, takes_over: bool = False) -> socket.socket:
    """Listen at a path, without blocking.

    Args:
        path: of the socket.
        backlog: connections that may wait to be accepted.
        takes_over: remove a socket at which somebody listens.

    Raises:
        CannotListen: that is not possible.
    """
    _remove_left_behind(path, in_use=takes_over)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the socket, so that nobody can open it before the next line; others do not.
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
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(credentials)[1]
    return None if user in (0, os.geteuid()) else user


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
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError as error:
            raise CannotListen(f"a socket is there: {error.strerror or error}") from error
        else:
            raise CannotListen("another program listens there")
