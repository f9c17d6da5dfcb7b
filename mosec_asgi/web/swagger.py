"""The Swagger page: its files lie in `assets/`, so that it needs no network.

All addresses in it are relative to the page's own, so that it works below any prefix of a mount or a proxy, even one
that the service does not know.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = Path(__file__).parent / "assets"
# The browser enforces it: the page loads nothing from other hosts. Swagger UI sets styles, and shows a model's results
# as blobs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; base-uri 'none'; form-action 'none'"
)


class Swagger:
    """The endpoints of the page."""

    def __init__(self) -> None:
        self._files = StaticFiles(directory=ASSETS)

    async def page(self, request: Request) -> Response:
        """Send the page, or a file that it asks for."""
        # Not a mount: a proxy may or may not leave the prefix in the path, and only a route works in both cases.
        response = await self._files.get_response(request.path_params["file"] or "index.html", request.scope)
        response.headers["content-security-policy"] = POLICY
        # Browsers must ask each time whether it has changed, since the files keep their names in a new version.
        response.headers["cache-control"] = "no-cache"
        return response

    async def without_slash(self, request: Request) -> Response:
        """Redirect to the page: its relative addresses are right only with the slash at the end."""
        return RedirectResponse("swagger/")
