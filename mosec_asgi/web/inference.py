"""Request -> task -> response, on the hot path: plain ASGI, no Starlette object, no task and no timer per request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from mosec_asgi.batching.engine import CLIENT_LEFT, Outcome, outcome_future
from mosec_asgi.errors import Failure
from mosec_asgi.web import compression
from mosec_asgi.web.body import ClientLeft
from mosec_asgi.web.request import Headers, Shared, timeout_of
from mosec_asgi.web.responses import Header, send_failure, success


class InferenceEndpoint:
    """The ASGI app of a route whose results come whole.

    Attributes:
        content_type: the header of a result.
        server: the header that names the server.
        request_ids: gives requests their ids.
    """

    def __init__(self, path: str, route: int, content_type: str, shared: Shared) -> None:
        """Bind a route to the service.

        Args:
            path: the route, as the metrics name it.
            route: its place in the service's list.
            content_type: of a result.
            shared: what it has in common with the other routes.
        """
        self.content_type = (b"content-type", content_type.encode("latin-1"))
        self.server = shared.server
        self.request_ids = shared.request_ids
        self._path = path
        self._route = route
        self._service = shared.service
        self._metrics = shared.metrics
        self._bodies = shared.bodies
        self._watch = shared.watch
        self._compression = shared.compressed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = self.request_ids.of(headers)
        try:
            body = await self._bodies.read(headers, receive)
        except ClientLeft:
            return
        future, resolve = outcome_future()
        task_id = body if isinstance(body, Failure) else self.submit(body, headers, request_id, resolve)
        outcome: Outcome
        if isinstance(task_id, Failure):
            outcome = task_id
        else:
            self._watch.add(task_id, receive)
            try:
                outcome = await future
            except asyncio.CancelledError:
                self.cancel(task_id)
                raise
            finally:
                self._watch.discard(task_id)
            if outcome is CLIENT_LEFT:
                return
        common = [(b"x-request-id", request_id.encode()), self.server]
        self.count(outcome, began)
        if isinstance(outcome, Failure):
            await send_failure(send, outcome, common)
        else:
            if self._compression:
                outcome = await self._packed(outcome, headers.get(b"accept-encoding"), common)
            for message in success(outcome, self.content_type, common):
                await send(message)

    def submit(
        self, body: bytes, headers: Headers, request_id: str, on_outcome: Callable[[Outcome], None]
    ) -> int | Failure:
        """Have a request admitted as a task, or return what speaks against it; see `Engine.submit`."""
        timeout = timeout_of(headers)
        if isinstance(timeout, Failure):
            return timeout
        return self._service.submit(self._route, body, request_id, on_outcome, timeout)

    def cancel(self, task_id: int) -> None:
        """Drop a task whose client has left."""
        self._service.cancel(task_id)

    def count(self, outcome: Outcome, began: float) -> None:
        """Count an answer to a request that came at `began`, in seconds of `time.perf_counter`."""
        if isinstance(outcome, Failure):
            self._metrics.answered(self._path, outcome.code)
        else:
            self._metrics.answered(self._path, 200)
            self._metrics.duration.observe(time.perf_counter() - began)

    async def _packed(self, body: bytes, accept: bytes | None, headers: list[Header]) -> bytes:
        """Return a result as the client wants it, and add the headers that say so."""
        headers.append((b"vary", b"accept-encoding"))
        encoding = compression.choose(accept.decode("latin-1")) if accept else None
        if encoding is None or len(body) < compression.LEAST_RESPONSE:
            return body
        headers.append((b"content-encoding", encoding.encode()))
        return await compression.compress(body, encoding)
