"""`server.run()`: the service under uvicorn, from the port to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib.util
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import Receive, Scope, Send

from mosec_asgi import log
from mosec_asgi.config import Settings
from mosec_asgi.web.limits import Limits, http_limits
from mosec_asgi.web.uvicorn import supported

DAEMON_DIED = 1
# Seconds after a signal in which requests are still admitted: those that had come before it, and were not yet read.
LISTEN_SECONDS = 0.05
# New objects between two collections of the youngest generation; Python's own is 700 to 2,000.
GC_THRESHOLD = 50_000

logger = log.internal_logger(__name__)


class Server(Protocol):
    """What is served: `mosec_asgi.Server`, an ASGI app.

    Attributes:
        on_daemon_exit: called with the name and the exit code of a daemon process that has ended, and says so.
    """

    on_daemon_exit: Callable[[str, int], None] | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the life of the app."""

    def close(self) -> None:
        """Admit no more requests."""

    def why_not_direct(self) -> str | None:
        """Return why each request must be asked for through ASGI; None where it need not be."""


def run(server: Server, settings: Settings) -> int:
    """Serve until a signal ends it.

    Returns:
        the exit code: 0 after SIGTERM or SIGINT, 130 where a second SIGINT has forced the end, else what went wrong.
    """
    sock = _listen(settings.address, settings.port)
    runner = _Runner(_uvicorn_config(server, settings, _http_protocol(server, settings)), server)
    server.on_daemon_exit = runner.daemon_ended
    address, port = sock.getsockname()[:2]
    logger.info(
        "serving on http://%s:%d once the workers are ready",
        f"[{address}]" if ":" in address else address,
        port,
    )
    code = 0
    with _signals_recorded(runner):
        try:
            runner.run(sockets=[sock])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            sock.close()
    if runner.signalled:
        code = signal.SIGINT + 128 if runner.force_exit else 0
    logger.info("the service has stopped")
    return runner.failure or code


class _Runner(uvicorn.Server):
    """uvicorn's server, which lets the service know at once that the end is near."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._service = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self.signalled = False
        self.failure = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the service, then listen."""
        self._loop = asyncio.get_running_loop()
        if self.signalled:
            # Before anybody could tell the service.
            self.should_exit = True
            return
        await super().startup(sockets)
        # What is loaded by now stays: the garbage collector need not look at it again and again, nor so often at what
        # is new.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Record the signal; the loop does the rest."""
        self.signalled = True
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, LISTEN_SECONDS, self._service.close)

    def daemon_ended(self, name: str, code: int) -> None:
        """Stop, and exit with a code that says why, unless the end has been asked for.

        A terminal's ctrl-c reaches all processes of the program, and so does what some supervisors send.
        """
        if self.signalled:
            logger.info("the daemon process %s has ended with code %d", name, code)
            return
        logger.error("the daemon process %s has ended with code %d; the service stops", name, code)
        self.failure = DAEMON_DIED
        self.should_exit = True
        self._service.close()


def _uvicorn_config(server: Server, settings: Settings, http: type[asyncio.Protocol] | None) -> uvicorn.Config:
    return uvicorn.Config(
        server,
        http=http or "auto",
        interface="asgi3",
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
    return _own_protocol(http_limits(settings))


def _own_protocol(limits: Limits) -> type[asyncio.Protocol]:
    # Only here: with another uvicorn they may fail to load.
    from mosec_asgi.web.uvicorn.gathering import gathering

    if importlib.util.find_spec("zttp") is not None:
        # The extra `http2`: HTTP/1.1 and prior-knowledge HTTP/2 on one port.
        from mosec_asgi.web.uvicorn.http2 import AutoProtocol

        return gathering(AutoProtocol, limits)
    from mosec_asgi.web.uvicorn.http1 import Http1Protocol

    return gathering(Http1Protocol, limits)


def _listen(address: str, port: int) -> socket.socket:
    """Bind the port before anything else is started; end the program where that fails, with the reason."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
        # Listening makes the port taken for good: two sockets can be bound to it, but only one can listen.
        sock.listen(2048)
    except OSError as error:
        sock.close()
        remedy = (
            "Choose an address of this machine, such as 0.0.0.0 for all of them, with --address or MOSEC_ADDRESS"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            else "Choose another port with --port or MOSEC_PORT, or end the program that uses this one; "
            "--address or MOSEC_ADDRESS sets the address"
        )
        sys.exit(f"error: cannot listen on {address}:{port}: {error.strerror}. {remedy}")
    return sock


@contextlib.contextmanager
def _signals_recorded(runner: _Runner) -> Iterator[None]:
    """Record the signals that come before uvicorn does so itself.

    This also keeps its parting raise of the signal that ended it from ending the program: the exit code is ours.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def record(*_: object) -> None:
        runner.signalled = True

    before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
