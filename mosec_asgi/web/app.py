"""Routes -> handlers. A request to an inference route takes the short way; all others go through Starlette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosec_asgi.batching.service import Service
from mosec_asgi.metrics import ServiceMetrics
from mosec_asgi.web.direct import DirectRoute
from mosec_asgi.web.disconnect import DisconnectWatch
from mosec_asgi.web.health import Health
from mosec_asgi.web.inference import InferenceEndpoint
from mosec_asgi.web.missing import missing
from mosec_asgi.web.openapi import OpenAPI
from mosec_asgi.web.request import BodyReader, RequestIds, Shared
from mosec_asgi.web.sse import StreamEndpoint
from mosec_asgi.web.swagger import Swagger


@dataclass(frozen=True, slots=True)
class Egress:
    """What a route answers, as its last worker says.

    Attributes:
        content_type: of a result.
        streams: a result is a stream.
    """

    content_type: str
    streams: bool


class App:
    """The ASGI app of a running service.

    Attributes:
        direct_routes: those that a protocol of ours need not ask through ASGI, by path as it stands in a request.
    """

    def __init__(
        self,
        routes: Mapping[str, Egress],
        service: Service,
        metrics: ServiceMetrics,
        document: Callable[[], dict[str, Any]],
        *,
        max_request_size: int,
        compressed: bool,
        server: str,
    ) -> None:
        """Build the routes.

        Args:
            routes: what is answered there by path, in the order of the service's list.
            service: runs the tasks.
            metrics: what to count into, and show.
            document: makes the OpenAPI document.
            max_request_size: bytes of a request's body, unpacked.
            compressed: read compressed requests, and compress results for clients that accept it; streams never are.
            server: what the `server` header says.
        """
        health, swagger = Health(service, metrics), Swagger()
        shared = Shared(
            service,
            metrics,
            BodyReader(max_request_size, compressed=compressed),
            RequestIds(),
            DisconnectWatch(service.cancel),
            (b"server", server.encode("latin-1")),
            compressed,
        )
        self._inference: dict[str, InferenceEndpoint | StreamEndpoint] = {
            path: (StreamEndpoint if egress.streams else InferenceEndpoint)(path, place, egress.content_type, shared)
            for place, (path, egress) in enumerate(routes.items())
        }
        self.direct_routes = {
            path.encode(): DirectRoute(endpoint, max_request_size)
            for path, endpoint in self._inference.items()
            if isinstance(endpoint, InferenceEndpoint) and not compressed and _is_plain(path)
        }
        self._rest = Starlette(
            routes=[
                Route("/", health.root),
                Route("/livez", health.livez),
                Route("/readyz", health.readyz),
                Route("/metrics", health.metrics),
                Route("/openapi/metadata.json", OpenAPI(document).metadata),
                Route("/openapi/swagger", swagger.without_slash),
                Route("/openapi/swagger/{file:path}", swagger.page),
                # Here as well, for the answers to a wrong method.
                *(Route(path, endpoint, methods=["POST"]) for path, endpoint in self._inference.items()),
            ],
            middleware=[Middleware(_ServerHeader, server=server)],
            exception_handlers=missing(tuple(routes)),
        )
        # A path with a slash too many is no route, as in mosec; a redirected POST would be sent twice.
        self._rest.router.redirect_slashes = False

    # Here and where else it says so, a plain function returns what is to be awaited: a coroutine between two others
    # costs each request, for it is made, and gone through on the way down and up again.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request."""
        if scope["method"] == "POST":
            endpoint = self._inference.get(_path_below_mount(scope))
            if endpoint is not None:
                return endpoint(scope, receive, send)
        return self._rest(scope, receive, send)


def _path_below_mount(scope: Scope) -> str:
    """Return the path as the routes name it: without the prefix under which a parent app has mounted this one."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if not root or not path.startswith(root) or path[len(root) : len(root) + 1] not in ("", "/"):
        return path
    return path[len(root) :]


def _is_plain(path: str) -> bool:
    """Whether a path stands in a request as it is: nothing of it is encoded, and nothing of it means anything else."""
    return path.isascii() and path.isprintable() and not set(path) & set(" %?#")


class _ServerHeader:
    """Adds the `server` header to what Starlette answers; the inference routes do it themselves."""

    def __init__(self, app: ASGIApp, server: str) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["server"] = self._server
            await send(message)

        await self._app(scope, receive, send_with_header)
