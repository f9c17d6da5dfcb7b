"""Requests that are answered from their heads, such as those without a key: their bodies are not read.

Only routes that say so (`Route.admits`) pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from mosec_asgi.web.asgi import AsgiExchange
from mosec_asgi.web.direct import DirectRoute
from mosec_asgi.web.exchange import Route, Shared
from mosec_asgi.web.responses import Headers


class HeadFirst:
    """The ASGI app of a route that may answer a head; for all other requests, the one behind it."""

    def __init__(self, endpoint: ASGIApp, route: Route, shared: Shared, *, lingers: bool) -> None:
        """Stand before an endpoint.

        Args:
            endpoint: answers the requests that are admitted.
            route: its route.
            shared: what it has in common with the other routes.
            lingers: see `App`.
        """
        self._endpoint = endpoint
        self._route = route
        self._shared = shared
        self._lingers = lingers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = AsgiExchange(self._route, self._shared, scope, send)
        response = exchange.admit()
        if response is None:
            await self._endpoint(scope, receive, send)
            return
        if self._lingers:
            exchange.linger(receive)
        exchange.answer(response)
        await exchange.send_response()


class AdmittingRoute(DirectRoute):
    """A route on the short way that takes the requests which are admitted; all others are refused by `HeadFirst`."""

    def takes(self, headers: Headers) -> bool:
        """Whether the route admits a request, and its body can be read here."""
        return self._admitted(headers) and super().takes(headers)

    def _admitted(self, headers: Headers) -> bool:
        try:
            return self.route.admit(_Head(headers)) is None
        except KeyboardInterrupt:
            raise
        except BaseException:
            # It is asked once more on the other way, which answers what was raised.
            return False


class _Head:
    """A request whose head has come on the short way; see `exchange.Request`."""

    method = "POST"
    path_params: Mapping[str, Any] = MappingProxyType({})
    query = b""
    context: Any = None
    body = b""
    request_id = ""
    state: Any = None

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
