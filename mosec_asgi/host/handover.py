"""One process of a service follows another on the same socket, led by a parent; see `cli.reload`.

The parent and each of its processes have a pair of sockets between them. The process says

    LISTENING   beside it goes the socket on which it listens, for those that follow
    READY       all its workers are ready, and it accepts connections

and is told to DRAIN: to answer what has come, and to end. If the parent ends, however it does, the process ends.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

LISTENING = b"L"
READY = b"R"
DRAIN = b"D"


class Handover:
    """The end of one of the processes."""

    def __init__(self, control: socket.socket, listening: socket.socket | None) -> None:
        """Take what the parent has given.

        Args:
            control: the process's end of the pair.
            listening: the socket of the process before; None for the first one.
        """
        self.listening = listening
        self._control = control

    def tell_listening(self, sock: socket.socket) -> None:
        """Give the parent the socket that the first process has made."""
        self._tell(lambda: socket.send_fds(self._control, [LISTENING], [sock.fileno()]))

    def tell_ready(self) -> None:
        """Say that this process accepts connections."""
        self._tell(lambda: self._control.sendall(READY))

    def follow(self, drain: Callable[[], object], alone: Callable[[], object]) -> None:
        """Listen to the parent, on the running event loop.

        Args:
            drain: called when another process has taken over.
            alone: called when the parent has ended.
        """
        loop = asyncio.get_running_loop()
        self._control.setblocking(False)

        def read() -> None:
            try:
                data = self._control.recv(1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data == DRAIN:
                drain()
            elif not data:
                loop.remove_reader(self._control.fileno())
                alone()

        loop.add_reader(self._control.fileno(), read)

    @staticmethod
    def _tell(send: Callable[[], object]) -> None:
        try:
            send()
        except OSError:
            # The parent has gone, which `follow` notices.
            return
