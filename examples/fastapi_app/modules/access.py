"""Who may call: those with the key, in the app's own routes and in what is mounted."""

import os
import secrets
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import APIKeyHeader
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

API_KEY = os.environ.get("API_KEY", "")


def check_key(key: Annotated[str | None, Depends(APIKeyHeader(name="x-api-key", auto_error=False))]) -> None:
    """Refuse a request without the right key."""
    if API_KEY and not secrets.compare_digest((key or "").encode(), API_KEY.encode()):
        raise HTTPException(401, "send the right key in the header x-api-key")


class NeedsKey:
    """`Depends(check_key)` for an app that is mounted: FastAPI's dependencies do not reach there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key of a call of a model; documents, health and metrics are free."""
        if scope["type"] == "http" and scope["method"] == "POST":
            check_key(Headers(scope=scope).get("x-api-key"))
        await self.app(scope, receive, send)
