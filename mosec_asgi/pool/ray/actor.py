"""Inside an actor: connect to the server, load the worker, run what comes, end with the server.

The worker runs in the actor's main thread, as in a process of its own, so a signal can bound its `forward`. The end of
the connection asks it to end: its server has died, or cannot be reached any more and has given it up. One that works
may not read the connection for long, so a thread watches it as well.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import spawn
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.codec import examples
from mosec_asgi.inside.counting import share_after_fork
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.loading import load, runner_for, speaker_for, warm_up
from mosec_asgi.inside.plain_runner import PlainRunner
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import KernelTimer, kernel_timer
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.observing.custom import VARIABLE
from mosec_asgi.pool.process import group
from mosec_asgi.pool.ray import handshake, tls
from mosec_asgi.pool.ray.counts import Counts
from mosec_asgi.pool.ray.handshake import HandshakeError
from mosec_asgi.pool.ray.listener import tune
from mosec_asgi.pool.ray.orders import Order
from mosec_asgi.pool.ray.port import RayPort
from mosec_asgi.pool.ray.store import RayStore
from mosec_asgi.version import __version__

# Seconds in which the connection to the server has to come about, with several tries.
CONNECT_SECONDS = 10.0
RETRY_SECONDS = 0.2
# Seconds that a worker has to end, once its server is gone.
END_SECONDS = 10.0
# A signal that nothing else uses, where there are such.
_SERVER_GONE: int = getattr(signal, "SIGRTMAX", signal.SIGUSR2 + 1) - 1

logger = log.internal_logger(__name__)


class ServerGone(Ending):
    """Raised wherever the worker is: the connection to its server has ended."""


def run(order: tuple[Any, ...]) -> str:
    """Run a worker until its connection ends; return what kept it from beginning, or nothing."""
    # First: that of another version may have other fields.
    if order[0] != __version__:
        return f"the node has mosec_asgi {__version__}, and the server {order[0]}; install the same version on both"
    told = Order(*order)
    os.environ.update(told.variables)
    counts = Counts()
    if VARIABLE not in told.variables:
        os.environ.update(counts.open())
        # Something may have loaded prometheus_client before.
        share_after_fork()
    try:
        return _run(told, counts)
    finally:
        counts.close()


def _run(told: Order, counts: Counts) -> str:
    try:
        spec = _unpickled(told)
    except Exception:
        # The traceback of the user's module, or of one that is missing on this node.
        return (
            f"{traceback.format_exc()}The node cannot import the worker's class. Its module must be there: by the same "
            "folder, or by ray_actor_options={'runtime_env': {'working_dir': '.'}}"
        )
    try:
        sock = connect(told)
    except StartupError as error:
        return f"the actor cannot connect to its server by TLS: {error}"
    except tls.TlsError as error:
        return f"the actor cannot connect to its server at {told.address[0]} port {told.address[1]} by TLS: {error}"
    except (OSError, HandshakeError) as error:
        return (
            f"the actor cannot connect to its server at {told.address[0]} port {told.address[1]}: {error}; let the "
            "cluster's nodes reach the server's machine at all ports, or at the one that the setting ray_port says"
        )
    try:
        _serve(spec, RayPort(sock), sock, counts)
    finally:
        sock.close()
    return ""


def connect(order: Order) -> Stream:
    """Return a connection to the server on which both sides have proved who they are.

    Raises:
        StartupError: the node lacks what TLS needs.
        OSError: there is none.
        HandshakeError: what listens there is not the server.
    """
    context = tls.context(tls.files_of_node(), server_side=False) if order.tls else None
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            sock = socket.create_connection(order.address, timeout=CONNECT_SECONDS)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(RETRY_SECONDS)
            continue
        try:
            session = None if context is None else _encrypt(sock, context)
            _shake_hands(sock, session, order)
        except BaseException:
            sock.close()
            raise
        tune(sock)
        sock.settimeout(None)
        return sock if session is None else tls.TlsSocket(sock, session)


def _encrypt(sock: socket.socket, context: ssl.SSLContext) -> tls.Session:
    session = tls.Session(context, server_side=False)
    sock.sendall(session.shake_hands())
    while not session.established:
        try:
            answer = session.shake_hands(_receive_record(sock))
        except tls.TlsError as error:
            with contextlib.suppress(OSError):
                sock.sendall(error.alert)
            raise
        sock.sendall(answer)
    return session


def _shake_hands(sock: socket.socket, session: tls.Session | None, order: Order) -> None:
    secret = order.secret if session is None else session.bound(order.secret)
    server_nonce = handshake.nonce_of(_hear(sock, session, handshake.GREETING_SIZE))
    nonce = os.urandom(handshake.NONCE_SIZE)
    claim = handshake.claim(secret, order.token, server_nonce, nonce)
    sock.sendall(claim if session is None else session.encrypted(claim))
    proof = _hear(sock, session, handshake.PROOF_SIZE)
    handshake.check_proof(secret, order.token, server_nonce, nonce, proof)


def _hear(sock: socket.socket, session: tls.Session | None, size: int) -> bytes:
    return _receive(sock, size) if session is None else session.decrypted(_receive_record(sock))


def _receive_record(sock: socket.socket) -> bytes:
    head = _receive(sock, tls.HEAD_SIZE)
    return head + _receive(sock, tls.length_after(head))


def _receive(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        came = sock.recv(size - len(received))
        if not came:
            raise HandshakeError("the server has closed the connection before it had proved who it is")
        received += came
    return received


def _unpickled(order: Order) -> WorkerSpec:
    """Return what to run; its class is imported, from the server's main module where it is defined there."""
    name, path = order.main
    process: Any = multiprocessing.current_process()
    # As `multiprocessing` does it in a spawned process: the main module is imported as `__mp_main__`, so that what the
    # program does under its guard is not done here, and one that serves without a guard is told so.
    process._inheriting = True
    try:
        if name:
            spawn._fixup_main_from_name(name)  # type: ignore[attr-defined]
        elif path:
            here = path if os.path.exists(path) else os.path.abspath(os.path.basename(path))
            spawn._fixup_main_from_path(here)  # type: ignore[attr-defined]
        spec: WorkerSpec = pickle.loads(order.spec)
        return spec
    finally:
        del process._inheriting


