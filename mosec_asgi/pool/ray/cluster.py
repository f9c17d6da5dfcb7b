"""The server's side of Ray: the broker process, the port to which actors connect, and what is asked of both."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.pool.ray import handshake, tls
from mosec_asgi.pool.ray.listener import Expected, Listener
from mosec_asgi.pool.ray.orders import (
    Ask,
    Command,
    Connect,
    Connected,
    Ended,
    Kill,
    Launch,
    Look,
    Order,
    Refused,
    Report,
    Room,
    Unpacker,
    Waits,
    packed,
)
from mosec_asgi.version import __version__

MISSING = "executor='ray' needs Ray, which is not installed: pip install 'mosec-asgi[ray]'"
# Seconds in which a broker ends that has been asked to; then it is killed.
END_SECONDS = 5.0

logger = log.internal_logger(__name__)


class Actor(Protocol):
    """Hears what becomes of an actor."""

    def connected(self, sock: Stream, host: str) -> None:
        """Take over the connection to it; `host` is where it runs."""

    def waits(self, text: str) -> None:
        """Hear what it lacks to begin."""

    def ended(self, ended: Ended) -> None:
        """Note its end; the last that is heard of it."""


class RayCluster:
    """A Ray cluster, as the stages of one service share it. It is connected while there are stages that use it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int = 0, encrypted: str = "auto") -> None:
        """Prepare; the first launch connects.

        Args:
            loop: on which everything is reported.
            port: to which actors connect; 0 for any that is free.
            encrypted: the setting `ray_tls`: whether they do so by TLS.
        """
        self._loop = loop
        self._port = port
        self._encrypted = encrypted
        self._credentials: tls.Credentials | None = None
        self._numbers = 0
        self._actors: dict[int, tuple[bytes, Actor]] = {}
        self._broker: Broker | None = None
        self._listener: Listener | None = None
        # What is to be launched once the broker is connected.
        self._waiting: list[Callable[[], None]] = []
        self._looks: list[asyncio.Future[Room]] = []
        self._users = 0

    @property
    def broker_pid(self) -> int | None:
        """The process that speaks with Ray; None where there is none."""
        return None if self._broker is None else self._broker.pid

    def use(self) -> None:
        """Count one more user, who calls `leave` at the end."""
        self._users += 1

    def leave(self) -> None:
        """Count one user less; with the last one, the connection ends."""
        self._users -= 1
        if not self._users:
            self.close()

    def launch(
        self,
        actor: Actor,
        spec: bytes,
        stage: str,
        worker: int,
        variables: Mapping[str, str],
        options: Mapping[str, Any],
        placement: Any,
        main: tuple[str, str],
    ) -> int:
        """Have an actor started; return its number.

        Args:
            actor: hears of it, after this has returned.
            spec: a pickled `WorkerSpec`.
            stage: the name of the worker's stage.
            worker: its number there.
            variables: environment variables of the worker.
            options: of the actor, for Ray.
            placement: see `RayOptions`.
            main: the main module, if the worker's class is defined there; see `Order`.

        Raises:
            StartupError: Ray is not installed, the files for TLS cannot be used, or the broker cannot be started.
        """
        self._open()
        self._numbers += 1
        number, token, secret = (
            self._numbers,
            secrets.token_bytes(handshake.TOKEN_SIZE),
            secrets.token_bytes(handshake.SECRET_SIZE),
        )
        self._actors[number] = (token, actor)

        def start() -> None:
            if number not in self._actors:
                return
            assert self._listener is not None
            assert self._listener.address is not None
            self._listener.expect(token, Expected(secret, actor.connected))
            paths = [os.path.abspath(path) for path in sys.path]
            name = f"{stage} {worker}"
            order = Order(
                __version__,
                paths,
                main,
                self._listener.address,
                token,
                secret,
                dict(variables),
                spec,
                name,
                tls=self._credentials is not None,
            )
            launch = Launch(number, pickle.dumps(dict(options)), pickle.dumps(placement), stage, tuple(order))
            self._send(launch)

        if self._listener is None:
            self._waiting.append(start)
        else:
            start()
        return number

    def kill(self, number: int, *, why: bool) -> None:
        """End an actor; `why`: it has never connected, and its end is to say what it may have lacked."""
        if number not in self._actors:
            return
        if self._listener is None:
            # Nothing of it has been started.
            self._end(Ended(number, "had not begun: Ray had not answered yet"))
        else:
            self._send(Kill(number, why))

    def ask(self, number: int) -> None:
        """Ask why an actor has not begun."""
        if self._listener is not None:
            self._send(Ask(number))

    def forget(self, number: int) -> None:
        """Hear of an actor no more. Idempotent."""
        if (known := self._actors.pop(number, None)) is not None and self._listener is not None:
            self._listener.forget(known[0])

    async def look(self) -> Room:
        """Return what the cluster has.

        Raises:
            ConnectionError: there is no connection to it.
        """
        if self._listener is None:
            raise ConnectionError("not connected to Ray")
        future: asyncio.Future[Room] = self._loop.create_future()
        self._looks.append(future)
        self._send(Look())
        return await future

    def close(self) -> None:
        """End the connection, and with it all actors that are left. Idempotent."""
        if self._broker is not None:
            self._broker.close()
        self._disconnected("the service has disconnected from Ray")

    def reap(self, timeout: float) -> None:
        """End the connection without the event loop, and wait for that."""
        if self._broker is not None:
            self._broker.reap(timeout)
            self._broker = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # -- the broker --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._broker is not None:
            return
        if importlib.util.find_spec("ray") is None:
            raise StartupError(MISSING)
        self._credentials = None
        if tls.is_wanted(self._encrypted):
            self._credentials = tls.Credentials(tls.files_of_node())
            self._credentials.load()
        broker = Broker(self._loop, self._heard, self._lost)
        try:
            broker.start(_where())
        except OSError as error:
            raise StartupError(f"the process that speaks with Ray cannot be started: {error}") from error
        self._broker = broker

    def _send(self, command: Command) -> None:
        if self._broker is not None:
            self._broker.send(command)

    def _heard(self, report: Report) -> None:
        if isinstance(report, Ended):
            self._end(report)
        elif isinstance(report, Waits):
            if report.number in self._actors:
                self._actors[report.number][1].waits(report.text)
        elif isinstance(report, Room):
            for look in self._looks:
                if not look.done():
                    look.set_result(report)
            self._looks.clear()
        elif isinstance(report, Refused):
            self._disconnected(report.text)
        else:
            self._connected(report)

    def _connected(self, report: Connected) -> None:
        listener = Listener(self._loop, self._credentials)
        try:
            listener.open(report.host, self._port)
        except OSError as error:
            self._disconnected(
                f"cannot listen at {report.host} port {self._port}, to which Ray's workers connect: {error.strerror}; "
                "choose another by the setting ray_port, or 0 for any that is free"
            )
            return
        self._listener = listener
        assert listener.address is not None
        logger.info(
            "connected to Ray at %s: %s; its workers connect to %s port %d%s",
            report.cluster,
            report.told,
            *listener.address,
            "" if self._credentials is None else " by TLS",
        )
        waiting, self._waiting = self._waiting, []
        for start in waiting:
            start()

    def _lost(self) -> None:
        self._disconnected("the connection to Ray was lost: its head node has been gone for long, or was stopped")

    def _disconnected(self, why: str) -> None:
        """Note that there is no connection: all actors have ended, or end soon; the next launch connects anew."""
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._waiting.clear()
        for look in self._looks:
            if not look.done():
                look.set_exception(ConnectionError(why))
        self._looks.clear()
        for number in list(self._actors):
            self._end(Ended(number, f"has ended: {why}", why))

    def _end(self, ended: Ended) -> None:
        known = self._actors.get(ended.number)
        self.forget(ended.number)
        if known is not None:
            known[1].ended(ended)


