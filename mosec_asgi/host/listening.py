"""Where a service listens: a port, or a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys

from mosec_asgi.config import Settings
from mosec_asgi.errors import StartupError

BACKLOG = 2048
# What stands for all addresses of a machine.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Listener:
    """A socket that listens.

    Attributes:
        sock: the socket.
        path: of a Unix socket; empty for a port.
    """

    def __init__(self, sock: socket.socket, *, tls: bool, owned: bool = True) -> None:
        """Take a socket that listens.

        Args:
            sock: the socket.
            tls: it speaks TLS.
            owned: a Unix socket's file is removed at the end.
        """
        self.sock = sock
        self.path: str = sock.getsockname() if sock.family == socket.AF_UNIX else ""
        self._scheme = "https" if tls else "http"
        self._inode = os.stat(self.path).st_ino if self.path and owned else None

    @property
    def name(self) -> str:
        """Where it listens, as a URL, or as the path of a Unix socket."""
        if self.path:
            return f"unix:{self.path}"
        address, port = self.sock.getsockname()[:2]
        return _url(self._scheme, address, port)

    @property
    def url(self) -> str:
        """How a client on this machine reaches it; of a Unix socket the host does not matter."""
        if self.path:
            return f"{self._scheme}://localhost"
        address, port = self.sock.getsockname()[:2]
        return _url(self._scheme, _ANY.get(address, address), port)

    def close(self) -> None:
        """Close it, and remove the file of a Unix socket, unless another has taken its place."""
        self.sock.close()
        if self._inode is not None:
            with contextlib.suppress(OSError):
                if os.stat(self.path).st_ino == self._inode:
                    os.unlink(self.path)


def listen(settings: Settings) -> Listener:
    """Listen where the settings say.

    Raises:
        StartupError: that is not possible; the text says what to change.
    """
    tls = bool(settings.ssl_certfile)
    if settings.uds:
        return Listener(_listen_at_path(settings.uds), tls=tls)
    return Listener(_listen_at_port(settings.address, settings.port), tls=tls)


def listen_often(settings: Settings, count: int) -> list[Listener]:
    """Listen with several sockets, one for each web process, among which the system divides the connections.

    Each has a queue of its own, which stays with the program that has made it: what waits there when its process dies
    is accepted by the next. Where the system does not divide connections, all processes share one socket.

    Raises:
        StartupError: that is not possible; the text says what to change.
    """
    first = listen(settings)
    if settings.uds or not sys.platform.startswith("linux"):
        return [first] * count
    port = first.sock.getsockname()[1]
    # It has shown that nobody else listens there. Of several sockets each must say that there may be others.
    first.close()
    return [
        Listener(_listen_at_port(settings.address, port, shared=True), tls=bool(settings.ssl_certfile))
        for _ in range(count)
    ]


def _url(scheme: str, address: str, port: int) -> str:
    return f"{scheme}://{f'[{address}]' if ':' in address else address}:{port}"


def _listen_at_port(address: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((address, port))
        # Listening makes the port taken for good: two sockets can be bound to it, but only one can listen.
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        remedy = (
            "Choose an address of this machine, such as 0.0.0.0 for all of them, with --address or MOSEC_ADDRESS"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            else "Choose another port with --port or MOSEC_PORT, or end the program that uses this one; "
            "--address or MOSEC_ADDRESS sets the address"
        )
        raise StartupError(f"cannot listen on {address}:{port}: {error.strerror}. {remedy}") from error
    return sock


def _listen_at_path(path: str) -> socket.socket:
    _remove_left_behind(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = "a file is there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise StartupError(f"cannot listen on {path}: {why}. Choose another path with --uds or MOSEC_UDS") from error
    return sock


def _remove_left_behind(path: str) -> None:
    """Remove a socket on which nobody listens any more, as a program leaves it that was killed."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:
            return
        else:
            raise StartupError(
                f"cannot listen on {path}: another program listens there. Choose another path with --uds or MOSEC_UDS, "
                "or end that program"
            )
