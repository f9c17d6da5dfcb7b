"""Heads of requests that have come before: whoever knows one need not read it again.

A client sends nearly the same head with each of its requests; often only the length of the body differs. A parser calls
from C into Python for the beginning of a message, its URL, each header and each end. So a request that came with one
read and took the short way (`direct`) leaves its head here, and one with the same bytes is submitted at once.
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

from mosec_asgi.web.responses import Headers

# Together they bound the memory: usual heads take less than 1 MiB, heads of nothing but tiny headers 12 MiB.
MAX_HEADS = 512
MAX_HEAD_SIZE = 1024
# These differ with each request: a head with one of them will not come again.
UNIQUE = frozenset((b"x-request-id", b"traceparent", b"idempotency-key"))
END = b"\r\n\r\n"

RouteT = TypeVar("RouteT")
# What a head says: whose request it is; its headers, not to be changed; and the bytes of its body.
KnownHead: TypeAlias = tuple[RouteT, Headers, int]


class KnownHeads(Generic[RouteT]):
    """The heads of one service's requests.

    Attributes:
        heads: by their bytes, the empty line at the end among them.
    """

    __slots__ = ("heads",)

    def __init__(self) -> None:
        """Begin with none."""
        self.heads: dict[bytes, KnownHead[RouteT]] = {}

    def learn(self, head: bytes, route: RouteT, headers: Headers, size: int) -> None:
        """Keep a head, if it may come again; the oldest are given up for the newest, all at once."""
        # A known one is read again where it could not be taken at once, as with the first request of a connection.
        if head in self.heads or not UNIQUE.isdisjoint(headers):
            return
        if len(self.heads) >= MAX_HEADS:
            self.heads.clear()
        self.heads[head] = (route, headers, size)
