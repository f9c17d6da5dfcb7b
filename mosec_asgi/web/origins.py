"""Starlette's middleware for browsers of other sites (CORS) and for host names, as the settings ask for them."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mosec_asgi.config import Settings, listed
from mosec_asgi.web.keys import HEALTH
from mosec_asgi.web.missing import path_below


class TrustedHosts:
    """Refuses requests to other hosts with 400, but for health: probes ask for an address, such as that of a pod."""

    def __init__(self, app: ASGIApp, allowed_hosts: list[str]) -> None:
        self._app = app
        self._checked = TrustedHostMiddleware(app, allowed_hosts, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        free = path_below(scope.get("root_path", ""), scope["path"]) in HEALTH
        await (self._app if free else self._checked)(scope, receive, send)


def own_middleware(settings: Settings) -> list[Middleware]:
    """Return what requests go through before the user's own middleware."""
    made = []
    if hosts := listed(settings.allowed_hosts):
        made.append(Middleware(TrustedHosts, allowed_hosts=list(hosts)))
    if origins := listed(settings.cors_origins):
        # No credentials: a key is a header of its own, which no browser adds by itself.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
        made.append(cors)
    return made
