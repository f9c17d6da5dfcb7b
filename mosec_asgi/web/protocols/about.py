"""A request as workers, and functions of the user's, are told of it."""

from __future__ import annotations

from uuid import UUID

from mosec_asgi import request as requests
from mosec_asgi.web.exchange import Request


def told(request: Request, path: str) -> requests.Request:
    """Return what is told of a request that came by the route `path`."""
    headers = requests.Headers(
        {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
    )
    return requests.Request(
        request.request_id,
        path,
        request.method,
        headers,
        request.query.decode("latin-1"),
        # An app around this one may have kinds of its own, of which a worker knows nothing.
        {
            name: value if isinstance(value, (str, int, float, UUID)) else str(value)
            for name, value in request.path_params.items()
        },
        headers.get("traceparent", ""),
        requests.packed_state(request.context),
    )
