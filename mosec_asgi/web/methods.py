"""Methods of HTTP: what a model's route answers to each of those that it takes, and to OPTIONS."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from mosec_asgi.web.asgi import send_response
from mosec_asgi.web.exchange import Shared
from mosec_asgi.web.lingering import OWN
from mosec_asgi.web.responses import Response


def taken(methods: Sequence[str]) -> list[str]:
    """Return all methods that a route takes: HEAD comes with GET, and OPTIONS is always answered."""
    return sorted({*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"})


class ByMethod:
    """The endpoint of a model's route, for requests that Starlette has found it for."""

    def __init__(self, endpoint: ASGIApp, methods: Sequence[str], shared: Shared) -> None:
        """Lead to a model.

        Args:
            endpoint: answers the methods that are the model's.
            methods: these.
            shared: what it has in common with other routes.
        """
        self._endpoint = endpoint
        self._allow = ", ".join(taken(methods)).encode()
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; one by OPTIONS says what others there may be."""
        if scope["method"] != "OPTIONS":
            scope[OWN] = True
            await self._endpoint(scope, receive, send)
            return
        request_id = self._shared.request_ids.of(dict(scope["headers"]))
        common = [(b"x-request-id", request_id.encode()), self._shared.server]
        await send_response(send, Response(204, ((b"allow", self._allow),), b""), common)
