"""How a connection between a web process and an engine begins.

    web process ── Hello ──► engine       who it is, and the routes that it serves
    web process ◄─ Welcome ── engine      with the file of the shared memory beside it; or why it is refused

Both are JSON behind a length, and are read before anything that only friends may send. A web process whose program has
other routes than the engine's, or another version, is told so, and is given no calls to make.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mosec_asgi.version import __version__

# Bytes of either message.
MOST_BYTES = 1 << 20
# Seconds that the other side may take.
SECONDS = 5.0
_LENGTH = struct.Struct("<I")
_READ_BYTES = 64 * 1024


class HandshakeError(Exception):
    """The other side is not what it should be; the text says why."""


@dataclass(frozen=True)
class RouteShape:
    """What both sides must know alike of a route.

    Attributes:
        path: of the route.
        stages: the names of its stages.
        streams: its answers are streams.
    """

    path: str
    stages: tuple[str, ...]
    streams: bool


@dataclass(frozen=True)
class Hello:
    """What a web process says of itself.

    Attributes:
        routes: that it serves, in the order of its program.
        pid: its number.
        version: of this package.
        python: of Python: it decides how plain data is written.
    """

    routes: tuple[RouteShape, ...]
    pid: int
    version: str = __version__
    python: str = sys.version.split()[0]

    @classmethod
    def read(cls, fields: Any) -> Hello:
        """Return what came as JSON.

        Raises:
            HandshakeError: it is none.
        """
        try:
            routes = tuple(
                RouteShape(str(each["path"]), tuple(map(str, each["stages"])), bool(each["streams"]))
                for each in fields["routes"]
            )
            return cls(routes, int(fields["pid"]), str(fields["version"]), str(fields["python"]))
        except (KeyError, TypeError, ValueError) as error:
            raise HandshakeError("it said something else than hello") from error

    def differs_from(self, routes: Sequence[RouteShape]) -> str:
        """Return why an engine with these routes cannot work with it; empty if it can."""
        if (self.version, self.python) != (__version__, sys.version.split()[0]):
            return (
                f"the web process has mosec-asgi {self.version} on Python {self.python}, the engine has {__version__} "
                f"on Python {sys.version.split()[0]}; start both from one environment"
            )
        if self.routes != tuple(routes):
            return (
                f"the web process serves {_shown(self.routes)}, the engine {_shown(routes)}; start both from the same "
                "program, the engine first"
            )
        return ""


@dataclass(frozen=True)
class Welcome:
    """What an engine says to a web process.

    Attributes:
        refused: why it takes no calls; empty where it does.
        pid: its number.
        apart: for each route, whether its first stage's workers can read shared memory.
        memory: bytes of the shared memory, whose file comes beside this; 0 where there is none.
        region: where in it the web process may write: its beginning, and its size.
        timeout: of the service, in seconds.
    """

    refused: str = ""
    pid: int = 0
    apart: tuple[bool, ...] = ()
    memory: int = 0
    region: tuple[int, int] = (0, 0)
    timeout: float = math.inf

    @classmethod
    def read(cls, fields: Any) -> Welcome:
        """Return what came as JSON.

        Raises:
            HandshakeError: it is none.
        """
        try:
            begin, size = fields["region"]
            return cls(
                fields["refused"],
                fields["pid"],
                tuple(fields["apart"]),
                fields["memory"],
                (begin, size),
                float(fields["timeout"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise HandshakeError("it said something else than welcome") from error


def encoded(message: Hello | Welcome) -> bytes:
    """Return a message as bytes."""
    body = json.dumps(asdict(message)).encode()
    return _LENGTH.pack(len(body)) + body


async def received(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> tuple[Any, list[int]]:
    """Return what the other side says first, and the descriptors that came beside it, which are the caller's.

    Raises:
        HandshakeError: it has left, or says something else.
        OSError: the connection has broken.
    """
    data, descriptors = b"", list[int]()
    try:
        while (length := _length(data)) is None or len(data) < length:
            # No more than the message: what comes behind it is read by others.
            most = _LENGTH.size - len(data) if length is None else length - len(data)
            piece, more = await _piece(loop, sock, min(most, _READ_BYTES))
            descriptors += more
            if not piece:
                raise HandshakeError("it has closed the connection")
            data += piece
        return json.loads(data[_LENGTH.size :]), descriptors
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, (ValueError, RecursionError)):
            raise HandshakeError("it said something that is no JSON") from error
        raise


def _length(data: bytes) -> int | None:
    if len(data) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(data)
    if length > MOST_BYTES:
        raise HandshakeError(f"it begins with a message of {length} bytes")
    return _LENGTH.size + int(length)


async def _piece(loop: asyncio.AbstractEventLoop, sock: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """Read once, and wait until there is something."""
    while True:
        try:
            piece, descriptors, _, _ = socket.recv_fds(sock, most, 1)
            return piece, descriptors
        except (BlockingIOError, InterruptedError):
            await _readable(loop, sock)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _shown(routes: Sequence[RouteShape]) -> str:
    return ", ".join(f"{route.path} ({' → '.join(route.stages)})" for route in routes) or "nothing"
