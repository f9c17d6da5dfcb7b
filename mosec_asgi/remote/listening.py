"""The socket at which an engine takes web processes of the same user."""

from __future__ import annotations

import socket
from collections.abc import Callable

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.ipc.private_socket import CannotListen, PrivateSocket, Taken

BACKLOG = 64

logger = log.internal_logger(__name__)


class EngineSocket:
    """Listens at a path, on the running event loop."""

    def __init__(self, path: str) -> None:
        """Prepare; `start` listens."""
        self._path = path
        self._socket = PrivateSocket(path, "the engine's socket", "web process")

    def start(self, take: Callable[[socket.socket], object]) -> None:
        """Listen.

        Args:
            take: is given each connection of this user, or of root.

        Raises:
            StartupError: that is not possible; the text says what to change.
        """
        try:
            self._socket.start(take, backlog=BACKLOG)
        except Taken as error:
            raise StartupError(
                f"this engine cannot listen at {self._path}: {error}. If that is an engine of the same service, web "
                "processes have it, and this one is not needed; to replace it, end it first. Else choose another path "
                "with --socket, and give it to the web processes as MOSEC_ENGINE"
            ) from error
        except CannotListen as error:
            raise StartupError(
                f"web processes cannot reach the engine at {self._path}: {error}. Choose another path with --socket"
            ) from error
        logger.info("web processes reach the engine at %s: MOSEC_ENGINE=%s", self._path, self._path)

    def close(self) -> None:
        """Listen no more, and remove the socket's file. Idempotent."""
        self._socket.close()
