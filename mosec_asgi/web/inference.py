"""Request -> task -> response, on the hot path: plain ASGI, no Starlette object, no task and no timer per request."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import Receive, Scope, Send

from mosec_asgi.batching.service import CLIENT_LEFT, Service
from mosec_asgi.errors import Failure
from mosec_asgi.metrics import ServiceMetrics
from mosec_asgi.web import compression
from mosec_asgi.web.body import EMPTY, ClientLeft, read_body
from mosec_asgi.web.responses import Header, send_failure, send_success

# A request that has waited so long gets a task that notices when its client leaves; most are answered before.
WATCH_AFTER_SECONDS = 0.02
MAX_REQUEST_ID = 128


class RequestIds:
    """Makes request ids: 16 random hex digits for the process, then a count. Unique without a random number each."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._numbers = itertools.count(1)

    def make(self) -> str:
        """Return a new request id of 32 hex digits."""
        return f"{self._prefix}{next(self._numbers):016x}"

    def accept(self, header: bytes) -> str:
        """Return a client's request id; a new one where it is empty, too long or not printable ASCII."""
        text = header.decode("latin-1").strip()
        if 0 < len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable():
            return text
        return self.make()


class DisconnectWatch:
    """Notices clients that leave while they wait, without a task for each request.

    A request is `add`ed when it begins to wait and `discard`ed when it has its answer. One timer for all looks at those
    that were already there at its last look: only for them a task is started that waits for the disconnect.
    """

    def __init__(self, on_leave: Callable[[int], None]) -> None:
        """Watch nothing yet.

        Args:
            on_leave: called with the number of a request whose client has left.
        """
        self._on_leave = on_leave
        self._young: dict[int, Receive] = {}
        self._seen: set[int] = set()
        self._watchers: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: int, receive: Receive) -> None:
        """Begin to watch request number `key`; `receive`, its messages, is read by the watch alone from here on."""
        self._young[key] = receive
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._look)

    def discard(self, key: int) -> None:
        """End the watch on a request."""
        if self._young.pop(key, None) is None:
            watcher = self._watchers.pop(key, None)
            if watcher is not None:
                watcher.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for key in self._seen & self._young.keys():
            self._watchers[key] = loop.create_task(self._watch(key, self._young.pop(key)))
        self._seen = set(self._young)
        self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._look) if self._young else None

    async def _watch(self, key: int, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._watchers.pop(key, None)
        self._on_leave(key)


class InferenceEndpoint:
    """The ASGI app of one inference route."""

    def __init__(
        self,
        path: str,
        route: int,
        content_type: str,
        service: Service,
        metrics: ServiceMetrics,
        *,
        max_request_size: int,
        compressed: bool,
        server: Header,
        request_ids: RequestIds,
        watch: DisconnectWatch,
    ) -> None:
        """Bind a route to the service.

        Args:
            path: the route, as the metrics name it.
            route: its place in the service's list.
            content_type: of a result.
            service: runs the tasks.
            metrics: what to count into.
            max_request_size: bytes of a body.
            compressed: read compressed requests, and compress responses for clients that accept it.
            server: the header that names the server.
            request_ids: makes request ids.
            watch: notices clients that leave.
        """
        self._path = path
        self._route = route
        self._content_type = (b"content-type", content_type.encode("latin-1"))
        self._service = service
        self._metrics = metrics
        self._limit = max_request_size
        self._compression = compressed
        self._server = server
        self._request_ids = request_ids
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        request_id = declared = encoding = accept = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared = value
            elif name == b"x-request-id":
                request_id = self._request_ids.accept(value)
            elif name == b"content-encoding":
                encoding = value
            elif name == b"accept-encoding":
                accept = value
        if request_id is None:
            request_id = self._request_ids.make()
        try:
            body = await self._read(receive, declared, encoding)
        except ClientLeft:
            return
        outcome = body if isinstance(body, Failure) else await self._run(body, request_id, receive)
        if outcome is CLIENT_LEFT:
            return
        common = [(b"x-request-id", request_id.encode("latin-1")), self._server]
        if isinstance(outcome, Failure):
            self._metrics.answered(self._path, outcome.code)
            await send_failure(send, outcome, common)
        else:
            self._metrics.answered(self._path, HTTPStatus.OK.value)
            self._metrics.duration.observe(time.perf_counter() - began)
            if self._compression:
                outcome = await self._packed(outcome, accept, common)
            await send_success(send, outcome, self._content_type, common)

    async def _read(self, receive: Receive, declared: bytes | None, encoding: bytes | None) -> bytes | Failure:
        """Return the body, unpacked, or what is wrong with it."""
        if encoding is None:
            return await read_body(receive, declared, self._limit)
        name = encoding.decode("latin-1").strip().lower()
        if name not in ("", "identity") and not (self._compression and name in compression.supported()):
            return compression.unknown(name, enabled=self._compression)
        body = await read_body(receive, declared, self._limit)
        if isinstance(body, Failure) or name in ("", "identity"):
            return body
        body = await compression.decompress(body, name, self._limit)
        return body or EMPTY

    async def _packed(self, body: bytes, accept: bytes | None, headers: list[Header]) -> bytes:
        """Return a result as the client wants it, and add the headers that say so."""
        headers.append((b"vary", b"accept-encoding"))
        encoding = compression.choose(accept.decode("latin-1")) if accept else None
        if encoding is None or len(body) < compression.LEAST_RESPONSE:
            return body
        headers.append((b"content-encoding", encoding.encode()))
        return await compression.compress(body, encoding)

    async def _run(self, body: bytes, request_id: str, receive: Receive) -> bytes | Failure:
        """Run a request as a task and return its outcome."""
        ticket = self._service.submit(self._route, body, request_id)
        if isinstance(ticket, Failure):
            return ticket
        task_id, outcome = ticket
        self._watch.add(task_id, receive)
        try:
            return await outcome
        except asyncio.CancelledError:
            self._service.cancel(task_id)
            raise
        finally:
            self._watch.discard(task_id)
