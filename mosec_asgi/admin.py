"""The admin socket: a service is seen and changed over a Unix socket, by HTTP and JSON, so that curl will do.

    curl --unix-socket PATH http://localhost/status
    curl --unix-socket PATH http://localhost/scale -d '{"stage": "Inference_2", "num": 4}'

Whoever can use it can have workers started and ended, and see all that `/metrics` shows. So the file can be opened only
by the user that the service runs as, and root, and who connects is asked of the kernel all the same: modes and groups
of folders are easily wrong. Each connection is for one request, and what is read of it is bounded.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import h11
import orjson

from mosec_asgi import log
from mosec_asgi.errors import DefinitionError, MosecError, StartupError
from mosec_asgi.ipc.private_socket import CannotListen, PrivateSocket
from mosec_asgi.steering import Steering

# Bytes of a request's head, and of its body.
MOST_HEAD = 16 * 1024
MOST_BODY = 64 * 1024
# Seconds that a request may take to arrive, and its answer to be taken.
SECONDS = 5.0
MOST_CONNECTIONS = 16
# Seconds in which answers are still written when the service has stopped.
LAST_SECONDS = 1.0
_READ_BYTES = 16 * 1024

logger = log.internal_logger(__name__)


class Refused(Exception):
    """A request cannot be followed.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Asked(NamedTuple):
    """A request: its method, its path and its body."""

    method: str
    path: str
    body: bytes


class Report(Protocol):
    """How the service stands; see `observing.statistics.ServiceReport`."""

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form for JSON."""


class AdminSocket:
    """Answers on the socket of one service, on its event loop."""

    def __init__(
        self, path: str, steering: Steering, report: Callable[[], Report], *, takes_over: bool = False
    ) -> None:
        """Prepare; `start` listens.

        Args:
            path: of the socket.
            steering: does what is asked.
            report: returns how the service stands.
            takes_over: listen in the place of a process that this one follows, and that listens there.
        """
        self._path = path
        self._takes_over = takes_over
        self._steering = steering
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._socket = PrivateSocket(path, "the admin socket", "client of the admin socket")
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            StartupError: that is not possible; the text says what to change.
        """
        try:
            self._socket.start(self._take, backlog=MOST_CONNECTIONS, takes_over=self._takes_over)
        except CannotListen as error:
            raise StartupError(_cannot(self._path, str(error))) from error
        logger.info("seen and changed at %s: mosec-asgi ctl --socket %s status", self._path, self._path)

    def close(self) -> None:
        """Listen no more, and remove the socket's file. Idempotent."""
        self._socket.close()

    async def finish(self) -> None:
        """Let those who have asked for something have their answers, after the service has stopped."""
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=LAST_SECONDS)
            for task in late:
                task.cancel()

    # -- connections -------------------------------------------------------------------------------------------------

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if len(self._serving) >= MOST_CONNECTIONS:
            connection.close()
        else:
            task = self._loop.create_task(self._serve(connection))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            status, answer = await self._answer(connection)
            if status is not None:
                await asyncio.wait_for(self._loop.sock_sendall(connection, _encoded(status, answer)), SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            # The other side has left, or does not read. What it has asked for is done.
            logger.debug("an answer was not taken at the admin socket: %s", error)
        finally:
            connection.close()

    async def _answer(self, connection: socket.socket) -> tuple[HTTPStatus | None, Any]:
        """Return the status and the content of an answer; no status where nothing was asked."""
        try:
            asked = await asyncio.wait_for(_read(self._loop, connection), SECONDS)
            return (None, None) if asked is None else (HTTPStatus.OK, await self._do(asked))
        except asyncio.TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT, {"error": f"the request did not arrive within {SECONDS:g} s"}
        except Refused as error:
            return error.status, {"error": str(error)}
        except h11.RemoteProtocolError as error:
            return HTTPStatus.BAD_REQUEST, {"error": f"no request of HTTP: {error}"}
        except DefinitionError as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except (StartupError, MosecError) as error:
            return HTTPStatus.CONFLICT, {"error": str(error)}
        except Exception:
            logger.exception("a request at the admin socket has failed")
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error; the service's log says more"}

    # -- what can be asked -------------------------------------------------------------------------------------------

    async def _do(self, asked: Asked) -> Any:
        if asked.path in ("/", "/status"):
            if asked.method != "GET":
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{asked.path} is read by GET")
            return self._status()
        actions: dict[str, Callable[[Mapping[str, Any]], Awaitable[None]]] = {
            "/scale": self._scale,
            "/configure": self._configure,
            "/restart": self._restart,
        }
        if asked.path not in actions:
            there = ", ".join(["GET /status", *(f"POST {path}" for path in actions)])
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no {asked.path[:100]!r}; there are {there}")
        if asked.method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{asked.path} is asked by POST")
        await actions[asked.path](_fields(asked.body))
        return self._status()

    async def _scale(self, fields: Mapping[str, Any]) -> None:
        _check_names(fields, needed=("stage", "num"))
        await self._steering.scale(fields["stage"], fields["num"])

    async def _configure(self, fields: Mapping[str, Any]) -> None:
        _check_names(fields, needed=("stage",), also=self._steering.CONFIGURABLE)
        await self._steering.configure(**fields)

    async def _restart(self, fields: Mapping[str, Any]) -> None:
        _check_names(fields, also=("stage",))
        await self._steering.restart(fields.get("stage"))

    def _status(self) -> dict[str, Any]:
        told = self._report().as_dict()
        return {**told, "pid": os.getpid(), "values": self._steering.all_values()}


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, 'the body is an object of JSON, such as {"stage": "Inference_1"}')
    return fields


def _check_names(fields: Mapping[str, Any], needed: tuple[str, ...] = (), also: tuple[str, ...] = ()) -> None:
    missing = [name for name in needed if name not in fields]
    unknown = [name for name in fields if name not in (*needed, *also)]
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0][:100]!r} is not known here"
        raise Refused(HTTPStatus.BAD_REQUEST, f"{what}; the fields are {', '.join((*needed, *also))}")


async def _read(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> Asked | None:
    """Read a request; None where the other side has left without one."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
    method = path = ""
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await loop.sock_recv(connection, _READ_BYTES))
        elif isinstance(event, h11.Request):
            method, path = event.method.decode(), event.target.decode(errors="replace").partition("?")[0]
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MOST_BODY:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {MOST_BODY} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Asked(method, path, body)
        else:
            return None


def _encoded(status: HTTPStatus, content: Any) -> bytes:
    body = orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def _cannot(path: str, why: str) -> str:
    return (
        f"no admin socket at {path}: {why}. Choose another path with the setting admin_socket (--admin-socket, "
        "MOSEC_ADMIN_SOCKET)"
    )