def _serve(spec: WorkerSpec, port: RayPort, sock: Stream, counts: Counts) -> None:
    kernel, end = kernel_timer(), kernel_timer()
    log.configure(spec.log_level, text=spec.log_text)
    log.speak_as(lambda: {"stage": spec.stage, "worker": spec.worker_id})
    _keep_from_children(port)
    with contextlib.suppress(Ending), _ends_with_the_server(sock, end):
        try:
            port.store = port.kept = _store(spec)
            worker = load(spec)
            rehearsals = examples(worker)
            runner = runner_for(worker, spec, port, kernel)
            log.speak_as(speaker_for(runner, spec))
        except Ending:
            raise
        except BaseException:
            port.failed(traceback.format_exc())
            return
        port.at_once = type(runner) is PlainRunner
        try:
            warm_up(runner, rehearsals, spec)
            port.ready()
            counts.begin(port.send_frame)
            runner.serve()
        finally:
            signal.signal(_SERVER_GONE, _nothing)
            if port.forsaken and end is not None:
                # Nobody else ends a `Worker.close` that hangs.
                end.set(END_SECONDS)
            if kernel is not None:
                kernel.set(0.0)
            runner.close()
            # With what that has counted.
            counts.close()


def _store(spec: WorkerSpec) -> RayStore | None:
    """Return where large payloads lie that pass between stages of actors."""
    try:
        return RayStore(spec.timeout)
    except (ImportError, AttributeError) as error:
        # It then reads what others put there no better; they have the same version.
        logger.warning("large payloads go through the server, as this version of Ray has other ways: %s", error)
        return None


def _keep_from_children(port: RayPort) -> None:
    """Keep programs that the worker starts, and processes that it forks, from holding its connection open."""
    descriptor = port.fileno()

    def let_go() -> None:
        port.disown()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    group.free_children(let_go)


@contextlib.contextmanager
def _ends_with_the_server(sock: Stream, end: KernelTimer | None) -> Iterator[None]:
    """Have `ServerGone` raised within this block once the connection is gone, whatever the worker does then."""

    def server_gone(*_: object) -> None:
        if end is not None:
            end.set(END_SECONDS)
        raise ServerGone("the server has ended, or cannot be reached any more")

    signal.signal(_SERVER_GONE, server_gone)
    done, tell = os.pipe()
    main = threading.get_ident()

    def watch() -> None:
        poll = select.poll()
        # The server shuts its side down only by closing it: that it sends no more tasks is a frame.
        poll.register(sock, select.POLLRDHUP if hasattr(select, "POLLRDHUP") else select.POLLHUP)
        poll.register(done, select.POLLHUP)
        if all(descriptor != done for descriptor, _ in poll.poll()):
            signal.pthread_kill(main, _SERVER_GONE)

    watcher = threading.Thread(target=watch, name="mosec_asgi server watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.signal(_SERVER_GONE, _nothing)
        os.close(tell)
        watcher.join()
        os.close(done)


def _nothing(*_: object) -> None:
    """Do nothing about a signal."""
