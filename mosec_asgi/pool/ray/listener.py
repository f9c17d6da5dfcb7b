"""The port to which the actors of a service connect: each connection proves whose it is before a frame is decoded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from mosec_asgi import log
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.lazy_timer import later
from mosec_asgi.pool.ray import handshake, tls
from mosec_asgi.pool.ray.handshake import HandshakeError
from mosec_asgi.ration import Ration

# Seconds in which a connection has to prove whose it is.
HANDSHAKE_SECONDS = 5.0
# Connections that have not proved it yet; the oldest gives way to another.
MOST_UNPROVED = 64
BACKLOG = 128

logger = log.internal_logger(__name__)


class Expected(NamedTuple):
    """A worker that is to connect.

    Attributes:
        secret: which it has.
        connected: called with the connection and the address of its other end.
    """

    secret: bytes
    connected: Callable[[Stream, str], None]


class Listener:
    """Listens for the actors of a service, on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        credentials: tls.Credentials | None = None,
        *,
        seconds: float = HANDSHAKE_SECONDS,
        most_unproved: int = MOST_UNPROVED,
    ) -> None:
        """Prepare; `open` begins to listen.

        Args:
            loop: to listen on.
            credentials: for TLS, in which all is said; None for connections without it.
            seconds: in which a connection has to prove whose it is.
            most_unproved: connections that have not.
        """
        self._loop = loop
        self._credentials = credentials
        self._seconds = seconds
        self._most_unproved = most_unproved
        self._expected: dict[bytes, Expected] = {}
        self._unproved: dict[asyncio.Task[None], socket.socket] = {}
        self._socket: socket.socket | None = None
        # Whoever reaches the port can cause such lines.
        self._ration = Ration(logger, later)

    @property
    def unproved(self) -> int:
        """The number of connections that have not proved whose they are."""
        return len(self._unproved)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None before `open` and after `close`."""
        return None if self._socket is None else self._socket.getsockname()[:2]

    def open(self, host: str, port: int = 0) -> None:
        """Listen at an address of this machine; at port 0, on any that is free.

        Raises:
            OSError: it is not there, or the port is taken.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Listen no more, and end what has not proved whose it is. Idempotent."""
        if self._socket is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for task, sock in list(self._unproved.items()):
            sock.close()
            if not self._loop.is_closed():
                task.cancel()
        self._unproved.clear()
        self._expected.clear()
        self._ration.say_all()

    def expect(self, token: bytes, expected: Expected) -> None:
        """Have one connection accepted that proves to be the worker `token`."""
        self._expected[token] = expected

    def forget(self, token: bytes) -> None:
        """Expect a worker no more. Idempotent."""
        self._expected.pop(token, None)

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            sock, address = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._ration.log(logging.WARNING, "a connection of a worker could not be accepted: %s", error)
            return
        sock.setblocking(False)
        if len(self._unproved) >= self._most_unproved:
            # The oldest, and not the new one: whoever opens many must not keep the workers out.
            oldest = next(iter(self._unproved))
            # At once: its end takes some turns of the loop, in which others come.
            del self._unproved[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._prove(sock, str(address[0])))
        self._unproved[task] = sock
        task.add_done_callback(self._proved)

    def _proved(self, task: asyncio.Task[None]) -> None:
        self._unproved.pop(task, None)

    async def _prove(self, sock: socket.socket, host: str) -> None:
        """Let a connection prove whose it is, and hand it over; or close it."""
        try:
            expected, stream = await asyncio.wait_for(self._begin(sock), self._seconds)
        except (HandshakeError, OSError, asyncio.TimeoutError) as error:
            sock.close()
            why = str(error) or f"it said nothing for {self._seconds:g} s"
            self._ration.log(
                logging.WARNING, "a connection from %s to the port of Ray's workers was closed: %s", host, why
            )
        except BaseException:
            sock.close()
            raise
        else:
            if self._socket is None:
                # `close` came in between. Before Python 3.12 a `wait_for` that has a result does not hear a cancel.
                sock.close()
                return
            tune(sock)
            expected.connected(stream, host)

    async def _begin(self, sock: socket.socket) -> tuple[Expected, Stream]:
        if self._credentials is None:
            return await self._shake_hands(sock, None), sock
        session = self._credentials.session()
        await self._encrypt(sock, session)
        return await self._shake_hands(sock, session), tls.TlsSocket(sock, session)

    async def _encrypt(self, sock: socket.socket, session: tls.Session) -> None:
        while not session.established:
            record = await self._receive_record(sock)
            try:
                answer = session.shake_hands(record)
            except tls.TlsError as error:
                # It goes at once, or not at all. What is left unread at a close would take it back.
                with contextlib.suppress(OSError):
                    sock.send(error.alert)
                    sock.recv(tls.READ_SIZE)
                raise
            await self._loop.sock_sendall(sock, answer)

    async def _shake_hands(self, sock: socket.socket, session: tls.Session | None) -> Expected:
        nonce = os.urandom(handshake.NONCE_SIZE)
        await self._say(sock, session, handshake.greeting(nonce))
        claimed = handshake.read_claim(await self._hear(sock, session, handshake.CLAIM_SIZE))
        expected = self._expected.get(claimed.token)
        # An unknown token takes as long as a wrong secret.
        secret = os.urandom(handshake.SECRET_SIZE) if expected is None else expected.secret
        proof = handshake.proof(secret if session is None else session.bound(secret), nonce, claimed)
        # One connection for each token.
        if expected is None or self._expected.pop(claimed.token, None) is None:
            raise HandshakeError("it belongs to no worker that was started")
        await self._say(sock, session, proof)
        return expected

    async def _say(self, sock: socket.socket, session: tls.Session | None, message: bytes) -> None:
        await self._loop.sock_sendall(sock, message if session is None else session.encrypted(message))

    async def _hear(self, sock: socket.socket, session: tls.Session | None, size: int) -> bytes:
        if session is None:
            return await self._receive(sock, size)
        return session.decrypted(await self._receive_record(sock))

    async def _receive_record(self, sock: socket.socket) -> bytes:
        head = await self._receive(sock, tls.HEAD_SIZE)
        return head + await self._receive(sock, tls.length_after(head))

    async def _receive(self, sock: socket.socket, size: int) -> bytes:
        """Receive so many bytes and no more: what follows is for another reader."""
        received = b""
        while len(received) < size:
            came = await self._loop.sock_recv(sock, size - len(received))
            if not came:
                raise HandshakeError("it ended before it had proved whose it is")
            received += came
        return received


def tune(sock: socket.socket) -> None:
    """Have small frames sent at once, and the end of a machine noticed that says nothing more."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not everywhere: macOS has other names for some.
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 15_000),
    ):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
