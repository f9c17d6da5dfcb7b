"""`server.run()`: the service under uvicorn, from the port to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from mosec_asgi import log
from mosec_asgi.config import Settings
from mosec_asgi.host import listening, tls
from mosec_asgi.host.draining import DrainingServer
from mosec_asgi.host.handover import Handover
from mosec_asgi.host.hangup import Hangup
from mosec_asgi.host.interrupts import told_of_signals
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.web.limits import Limits, http_limits
from mosec_asgi.web.uvicorn import supported

if TYPE_CHECKING:
    from mosec_asgi.web.direct import DirectRoutes

DAEMON_DIED = 1
# uvicorn's code for an app that has not started.
START_FAILED = 3
# New objects between two collections of the youngest generation; Python's own is 700 to 2,000.
GC_THRESHOLD = 50_000

logger = log.internal_logger(__name__)


class Server(Protocol):
    """What is served: `mosec_asgi.Server`, an ASGI app.

    Attributes:
        on_daemon_exit: called with the name and the exit code of a daemon process that has ended, and says so.
        on_answering: called once requests are answered, though models still load.
    """

    on_daemon_exit: Callable[[str, int], None] | None
    on_answering: Callable[[], None] | None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request, or follow the life of the app."""

    def announce_end(self) -> None:
        """Say at `/readyz` that the end is near; requests are still admitted."""

    def close(self) -> None:
        """Admit no more requests."""

    def direct_routes(self) -> DirectRoutes | None:
        """Return the routes that need not be asked for through ASGI."""

    async def restart(self) -> None:
        """Replace all workers, one after the other."""

    def why_not_direct(self) -> str | None:
        """Return why each request must be asked for through ASGI; None where it need not be."""


@dataclass(frozen=True)
class Hosting:
    """How a program hosts a service, beside what the settings say.

    Attributes:
        ready: called on the event loop, with the listener, once all workers are ready.
        handover: under `--reload`, with the process before this one, and the one after it.
        listener: where to listen in one of several web processes; None to listen where the settings say.
    """

    ready: Callable[[listening.Listener], object] | None = None
    handover: Handover | None = None
    listener: listening.Listener | None = None

    @property
    def follows(self) -> bool:
        """Whether another process serves until this one can."""
        return self.handover is not None and self.handover.listening is not None


def run(server: Server, settings: Settings, hosting: Hosting = Hosting()) -> int:
    """Serve until a signal ends it.

    Args:
        server: the service.
        settings: its settings.
        hosting: how the program hosts the service.

    Returns:
        the exit code: 0 after SIGTERM or SIGINT, 130 where a second SIGINT has forced the end, else what went wrong.

    Raises:
        StartupError: it cannot listen where the settings say, or not with that certificate.
    """
    if hosting.listener is None:
        tls.check(settings)
    listener = hosting.listener or _listener(settings, hosting.handover)
    # Where another process serves, this one takes no connections until it can answer them.
    program = _Program(server, lambda: _tell_ready(listener, hosting), early=not hosting.follows)
    program.is_one_of_several = hosting.listener is not None
    program.has_engine = bool(settings.engine)
    protocol = _http_protocol(server, settings)
    runner = DrainingServer(_uvicorn_config(program, settings, protocol), server.close, settings.stop_delay / 1000)
    if not settings.stop_delay:
        # Not only when uvicorn comes to it, a moment later.
        program.announce_end = server.close
    program.end = lambda: setattr(runner, "should_exit", True)
    program.follow_parent = functools.partial(_follow_parent, hosting.handover, runner)
    server.on_daemon_exit = program.daemon_ended
    if hosting.listener is None:
        logger.info("serving on %s; GET /readyz says when the workers are ready", listener.name)
    code = 0
    with _signals_recorded(program):
        try:
            runner.run(sockets=[listener.sock])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            listener.close()
    if (shared := getattr(protocol, "shared", None)) is not None:
        shared.say_all()
    if program.signalled:
        code = signal.SIGINT + 128 if program.forced else 0
    if hosting.listener is None:
        logger.info("the service has stopped")
    return program.failure or code


