"""`http_processes`: several web processes on one port, with one engine, which this process has.

    program: engine, workers ── pair of sockets ── fork server ── forks ──► web process, web process, ...
                 └──────────── a connection each ─────────────────────────────┘

A web process that ends is started again, sooner or later depending on how often that happens. It has taken its clients'
connections with it, and nothing else. At the end of the program the web processes answer what they have, and only then
the engine ends.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.config import Settings
from mosec_asgi.host import engine, fork_server, listening, tls
from mosec_asgi.host import run as one_process
from mosec_asgi.host.fork_server import ENDED, FORK, MESSAGE, SIGNAL, STARTED, STOP_LISTENING
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.host.run import START_FAILED, Hosting
from mosec_asgi.service import WebProcesses
from mosec_asgi.web.uvicorn import supported
from mosec_asgi.web_service import Web

# Seconds before one that has ended is started again: at first, and at most; and how long one must have run to count as
# well.
LEAST_PAUSE, MOST_PAUSE = 0.05, 5.0
WELL_SECONDS = 10.0
# Seconds, beside the delay of a stop and the service's own grace, in which web processes end.
END_SECONDS = 3.0
# So many have failed, and none serves: it is no accident.
MOST_FAILURES = 3
FORK_SERVER_DIED = 1

logger = log.internal_logger(__name__)


class Server(one_process.Server, engine.Server, Protocol):
    """What is served: `mosec_asgi.Server`."""

    def take_web_processes(self, web: WebProcesses) -> None:
        """Have web processes as callers."""


def run(
    server: Server,
    settings: Settings,
    hosting: Hosting,
    as_web_process: Callable[[Web], object],
    abandon: Callable[[], object],
) -> int:
    """Serve until a signal ends it.

    Args:
        server: the service.
        settings: its settings.
        hosting: what else the program has.
        as_web_process: makes of the server, in a process that was forked, what one web process has of it.
        abandon: ends all workers at once.

    Returns:
        the exit code; see `run.run`.

    Raises:
        StartupError: it cannot listen where the settings say, or not with that certificate.
    """
    tls.check(settings)
    _import_once(settings)
    count = settings.http_processes
    listeners = listening.listen_often(settings, count)
    name = listeners[0].name
    # The file of a Unix socket is this process's to remove.
    own = [listening.Listener(each.sock, tls=bool(settings.ssl_certfile), owned=False) for each in listeners]

    of_one = _divided(settings)

    def serve(index: int, connection: socket.socket, listener: listening.Listener) -> int:
        # They may have changed since the program was started.
        tls.check(settings)
        as_web_process(Web(connection, of_one, lambda: signal.raise_signal(signal.SIGTERM)))
        return one_process.run(server, of_one, Hosting(listener=listener))

    pid, control = fork_server.start(own, serve)
    logger.info("%d web processes serve on %s; GET /readyz says when the workers are ready", count, name)
    url = listeners[0]
    end_seconds = settings.stop_delay / 1000 + settings.grace_seconds + END_SECONDS
    web = _Web(control, count, end_seconds, lambda: fork_server.resume(pid))
    server.take_web_processes(web)
    try:
        # The fork server has them as well, and nobody must think that the program still listens at its end.
        if not settings.uds:
            for each in listeners:
                each.sock.close()
        return engine.run(
            server,
            abandon,
            ready=lambda: hosting.ready(url) if hosting.ready is not None else None,
            before_end=web.end,
            told=web.follow,
        )
    finally:
        control.close()
        if settings.uds:
            listeners[0].close()
        fork_server.resume(pid)
        one_process.reap(pid)


def _divided(settings: Settings) -> Settings:
    """Return the settings of one of several processes, which share the memory for what clients send and leave."""
    memory, count = memory_limit(), settings.http_processes
    return replace(
        settings,
        body_memory=max(1, (settings.body_memory or memory // 4) // count),
        answer_memory=max(1, (settings.answer_memory or memory // 4) // count),
    )


def _import_once(settings: Settings) -> None:
    """Import what each web process needs, so that they share it."""
    importlib.import_module("mosec_asgi.web.app")
    if settings.http != "plain" and not supported.problems():
        importlib.import_module("mosec_asgi.web.uvicorn.gathering")
        importlib.import_module("mosec_asgi.web.uvicorn.http1")


@dataclass
class _Place:
    """A place for a web process.

    Attributes:
        pid: of the process; 0 while there is none.
        started: when it was, in seconds.
        pause: seconds before the next start.
    """

    pid: int = 0
    started: float = 0.0
    pause: float = LEAST_PAUSE


class _Web:
    """The web processes, as the program has them; see `service.WebProcesses`."""

    def __init__(
        self, control: socket.socket, count: int, end_seconds: float, resume: Callable[[], object] = lambda: None
    ) -> None:
        self.expected = 2 * count
        self._control = control
        self._places = [_Place() for _ in range(count)]
        self._end_seconds = end_seconds
        # Has the fork server run, where it was stopped.
        self._resume = resume
        self._take: Callable[[socket.socket], object] | None = None
        self._ending = False
        self._failures = 0
        self._ended = asyncio.Event()
        self._end_program: Callable[[int], object] = lambda code: None
        self._loop: asyncio.AbstractEventLoop

    def follow(self, end_program: Callable[[int], object]) -> None:
        """Listen to the fork server, on the running event loop; `end_program` ends the program with an exit code."""
        self._end_program = end_program
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._control.fileno(), self._hear)

    def start(self, take: Callable[[socket.socket], object]) -> None:
        """Start them all; each of their connections is given to `take`."""
        self._take = take
        for index in range(len(self._places)):
            self._start(index)

    def close(self) -> None:
        """Start none any more."""
        self._ending, self._take = True, None

    async def end(self) -> None:
        """Have them answer what they have, and end."""
        self._ending = True
        self._resume()
        self._say(STOP_LISTENING)
        self._signal_all(signal.SIGTERM)
        if any(place.pid for place in self._places):
            ended = self._loop.create_task(self._ended.wait())
            await asyncio.wait([ended], timeout=self._end_seconds)
            ended.cancel()
        if late := [place.pid for place in self._places if place.pid]:
            logger.warning("web processes that have not ended in time are killed: %s", late)
            self._signal_all(signal.SIGKILL)

    def _start(self, index: int) -> None:
        if self._ending or self._take is None:
            return
        place = self._places[index]
        place.started = time.monotonic()
        try:
            ours = self._forked(index)
        except OSError as error:
            # Descriptors may be short for a moment only. Until there is one, clients that the kernel has given to this
            # place wait.
            why = error.strerror or str(error)
            logger.error("no web process can be started: %s; tried again in %g s", why, place.pause)
            self._try_again(index)
        else:
            self._take(ours)

    def _forked(self, index: int) -> socket.socket:
        """Have one forked, and return the connection to it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._control, [MESSAGE.pack(FORK, index, 0)], [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    def _hear(self) -> None:
        while True:
            try:
                message = self._control.recv(MESSAGE.size)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                message = b""
            if len(message) != MESSAGE.size:
                self._loop.remove_reader(self._control.fileno())
                self._ended.set()
                # Nobody can send them a signal any more. They end when their connections to the engine do.
                for place in self._places:
                    place.pid = 0
                if not self._ending:
                    logger.error("the process that starts web processes has ended; the service stops")
                    self._end_program(FORK_SERVER_DIED)
                return
            kind, index, number = MESSAGE.unpack(message)
            if kind == STARTED:
                self._places[index].pid, self._places[index].started = number, time.monotonic()
                if self._ending:
                    self._say(SIGNAL, number, signal.SIGTERM)
            elif kind == ENDED:
                self._has_ended(index, number)

    def _has_ended(self, index: int, code: int) -> None:
        place = self._places[index]
        pid, place.pid = place.pid, 0
        if self._ending:
            if not any(each.pid for each in self._places):
                self._ended.set()
            return
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        what = f"the web process {pid} has ended {how}" if pid else "a web process could not be forked"
        now = time.monotonic()
        if now - place.started > WELL_SECONDS:
            place.pause, self._failures = LEAST_PAUSE, 0
        elif code > 0:
            self._failures += 1
        # Those that serve do so, whatever keeps others from it.
        if self._failures >= MOST_FAILURES and not any(
            each.pid and now - each.started > WELL_SECONDS for each in self._places
        ):
            logger.error("%s, as did those started before it; the service stops", what)
            self._ending = True
            self._end_program(START_FAILED)
            return
        logger.warning("%s; another is started in %g s", what, place.pause)
        self._try_again(index)

    def _try_again(self, index: int) -> None:
        place = self._places[index]
        self._loop.call_later(place.pause, self._start, index)
        place.pause = min(MOST_PAUSE, 2 * place.pause)

    def _signal_all(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                self._say(SIGNAL, place.pid, number)

    def _say(self, kind: int, first: int = 0, second: int = 0) -> None:
        try:
            self._control.send(MESSAGE.pack(kind, first, second))
        except OSError as error:
            logger.debug("no message can be sent to the process that starts web processes: %s", error)
