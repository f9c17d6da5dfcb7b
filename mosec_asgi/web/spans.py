"""What the span of a request says of it, by OpenTelemetry's conventions for HTTP servers."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from mosec_asgi.web.responses import Headers

_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:]+)(:(?P<port>\d{1,5}))?")
# Characters of a header that a span shows.
MOST_TEXT = 256


class About(NamedTuple):
    """What only the transport knows of a request.

    Attributes:
        path: as it was asked for.
        scheme: http or https.
        client: the address of the other end; empty where that is not known.
        seconds: since its head came.
    """

    path: str
    scheme: str
    client: str
    seconds: float


class Traced(Protocol):
    """A request; see `web.exchange.Request`."""

    method: str
    headers: Headers
    body: bytes
    request_id: str


def attributes(request: Traced, route: str, about: About) -> dict[str, str | int]:
    """Return the attributes of a request's span. The query is not among them, nor anything of the body but its size."""
    said: dict[str, str | int] = {
        "http.request.method": request.method,
        "http.route": route,
        "url.path": about.path[:MOST_TEXT],
        "url.scheme": about.scheme,
        "http.request.body.size": len(request.body),
        "mosec.request_id": request.request_id,
    }
    if about.client:
        said["client.address"] = about.client
    if agent := request.headers.get(b"user-agent"):
        said["user_agent.original"] = agent.decode("latin-1")[:MOST_TEXT]
    found = _HOST.fullmatch(request.headers.get(b"host", b"").decode("latin-1"))
    if found:
        said["server.address"] = found["name"][:MOST_TEXT]
        if found["port"]:
            said["server.port"] = int(found["port"])
    return said