def _listener(settings: Settings, handover: Handover | None) -> listening.Listener:
    if handover is None:
        return listening.listen(settings)
    # The parent removes the file of a Unix socket.
    sock = handover.listening or listening.listen(settings).sock
    if handover.listening is None:
        handover.tell_listening(sock)
    return listening.Listener(sock, tls=bool(settings.ssl_certfile), owned=False)


def _tell_ready(listener: listening.Listener, hosting: Hosting) -> None:
    if hosting.ready is not None:
        hosting.ready(listener)
    if hosting.handover is not None:
        hosting.handover.tell_ready()


def _follow_parent(handover: Handover | None, runner: DrainingServer) -> None:
    """Do what the parent says of a process that another follows."""
    if handover is None:
        return
    draining: set[asyncio.Task[None]] = set()

    def begin() -> None:
        logger.info("another process has taken over; this one answers the requests that it has admitted, and ends")
        draining.add(asyncio.get_running_loop().create_task(runner.drain()))

    # To the handlers that are there for it, as for any other wish to end the program.
    handover.follow(begin, lambda: signal.raise_signal(signal.SIGTERM))


class _Program:
    """The service as the app that uvicorn runs: hears of signals and daemons, and lets the service know at once.

    Nothing else than the app's lifespan is needed for it, and nothing of uvicorn that is not public. uvicorn opens the
    port when the app has started; it is told so as soon as the app answers, while models load.

    Attributes:
        announce_end: called when a signal has asked for the end.
        end: ends uvicorn.
        follow_parent: called when the event loop runs.
        signalled: a signal has asked for the end.
        forced: a SIGINT has come after that.
        failure: the exit code, where something else than a signal has ended the program.
        is_one_of_several: its workers are those of another process, which looks after them.
        has_engine: its workers are those of an engine that was started apart, and may not be there yet.
    """

    def __init__(self, server: Server, ready: Callable[[], object], *, early: bool) -> None:
        """Prepare to follow the life of a service.

        Args:
            server: the service.
            ready: called on the event loop, once all workers are ready and connections are taken.
            early: take connections as soon as the app answers, while models load.
        """
        self._service = server
        self._early = early
        self._ready = ready
        self.follow_parent: Callable[[], object] = lambda: None
        self.announce_end: Callable[[], object] = server.announce_end
        self.direct_routes = server.direct_routes
        self.end: Callable[[], object] = lambda: None
        self.signalled = self.forced = False
        self.failure = 0
        self.is_one_of_several = self.has_engine = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request, or follow the life of the app."""
        if scope["type"] == "lifespan":
            return self._follow(scope, receive, send)
        return self._service(scope, receive, send)

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.follow_parent()
        if self.signalled:
            # Before anybody but this object could hear of it: nothing is started, and uvicorn is told.
            signal.raise_signal(signal.SIGTERM)
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        hangup = Hangup(self._service.restart, lambda: self.signalled)

        def ready() -> None:
            self._ready()
            hangup.workers_are_ready()

        start = _Start(self, send, ready)
        if self._early:
            self._service.on_answering = start.answering
        hearing = contextlib.nullcontext() if self.is_one_of_several else hangup.heard()
        with told_of_signals(self.announce_end, self.note), hearing:
            await self._service(scope, receive, start.send)

    def note(self, number: int) -> None:
        """Take note of a signal."""
        self.forced = self.signalled and number == signal.SIGINT
        self.signalled = True

    def start_failed(self, why: str) -> None:
        """Stop, and exit with a code that says why: a stage cannot start."""
        logger.error("the service could not be started: %s", why)
        self.failure = START_FAILED
        self.end()

    def daemon_ended(self, name: str, code: int) -> None:
        """Stop, and exit with a code that says why, unless the end has been asked for.

        A terminal's ctrl-c reaches all processes of the program, and so does what some supervisors send.
        """
        if self.signalled:
            logger.info("the daemon process %s has ended with code %d", name, code)
            return
        logger.error("the daemon process %s has ended with code %d; the service stops", name, code)
        self.failure = DAEMON_DIED
        self._service.close()
        # To the handlers that are there for it, in the main thread.
        signal.raise_signal(signal.SIGTERM)


class _Start:
    """The start of a service, as uvicorn is told of it: it has succeeded as soon as the app answers."""

    def __init__(self, program: _Program, send: Send, ready: Callable[[], object]) -> None:
        self._program = program
        self._send = send
        self._ready = ready
        self._began = time.monotonic()
        # Tells uvicorn so.
        self._telling: asyncio.Task[None] | None = None

    def answering(self) -> None:
        """Have uvicorn open the port."""
        self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        # Before there is a request that would have to wait for it; what comes until the models are loaded is little.
        _settle_memory()
        await self._send({"type": "lifespan.startup.complete"})

    async def send(self, message: Message) -> None:
        """Pass on what the app says of its life."""
        kind = message["type"]
        ready = kind == "lifespan.startup.complete" and not self._program.signalled
        if ready:
            _settle_memory()
        if self._telling is None or not kind.startswith("lifespan.startup."):
            await self._send(message)
        else:
            await self._telling
            if kind == "lifespan.startup.failed":
                self._program.start_failed(message["message"])
        if ready and not self._program.is_one_of_several:
            what = "this process answers for its engine" if self._program.has_engine else "all workers are ready"
            logger.info("%s, %.1f s after the start", what, time.monotonic() - self._began)
        if ready:
            # uvicorn accepts connections in the same turn of the loop.
            asyncio.get_running_loop().call_soon(self._ready)


def _settle_memory() -> None:
    """What is loaded by now stays: the collector need not look at it again and again, nor so often at what is new."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


