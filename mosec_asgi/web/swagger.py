"""The Swagger page: its files lie in `assets/`, so that it needs no network.

All addresses in it are relative to the page's own, so that it works below any prefix of a mount or a proxy, whether or
not the service is told of the prefix.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = Path(__file__).parent / "assets"
# The browser itself holds the page to it: nothing from anywhere else. Swagger UI sets styles, and shows what a model
# has made as blobs.
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
        # Not as a mount: a proxy may or may not leave the prefix in the path, and only a route copes with both.
        response = await self._files.get_response(request.path_params["file"] or "index.html", request.scope)
        response.headers["content-security-policy"] = POLICY
        # Ask each time whether it has changed: the files keep their names when the package is updated.
        response.headers["cache-control"] = "no-cache"
        return response

    async def without_slash(self, request: Request) -> Response:
        """Lead to the page; only with the slash at the end are the page's addresses right."""
        return RedirectResponse("swagger/")
