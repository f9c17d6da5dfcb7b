"""Pages that are files of the package: a folder below a path, with what the browser is told about it.

All addresses in such a page are relative to the page's own, so that it works below any prefix of a mount or a proxy,
even one that the service does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles


class Page:
    """The endpoints of a page: the page itself, its files, and the way to it."""

    def __init__(self, folder: Path, policy: str, made: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Describe the page.

        Args:
            folder: holds `index.html` and the files that it asks for.
            policy: the Content-Security-Policy, which the browser enforces.
            made: what it asks for beside them, as JSON, by the name of the file.
        """
        self._files = StaticFiles(directory=folder)
        self._policy = policy
        self._made = made or {}

    async def file(self, request: Request) -> Response:
        """Send the page, or a file that it asks for, as the path's parameter `file` says."""
        # Not a mount: a proxy may or may not leave the prefix in the path, and only a route works in both cases.
        name = request.path_params["file"] or "index.html"
        made = self._made.get(name)
        if made is None:
            response = await self._files.get_response(name, request.scope)
        else:
            response = JSONResponse(made)
        response.headers["content-security-policy"] = self._policy
        # Browsers must ask each time whether it has changed, since the files keep their names in a new version.
        response.headers["cache-control"] = "no-cache"
        return response

    async def without_slash(self, request: Request) -> Response:
        """Redirect to the page: its relative addresses are right only with the slash at the end."""
        return RedirectResponse(request.scope["path"].rpartition("/")[2] + "/")
