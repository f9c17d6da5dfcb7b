"""What a browser is shown at `/`: what the service is, and the way to its pages. Other clients get mosec's line."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

TEXT = "mosec-asgi service"
# The most routes that are named.
_MOST = 50
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
ul { padding-left: 1.2rem; }
code { font-size: 0.95em; }
.what { opacity: 0.7; margin-top: 0; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


class Root:
    """The endpoint of `/`."""

    def __init__(self, title: str, routes: Sequence[str], *, dashboard: bool) -> None:
        """Write the page.

        Args:
            title: of the service.
            routes: methods and paths, such as `POST /inference`.
            dashboard: there is a dashboard.
        """
        links = [("openapi/swagger/", "Try it out", "the contract (OpenAPI), with a form for each route")]
        if dashboard:
            links.append(("dashboard/", "Dashboard", "how it does: throughput, latency, queues, workers"))
        links += [
            ("openapi/metadata.json", "Contract", "the same as JSON"),
            ("metrics", "Metrics", "for Prometheus"),
            ("readyz", "Readiness", "whether each stage has a worker"),
        ]
        paths = "".join(f"<li><code>{html.escape(route)}</code></li>" for route in routes[:_MOST])
        if len(routes) > _MOST:
            paths += f"<li>and {len(routes) - _MOST} more</li>"
        ways = "".join(f'<li><a href="{to}">{name}</a>: {text}</li>' for to, name, text in links)
        name = html.escape(title)
        self._page = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{name}</title><style>{_STYLE}</style></head><body>"
            f'<h1>{name}</h1><p class="what">a model service, by mosec-asgi</p>'
            f"<ul>{ways}</ul><p>It answers</p><ul>{paths}</ul></body></html>\n"
        )

    async def answer(self, request: Request) -> Response:
        """Show a browser the page, and tell all others that the service is there, as mosec does."""
        # Two clients behind one cache must not get each other's form.
        headers = {"vary": "accept"}
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(TEXT, headers=headers)
        return HTMLResponse(self._page, headers={**headers, "content-security-policy": POLICY})
