"""A log line for each request, if the setting `access_log` asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosec_asgi import log
from mosec_asgi.errors import CANCELLED
from mosec_asgi.web.exchange import RequestIds

# Characters of a path that are shown as they are (RFC 3986, `pchar` and the slash); others are percent-encoded, so that
# a path cannot write log lines of its own.
_PATH = "/:@!$&'()*+,;="

logger = log.internal_logger(__name__)


class AccessLog:
    """An app around another, which logs how each request has ended: once, at the end of the response.

    The line shows neither the content of a request nor the query of its path.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.perf_counter) -> None:
        """Wrap an app.

        Args:
            app: answers the requests.
            clock: seconds.
        """
        self._app = app
        self._clock = clock
        self._request_ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began = self._clock()
        status, finished = 0, False

        async def watched(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)

        # The id is chosen here, because a client that leaves at once gets no answer from which to read it.
        request_id = self._request_ids.of(dict(scope["headers"]))
        scope = {**scope, "headers": [*scope["headers"], (b"x-request-id", request_id.encode())]}
        error = 500
        try:
            await self._app(scope, receive, watched)
            error = CANCELLED
        finally:
            seconds = self._clock() - began
            log_end(scope["method"], scope["path"], status or error, request_id, seconds, finished=finished)


def log_end(method: str, path: str, status: int, request_id: str, seconds: float, *, finished: bool = True) -> None:
    """Log how a request has ended.

    Args:
        method: of the request.
        path: of the request, decoded.
        status: of the answer; `errors.CANCELLED` where the client had left.
        request_id: of the request.
        seconds: from its arrival to its end.
        finished: the answer was sent to its end.
    """
    path, milliseconds = quote(path, safe=_PATH), seconds * 1000
    extra = {
        "request_id": request_id,
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(milliseconds, 3),
    }
    left = "" if finished or status == CANCELLED else ", not finished,"
    logger.info("%s %s %d%s in %.1f ms", method, path, status, left, milliseconds, extra=extra)
