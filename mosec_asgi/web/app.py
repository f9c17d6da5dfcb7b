"""Routes -> handlers. A request to a model's route is answered at once; all others go through Starlette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response as StarletteResponse
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import Failure
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.paths import parameters
from mosec_asgi.web.access import AccessLog
from mosec_asgi.web.asgi import AsgiExchange, AsgiRoute
from mosec_asgi.web.asgi_streams import StreamRoute
from mosec_asgi.web.body import BodyReader
from mosec_asgi.web.budget import Budget
from mosec_asgi.web.dashboard import DashboardPage
from mosec_asgi.web.direct import DirectRoute, DirectRoutes
from mosec_asgi.web.disconnect import DisconnectWatch
from mosec_asgi.web.exchange import NO_BUDGET, RequestIds, Route, Shared
from mosec_asgi.web.guard import Guard, keyed
from mosec_asgi.web.heads import AdmittingRoute, HeadFirst
from mosec_asgi.web.health import Health
from mosec_asgi.web.keys import Keys
from mosec_asgi.web.limits import DEFAULT, Limits
from mosec_asgi.web.lingering import Lingering
from mosec_asgi.web.methods import ByMethod, taken
from mosec_asgi.web.missing import missing, path_below, slash_is_added
from mosec_asgi.web.openapi import OpenAPI
from mosec_asgi.web.page import Page
from mosec_asgi.web.responses import Response
from mosec_asgi.web.root import Root
from mosec_asgi.web.swagger import swagger
from mosec_asgi.web.whole import Here, Whole

if TYPE_CHECKING:
    from mosec_asgi.observing.tracing import Tracing


class App:
    """The ASGI app of a running service.

    Attributes:
        outermost: answers a request: the routes, behind the middleware and the access log.
        shared: what the exchanges of all routes have in common.
        direct_routes: the routes that our HTTP protocols may call without ASGI, by path as it stands in a request; none
            where middleware must see each request.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        engine: Engine,
        metrics: ServiceMetrics,
        document: Callable[[], dict[str, Any]],
        *,
        max_request_size: int,
        compressed: bool,
        server: str,
        custom: CustomMetrics | None = None,
        body_memory: int = NO_BUDGET,
        limits: Limits = DEFAULT,
        access_log: bool = False,
        lingers: bool = False,
        middleware: Sequence[Middleware] = (),
        tracing: Tracing | None = None,
        forms: Mapping[str, Callable[[Failure], Response]] | None = None,
        title: str = "mosec-asgi service",
        dashboard: DashboardPage | None = None,
        keys: Keys | None = None,
        whole: Whole | None = None,
    ) -> None:
        """Build the routes.

        Args:
            routes: of the protocols in which clients speak to models.
            engine: runs their calls.
            metrics: what to count into, and show.
            document: makes the OpenAPI document.
            max_request_size: bytes of a request's body, unpacked.
            compressed: read compressed requests, and compress results for clients that accept it; streams never are.
            server: what the `server` header says.
            custom: the users' own metrics, if they are shown.
            body_memory: bytes of all bodies that are held at one time; one alone always has room.
            limits: for the time in which bodies must arrive.
            access_log: log a line for each request.
            lingers: an answer that is given early needs help to arrive; see `lingering`.
            middleware: what each request goes through, health and documents included; the first is the outermost.
            tracing: makes the spans of requests.
            forms: how requests are refused for which there is no route, by what their paths begin with.
            title: of the service.
            dashboard: the live page, if there is one.
            keys: of which a request must bring one; None lets everybody in.
            whole: what is shown of the service; None for that of `engine`, `metrics` and `custom`.
        """
        health = Health(whole or Here(engine, metrics, custom))
        names = [f"{', '.join(route.methods)} {route.path}" for route in routes]
        self.shared = shared = Shared(
            engine,
            metrics,
            RequestIds(),
            (b"server", server.encode("latin-1")),
            max_request_size,
            compressed=compressed,
            logged=access_log,
            budget=Budget(max(body_memory, max_request_size)),
            tracing=tracing,
            keys=keys,
            limits=limits,
        )
        watch: DisconnectWatch[AsgiExchange] = DisconnectWatch(AsgiExchange.leave)
        bodies = BodyReader(shared.limit, limits, shared.budget)
        endpoints: list[tuple[Route, ASGIApp]] = []
        for route in routes:
            kind = StreamRoute if route.streams else AsgiRoute
            endpoint: ASGIApp = kind(route, shared, watch, bodies, lingers=lingers)
            if route.admits:
                endpoint = HeadFirst(endpoint, route, shared, lingers=lingers)
            endpoints.append((route, endpoint))
        # By POST to a path without parameters; all else goes through Starlette.
        posted = [each for each in endpoints if "POST" in each[0].methods and not parameters(each[0].path)]
        self._models = {route.path: endpoint for route, endpoint in posted}
        self.direct_routes = DirectRoutes(
            (route.path.encode(), _direct_kind(route, keys)(route, shared))
            for route, _ in posted
            if not (route.streams or route.takes_request or middleware) and _is_plain(route.path)
        )
        self._rest = Starlette(
            routes=[
                StarletteRoute("/", Root(title, names, dashboard=dashboard is not None).answer),
                StarletteRoute("/livez", health.livez),
                StarletteRoute("/readyz", health.readyz),
                StarletteRoute("/metrics", health.metrics),
                StarletteRoute("/openapi/metadata.json", OpenAPI(document).metadata),
                *_page_routes("/openapi/swagger", swagger(dashboard=dashboard is not None)),
                *([] if dashboard is None else _page_routes("/dashboard", dashboard, dashboard.data)),
                # Of two that fit a request the first counts: one without parameters fits better than one with some.
                *(
                    _ModelRoute(route.path, ByMethod(endpoint, route.methods, shared), methods=taken(route.methods))
                    for route, endpoint in sorted(endpoints, key=lambda each: bool(parameters(each[0].path)))
                ),
            ],
            middleware=[*([Middleware(Lingering)] if lingers else []), Middleware(_ServerHeader, server=server)],
            exception_handlers=missing(names, forms or {}),
        )
        # As in mosec, a path with an extra slash is not a route; after a redirect, clients would send a POST twice.
        self._rest.router.redirect_slashes = False
        answer: ASGIApp = self._answer
        if keys is not None:
            # Behind the middleware: what that answers, such as a browser's question before a request, has no key.
            answer = Guard(answer, keys, [route for route, _ in endpoints], shared, forms or {}, lingers=lingers)
            keys.on_change = self.direct_routes.known.heads.clear
        if middleware:
            answer = _as_coroutine(answer)
        for each in reversed(middleware):
            answer = each.cls(answer, *each.args, **each.kwargs)
        self.outermost = AccessLog(answer) if access_log else answer

    # Not a coroutine: this function returns one that the caller awaits. A coroutine more would cost each request the
    # time to make it, and to pass through it twice.
    def _answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["method"] == "POST":
            path = scope["path"]
            root = scope.get("root_path")
            endpoint = self._models.get(path_below(root, path) if root else path)
            if endpoint is not None:
                return endpoint(scope, receive, send)
        if slash_is_added(scope):
            # No path of ours but `/` ends in a slash.
            return self._answer({**scope, "path": scope["path"][:-1]}, receive, send)
        return self._rest(scope, receive, send)


