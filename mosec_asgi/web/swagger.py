"""The Swagger page: its files lie in `assets/`, so that it needs no network."""

from __future__ import annotations

from pathlib import Path

from mosec_asgi.web.page import Page

ASSETS = Path(__file__).parent / "assets"
# The browser enforces it: the page loads nothing from other hosts. Swagger UI sets styles, and shows a model's results
# as blobs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; base-uri 'none'; form-action 'none'"
)


def swagger(*, dashboard: bool) -> Page:
    """Return the endpoints of the page, which leads to the dashboard where there is one."""
    return Page(ASSETS, POLICY, {"links.json": {"dashboard": dashboard}})
