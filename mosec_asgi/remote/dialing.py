"""From a web process to an engine: at a path, again and again where it is not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import private_socket
from mosec_asgi.remote import handshake
from mosec_asgi.remote.engine import Away, RemoteEngine
from mosec_asgi.remote.handshake import HandshakeError, Hello, RouteShape, Welcome
from mosec_asgi.remote.memory import WebMemory
from mosec_asgi.within import within

# Seconds between two tries: at first, and at most.
LEAST_PAUSE, MOST_PAUSE = 0.05, 2.0
# Seconds between two looks at how the engine stands.
REFRESH_SECONDS = 1.0
SAME_USER = "start both as the same user"

logger = log.internal_logger(__name__)


class Dialing:
    """Keeps an engine connected, as long as it runs."""

    def __init__(
        self,
        engine: RemoteEngine,
        routes: Sequence[RouteShape],
        path: str,
        given: socket.socket | None = None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare; `run` connects.

        Args:
            engine: is given connections.
            routes: that this process serves.
            path: of the engine's socket.
            given: a connection that is used in its place, and once.
            on_change: called whenever it was heard how the engine stands.
        """
        self._engine = engine
        self._routes = tuple(routes)
        self._path = path
        self._given = given
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[str]
        # Set once there is an engine, or cannot be one as it looks.
        self.tried = asyncio.Event()
        self._told = ""

    async def run(self) -> None:
        """Connect, and again when the connection has ended; return where a connection was given, and has ended."""
        pause = LEAST_PAUSE
        while True:
            try:
                # The other end of a connection that was given is there, and may be busy with its start.
                await within(handshake.SECONDS if self._given is None else None, self._connect())
            except asyncio.TimeoutError:
                self._tell_away("it does not answer")
            except PermissionError:
                why = f"its socket, or a folder above it, is for another user only; {SAME_USER}"
                self._tell_away(why, is_there=True)
            except OSError as error:
                self._tell_away(error.strerror or str(error))
            except (HandshakeError, StartupError) as error:
                self._tell_away(str(error), is_there=True)
            else:
                pause = LEAST_PAUSE
                await self._follow()
            self.tried.set()
            if self._given is not None:
                return
            await asyncio.sleep(pause)
            pause = min(MOST_PAUSE, 2 * pause)

    async def _connect(self) -> None:
        sock = self._given or await self._dial()
        try:
            await self._loop.sock_sendall(sock, handshake.encoded(Hello(self._routes, os.getpid())))
            said, descriptors = await handshake.received(self._loop, sock)
            memory = self._welcomed(said, descriptors)
        except BaseException:
            sock.close()
            raise
        self._lost = self._loop.create_future()
        welcome = Welcome.read(said)
        self._engine.connect(sock, welcome.apart, memory, self._on_lost, welcome.timeout)
        logger.info("the engine is process %d%s", welcome.pid, self._at)
        self._told = ""

    async def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await self._loop.sock_connect(sock, self._path)
            if (user := private_socket.stranger(sock)) is not None:
                raise HandshakeError(
                    f"its socket belongs to user {user}, and this process is of user {os.geteuid()}; {SAME_USER}"
                )
        except BaseException:
            sock.close()
            raise
        return sock

    @staticmethod
    def _welcomed(said: object, descriptors: Sequence[int]) -> WebMemory | None:
        """Return the memory that is shared with the workers, if any is."""
        try:
            welcome = Welcome.read(said)
            if welcome.refused:
                raise HandshakeError(welcome.refused)
            if bool(descriptors) != bool(welcome.memory):
                raise HandshakeError("it shares memory, and does not say which")
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return WebMemory(descriptors[0], welcome.memory, welcome.region) if descriptors else None

    async def _follow(self) -> None:
        """Ask how the engine stands, until the connection ends."""
        while not self._lost.done():
            # Where it does not answer in time, it is asked again.
            with contextlib.suppress(Away):
                await self._engine.refresh()
                self.tried.set()
                self._on_change()
            await asyncio.wait([self._lost], timeout=REFRESH_SECONDS)
        self._tell_away(self._lost.result() or "it has closed the connection")
        self._on_change()

    def _on_lost(self, reason: str) -> None:
        self._lost.set_result(reason)

    def _tell_away(self, why: str, *, is_there: bool = False) -> None:
        if self._given is not None:
            # The program ends, and so does this process.
            logger.info("the engine is gone: %s", why)
        # Once for each reason: it is tried every two seconds.
        elif why != self._told:
            self._told = why
            what = "the engine%s cannot be used: %s" if is_there else "there is no engine%s: %s"
            logger.warning(f"{what}; until there is one, calls are answered 503", self._at, why)

    @property
    def _at(self) -> str:
        return f" at {self._path}" if self._path else ""
