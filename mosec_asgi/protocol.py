"""mosec's import path of `HTTPStatusCode`."""

from mosec_asgi.errors import HTTPStatusCode

__all__ = ["HTTPStatusCode"]
