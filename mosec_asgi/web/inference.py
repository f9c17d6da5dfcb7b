"""Request -> task -> response, on the hot path: plain ASGI, no Starlette object, no task and no timer per request."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Receive, Scope, Send

from mosec_asgi.batching.service import CLIENT_LEFT, Ticket
from mosec_asgi.errors import Failure
from mosec_asgi.web import compression
from mosec_asgi.web.body import ClientLeft
from mosec_asgi.web.request import Headers, Shared, timeout_of
from mosec_asgi.web.responses import Header, send_failure, success


class InferenceEndpoint:
    """The ASGI app of a route whose results come whole."""

    def __init__(self, path: str, route: int, content_type: str, shared: Shared) -> None:
        """Bind a route to the service.

        Args:
            path: the route, as the metrics name it.
            route: its place in the service's list.
            content_type: of a result.
            shared: what it has in common with the other routes.
        """
        self._path = path
        self._route = route
        self._content_type = (b"content-type", content_type.encode("latin-1"))
        self._service = shared.service
        self._metrics = shared.metrics
        self._bodies = shared.bodies
        self._request_ids = shared.request_ids
        self._watch = shared.watch
        self._server = shared.server
        self._compression = shared.compressed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = self._request_ids.of(headers)
        try:
            body = await self._bodies.read(headers, receive)
        except ClientLeft:
            return
        ticket = body if isinstance(body, Failure) else self._submit(body, headers, request_id)
        outcome: bytes | Failure
        if isinstance(ticket, Failure):
            outcome = ticket
        else:
            task_id, result = ticket
            self._watch.add(task_id, receive)
            try:
                outcome = await result
            except asyncio.CancelledError:
                self._service.cancel(task_id)
                raise
            finally:
                self._watch.discard(task_id)
            if outcome is CLIENT_LEFT:
                return
        common = [(b"x-request-id", request_id.encode()), self._server]
        if isinstance(outcome, Failure):
            self._metrics.answered(self._path, outcome.code)
            await send_failure(send, outcome, common)
        else:
            self._metrics.answered(self._path, 200)
            self._metrics.duration.observe(time.perf_counter() - began)
            if self._compression:
                outcome = await self._packed(outcome, headers.get(b"accept-encoding"), common)
            for message in success(outcome, self._content_type, common):
                await send(message)

    async def _packed(self, body: bytes, accept: bytes | None, headers: list[Header]) -> bytes:
        """Return a result as the client wants it, and add the headers that say so."""
        headers.append((b"vary", b"accept-encoding"))
        encoding = compression.choose(accept.decode("latin-1")) if accept else None
        if encoding is None or len(body) < compression.LEAST_RESPONSE:
            return body
        headers.append((b"content-encoding", encoding.encode()))
        return await compression.compress(body, encoding)

    def _submit(self, body: bytes, headers: Headers, request_id: str) -> Ticket | Failure:
        """Have a request admitted as a task, or return what speaks against it."""
        timeout = timeout_of(headers)
        if isinstance(timeout, Failure):
            return timeout
        return self._service.submit(self._route, body, request_id, timeout)
