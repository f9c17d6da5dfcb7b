"""Heads of requests that have come before: whoever knows one need not read it again.

A client sends nearly the same head with each of its requests; often only the length of the body differs. To have a
parser read one costs five to ten calls from C into Python, a fifth of all that an `echo` takes. So a request that came
with one read and took the short way (`direct`) leaves its head here, and one with the same bytes is submitted at once.
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

from mosec_asgi.web.responses import Headers

# Together they bound the memory: 512 heads, each with its headers as objects, are 2 MiB at most.
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
        if not UNIQUE.isdisjoint(headers):
            return
        if len(self.heads) >= MAX_HEADS:
            self.heads.clear()
        self.heads[head] = (route, headers, size)
