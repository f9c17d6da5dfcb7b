"""What the model routes share: what they read of a request, and the parts of the app that they work with."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import Receive

from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import Failure
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.web import compression
from mosec_asgi.web.body import EMPTY, read_body
from mosec_asgi.web.disconnect import DisconnectWatch
from mosec_asgi.web.responses import Header

# A request's headers by name, in lower case; of one that is there twice, the last.
Headers = Mapping[bytes, bytes]

MAX_REQUEST_ID = 128
BAD_TIMEOUT = Failure(
    HTTPStatus.BAD_REQUEST, "the header x-request-timeout must be a whole number of milliseconds, at least 1"
)


class RequestIds:
    """Gives requests their ids: the client's, or 16 random hex digits for the process and a count.

    The latter are unique without a random number for each.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._numbers = itertools.count(1)

    def of(self, headers: Headers) -> str:
        """Return the client's request id; one of 32 hex digits where it is missing, too long or no printable ASCII."""
        header = headers.get(b"x-request-id")
        if header is not None:
            text = header.decode("latin-1").strip()
            if 0 < len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable():
                return text
        return f"{self._prefix}{next(self._numbers):016x}"


def timeout_of(headers: Headers) -> float | Failure | None:
    """Return how many seconds the client waits for an answer, or what is wrong with what it says.

    Returns:
        seconds, more than 0; None where the client leaves it to the service.
    """
    header = headers.get(b"x-request-timeout")
    if header is None:
        return None
    # As a float a number of any length has a value; all that can be too large is far above the service's own timeout.
    return (float(header) / 1000 if header.isdigit() else 0.0) or BAD_TIMEOUT


class BodyReader:
    """Reads bodies within the service's limit, and unpacks those that come compressed."""

    def __init__(self, limit: int, *, compressed: bool) -> None:
        """Set the bounds.

        Args:
            limit: bytes of a body, unpacked.
            compressed: read compressed bodies; otherwise they are refused.
        """
        self._limit = limit
        self._compressed = compressed

    # No coroutine of its own, see `App`.
    def read(self, headers: Headers, receive: Receive) -> Awaitable[bytes | Failure]:
        """Return a request's body, at least one byte long, or what is wrong with it.

        Raises:
            ClientLeft: the client went away.
        """
        declared, encoding = headers.get(b"content-length"), headers.get(b"content-encoding")
        if encoding is None:
            return read_body(receive, declared, self._limit)
        return self._read_encoded(receive, declared, encoding)

    async def _read_encoded(self, receive: Receive, declared: bytes | None, encoding: bytes) -> bytes | Failure:
        name = encoding.decode("latin-1").strip().lower()
        if name not in ("", "identity") and not (self._compressed and name in compression.supported()):
            return compression.unknown(name, enabled=self._compressed)
        body = await read_body(receive, declared, self._limit)
        if isinstance(body, Failure) or name in ("", "identity"):
            return body
        body = await compression.decompress(body, name, self._limit)
        return body or EMPTY


@dataclass(frozen=True, slots=True)
class Shared:
    """What the endpoints of an app's model routes have in common.

    Attributes:
        service: runs the tasks.
        metrics: what to count into.
        bodies: reads the requests' bodies.
        request_ids: gives requests their ids.
        watch: notices clients that leave.
        server: the header that names the server.
        compressed: compress results for clients that accept it.
    """

    service: Engine
    metrics: ServiceMetrics
    bodies: BodyReader
    request_ids: RequestIds
    watch: DisconnectWatch
    server: Header
    compressed: bool