class Broker(asyncio.Protocol):
    """The broker process, as the server has it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, heard: Callable[[Report], None], lost: Callable[[], None]
    ) -> None:
        """Prepare; nothing is started.

        Args:
            loop: on which to hear it.
            heard: called with what it reports.
            lost: called when it has ended though nobody has closed it.
        """
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._unpacker = Unpacker()
        self._process: subprocess.Popen[bytes]
        self._sock: socket.socket
        self._transport: asyncio.Transport | None = None
        # What is said before the event loop has taken over the socket.
        self._unsent: list[Command] = []
        self._closed = False

    def start(self, connect: Connect) -> None:
        """Start the process.

        Raises:
            OSError: it cannot be started.
        """
        self._sock, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from mosec_asgi.pool.ray.broker import main; "
            f"main({theirs.fileno()})"
        )
        try:
            # In a session of its own: a terminal's ctrl-c is the server's to handle.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._unsent.append(connect)
        self._opening = self._loop.create_task(self._open())

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def _open(self) -> None:
        await self._loop.create_connection(lambda: self, sock=self._sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what was to be sent before."""
        # Not by its type: uvloop's are of another.
        self._transport = cast("asyncio.Transport", transport)
        if self._closed:
            transport.close()
            return
        for command in self._unsent:
            self._transport.write(packed(command))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        """Pass on what it reports."""
        for report in self._unpacker.receive(data):
            if not self._closed:
                self._heard(report)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note its end."""
        if not self._closed:
            self._lost()

    def send(self, command: Command) -> None:
        """Send it a command."""
        if self._transport is None:
            self._unsent.append(command)
        else:
            self._transport.write(packed(command))

    def close(self) -> None:
        """Have it end, and hear no more of it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._transport is not None:
            self._transport.close()
        else:
            self._sock.close()
        # In a thread: to disconnect from Ray takes it a moment, and a child must be waited for.
        self._loop.run_in_executor(None, self._wait, END_SECONDS)

    def reap(self, timeout: float) -> None:
        """Have it end, without the event loop, and wait for that."""
        self._closed = True
        self._sock.close()
        self._wait(timeout)

    def _wait(self, timeout: float) -> None:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _where() -> Connect:
    """Return to which cluster to connect: that of this process, where the program has connected it."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return Connect(None, "", {})
    context = ray.get_runtime_context()
    return Connect(context.gcs_address, context.namespace, dict(context.runtime_env))
