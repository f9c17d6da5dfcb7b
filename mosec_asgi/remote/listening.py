"""The socket at which an engine takes web processes of the same user."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import private_socket

BACKLOG = 64
# What keeps everybody from being accepted, and seconds before the next try.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_SECONDS = 1.0

logger = log.internal_logger(__name__)


class EngineSocket:
    """Listens at a path, on the running event loop."""

    def __init__(self, path: str) -> None:
        """Prepare; `start` listens."""
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._inode = 0

    def start(self, take: Callable[[socket.socket], object]) -> None:
        """Listen.

        Args:
            take: is given each connection of this user, or of root.

        Raises:
            StartupError: that is not possible; the text says what to change.
        """
        try:
            self._sock = sock = private_socket.listen(self._path, backlog=BACKLOG)
        except private_socket.CannotListen as error:
            raise StartupError(
                f"web processes cannot reach the engine at {self._path}: {error}. Choose another path with --socket"
            ) from error
        self._inode = os.lstat(self._path).st_ino
        self._loop.add_reader(sock.fileno(), self._accept, sock, take)
        logger.info("web processes reach the engine at %s: MOSEC_ENGINE=%s", self._path, self._path)

    def close(self) -> None:
        """Listen no more, and remove the socket's file. Idempotent."""
        if self._sock is None:
            return
        sock, self._sock = self._sock, None
        if not self._loop.is_closed():
            self._loop.remove_reader(sock.fileno())
        sock.close()
        private_socket.remove(self._path, self._inode)

    def _listen_again(self, sock: socket.socket, take: Callable[[socket.socket], object]) -> None:
        if self._sock is sock:
            self._loop.add_reader(sock.fileno(), self._accept, sock, take)

    def _accept(self, sock: socket.socket, take: Callable[[socket.socket], object]) -> None:
        try:
            connection, _ = sock.accept()
        except OSError as error:
            if error.errno in SHORTAGES:
                # He stays in the queue, and would be found there at once, again and again.
                logger.warning("no web process can connect now: %s; tried again in %g s", error.strerror, PAUSE_SECONDS)
                self._loop.remove_reader(sock.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._listen_again, sock, take)
            else:
                logger.debug("no connection to the engine: %s", error)
            return
        if (user := private_socket.stranger(connection)) is not None:
            logger.warning("the engine's socket was opened by user %d, and is only for user %d", user, os.geteuid())
            connection.close()
            return
        take(connection)
