"""Stands before all routes of a service that has API keys, and answers requests without one from their heads.

Nothing but what `Keys` knows to be open gets past it without a key: a path that is added later is closed. On the short
way (`direct`) only requests with a key are taken; all others go through here. A head that has come before
(`known_heads`) is known with its key, and forgotten when the keys change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from mosec_asgi.errors import Failure
from mosec_asgi.paths import parameters
from mosec_asgi.web.asgi import AsgiExchange, send_response
from mosec_asgi.web.direct import DirectRoute
from mosec_asgi.web.exchange import Route, Shared
from mosec_asgi.web.keys import Keys
from mosec_asgi.web.lingering import lingering_send
from mosec_asgi.web.missing import path_below, slash_is_added
from mosec_asgi.web.protocols import plain
from mosec_asgi.web.responses import Headers, Response

CHALLENGE = (b"www-authenticate", b"Bearer")


class Guard:
    """The ASGI app of all routes, for requests with a key."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        routes: Sequence[Route],
        shared: Shared,
        forms: Mapping[str, Callable[[Failure], Response]],
        *,
        lingers: bool,
    ) -> None:
        """Stand before an app.

        Args:
            app: answers the requests that are let through.
            keys: of the service.
            routes: to models, which refuse in forms of their own.
            shared: what these have in common.
            forms: how requests are refused to other paths, by what they begin with.
            lingers: see `App`.
        """
        self._app = app
        self._keys = keys
        self._routes = {route.path: route for route in routes if not parameters(route.path)}
        self._patterns = [(compile_path(route.path)[0], route) for route in routes if parameters(route.path)]
        self._shared = shared
        self._forms = forms
        self._lingers = lingers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = path_below(scope.get("root_path", ""), scope["path"])
        if slash_is_added(scope):
            path = path[:-1]
        failure = self._keys.refusal(dict(scope["headers"]), path)
        if failure is None:
            await self._app(scope, receive, send)
        else:
            await self._refuse(scope, lingering_send(scope, receive, send) if self._lingers else send, path, failure)

    async def _refuse(self, scope: Scope, send: Send, path: str, failure: Failure) -> None:
        route = self._route_of(path)
        if route is not None:
            exchange = AsgiExchange(route, self._shared, scope, send)
            exchange.answer(_with_challenge(route.refuse(exchange, failure)))
            await exchange.send_response()
            return
        form = next((form for prefix, form in self._forms.items() if path.startswith(prefix)), plain.failed)
        request_id = self._shared.request_ids.of(dict(scope["headers"]))
        common = [(b"x-request-id", request_id.encode()), self._shared.server]
        response = _with_challenge(form(failure))
        await send_response(send, response, common, with_body=scope["method"] != "HEAD")

    def _route_of(self, path: str) -> Route | None:
        found = self._routes.get(path)
        return found or next((route for pattern, route in self._patterns if pattern.match(path)), None)


def _with_challenge(response: Response) -> Response:
    """Return an answer with what a 401 has to say (RFC 9110, section 11.6.1)."""
    if response.status != HTTPStatus.UNAUTHORIZED or any(name == CHALLENGE[0] for name, _ in response.headers):
        return response
    return response._replace(headers=(*response.headers, CHALLENGE))


def keyed(kind: type[DirectRoute], keys: Keys) -> type[DirectRoute]:
    """Return a kind of route on the short way that takes only requests with a key."""

    class Keyed(kind):  # type: ignore[valid-type, misc]  # a class that is not known before
        def takes(self, headers: Headers) -> bool:
            """Whether a request has a key, and its body can be read here."""
            return keys.refusal(headers, self.route.path) is None and super().takes(headers)

    return Keyed