def _page_routes(
    path: str, page: Page, data: Callable[[Request], Awaitable[StarletteResponse]] | None = None
) -> list[StarletteRoute]:
    """Return the routes of a page, and of the data beneath it."""
    routes = [StarletteRoute(path, page.without_slash), StarletteRoute(f"{path}/{{file:path}}", page.file)]
    return routes if data is None else [StarletteRoute(f"{path}/data", data), *routes]


def _direct_kind(route: Route, keys: Keys | None) -> type[DirectRoute]:
    kind = AdmittingRoute if route.admits else DirectRoute
    return kind if keys is None else keyed(kind, keys)


def _as_coroutine(app: ASGIApp) -> ASGIApp:
    """Return an app as a coroutine function: some middleware takes any other callable for an app of ASGI 2."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return answer


def _is_plain(path: str) -> bool:
    """Whether a path stands unchanged in a request: it needs no encoding and has no special characters."""
    return path.isascii() and path.isprintable() and not set(path) & set(" %?#")


class _ModelRoute(StarletteRoute):
    """A model's route, whose path may have parameters."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether a request is for this route. A parameter that cannot be read is no such parameter."""
        try:
            return super().matches(scope)
        except ValueError:
            # Python reads no integer of more than 4300 digits.
            return Match.NONE, {}


class _ServerHeader:
    """Adds the `server` header to Starlette's answers; the models' routes add it themselves."""

    def __init__(self, app: ASGIApp, server: str) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["server"] = self._server
            await send(message)

        await self._app(scope, receive, send_with_header)
