"""The answers to a path that does not exist, and to a method that a route does not take: they say what exists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from mosec_asgi.errors import Failure
from mosec_asgi.web.responses import Response as Answer

# The most routes that a text names.
_MOST = 20


def missing(
    routes: Sequence[str], forms: Mapping[str, Callable[[Failure], Answer]] | None = None
) -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """Return the handlers of a Starlette app for both, by status.

    Args:
        routes: the models' methods and paths, such as `POST /inference`.
        forms: gives the answers a form of a protocol, by what the paths begin with.
    """

    def answer(request: Request, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
        path = path_below(request.scope.get("root_path", ""), request.scope["path"])
        for prefix, form in (forms or {}).items():
            if path.startswith(prefix) or f"{path}/" == prefix:
                told = form(Failure(status, text))
                own = {name.decode("latin-1"): value.decode("latin-1") for name, value in told.headers}
                return Response(told.body, told.status, {**own, **(headers or {})})
        return PlainTextResponse(text, status, headers)

    there = ", ".join(routes[:_MOST])
    if len(routes) > _MOST:
        there += f", and {len(routes) - _MOST} more"

    async def not_found(request: Request, error: Exception) -> Response:
        text = f"Not Found: no such path; there are {there}, and GET /openapi/metadata.json describes all"
        return answer(request, HTTPStatus.NOT_FOUND, text)

    async def wrong_method(request: Request, error: Exception) -> Response:
        headers = dict(getattr(error, "headers", None) or {})
        allowed = next((value for name, value in headers.items() if name.lower() == "allow"), "POST")
        # OPTIONS says what there is, and is nothing to be named among it.
        allowed = ", ".join(sorted(set(allowed.split(", ")) - {"OPTIONS"}))
        headers = {"Allow": allowed}
        text = f"Method Not Allowed: this path does not take {request.method}; it takes {allowed}"
        return answer(request, HTTPStatus.METHOD_NOT_ALLOWED, text, headers)

    return {HTTPStatus.NOT_FOUND: not_found, HTTPStatus.METHOD_NOT_ALLOWED: wrong_method}


def slash_is_added(scope: Scope) -> bool:
    """Whether a framework has added a slash to the client's path, as Litestar does for apps that it mounts."""
    path: str = scope["path"]
    sent: bytes = scope.get("raw_path") or b""
    return path.endswith("/") and len(path) > 1 and bool(sent) and not sent.partition(b"?")[0].endswith(b"/")


def path_below(root: str, path: str) -> str:
    """Return a path as the routes name it: without `root`, the prefix under which a parent app has mounted this one."""
    if not path.startswith(root) or path[len(root) : len(root) + 1] not in ("", "/"):
        return path
    return path[len(root) :]