def _uvicorn_config(program: _Program, settings: Settings, http: type[asyncio.Protocol] | None) -> uvicorn.Config:
    return uvicorn.Config(
        program,
        http=http or "auto",
        interface="asgi3",
        ssl_certfile=settings.ssl_certfile or None,
        ssl_keyfile=settings.ssl_keyfile or None,
        loop="uvloop",
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(settings.keep_alive / 1000),
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + 1,
    )


def _http_protocol(server: Server, settings: Settings) -> type[asyncio.Protocol] | None:
    """Return how HTTP is spoken, None for uvicorn's own way; and log what makes it slower than it could be."""
    if settings.http == "plain":
        return None
    found = supported.problems()
    if found:
        logger.warning(
            "HTTP goes uvicorn's own way, which is slower: %s. Install versions that are known to work, or choose this "
            "way with --http plain",
            "; ".join(found),
        )
        return None
    reason = server.why_not_direct()
    if reason is not None:
        logger.info("requests go through ASGI, and not the direct way, because %s", reason)
    return _own_protocol(http_limits(settings, memory_limit()))


def _own_protocol(limits: Limits) -> type[asyncio.Protocol]:
    # Only here: with another uvicorn they may fail to load.
    from mosec_asgi.web.uvicorn.gathering import gathering

    if importlib.util.find_spec("zttp") is not None:
        # The extra `http2`: HTTP/1.1 and prior-knowledge HTTP/2 on one port.
        from mosec_asgi.web.uvicorn.http2 import AutoProtocol

        return gathering(AutoProtocol, limits)
    from mosec_asgi.web.uvicorn.http1 import Http1Protocol

    return gathering(Http1Protocol, limits)


@contextlib.contextmanager
def _signals_recorded(program: _Program) -> Iterator[None]:
    """Record the signals that come before uvicorn does so itself.

    This also keeps its parting raise of the signal that ended it from ending the program: the exit code is ours.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def record(number: int, frame: object) -> None:
        if not program.signalled:
            program.note(number)

    before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reap(pid: int) -> None:
    """Wait for the end of a process that was forked, and that ends by itself."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
