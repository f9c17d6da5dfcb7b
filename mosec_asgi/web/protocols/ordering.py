"""What a request says of the order in which it is run: its headers, and what the first stage asks of its body.

Only the routes that have something to read pay for it: the others make their calls without a look at this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mosec_asgi import call_order
from mosec_asgi import request as requests
from mosec_asgi.config import Settings
from mosec_asgi.errors import DefinitionError, Failure, MosecError, ServerError, describe
from mosec_asgi.labels import Labels, checked_key
from mosec_asgi.log import internal_logger
from mosec_asgi.messages import Call
from mosec_asgi.web.exchange import Request
from mosec_asgi.web.protocols.about import told

BATCH_KEY = b"x-batch-key"
PRIORITY = b"x-priority"

logger = internal_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ordering:
    """What the routes of a service read of a request, beside what each reads.

    Attributes:
        priority: the header `x-priority`.
        tenant: the name of the header that says on whose behalf a request comes, in lower case; empty for none.
        tenant_of: the user's function that says so, in the place of a header; None for none.
    """

    priority: bool = False
    tenant: bytes = b""
    tenant_of: Callable[[requests.Request], str] | None = None

    @property
    def reads(self) -> bool:
        """Whether it reads anything."""
        return self.priority or bool(self.tenant) or self.tenant_of is not None

    def priority_and_tenant(self, request: Request, path: str, about: requests.Request | None) -> tuple[int, str]:
        """Return the priority and the tenant of a request.

        Args:
            request: the request.
            path: its route, as it was defined.
            about: what workers are told of it, where they are.

        Raises:
            ClientError: one of its headers is wrong.
            MosecError: what the user's function has raised; a `ServerError` for an exception of another kind.
        """
        headers = request.headers
        priority, tenant = 0, ""
        if self.priority and PRIORITY in headers:
            priority = call_order.read_priority(headers[PRIORITY])
        if self.tenant and self.tenant in headers:
            tenant = call_order.read_text(headers[self.tenant], self.tenant.decode("latin-1"))
        elif self.tenant_of is not None:
            tenant = _asked(self.tenant_of, told(request, path) if about is None else about)
        return priority, tenant


def _asked(tenant_of: Callable[[requests.Request], str], request: requests.Request) -> str:
    """Return what the user's function says."""
    try:
        tenant = tenant_of(request)
    except (MosecError, KeyboardInterrupt):
        raise
    # A library may raise what is no `Exception`; beyond here it would end the event loop, or leave the client waiting.
    except BaseException as error:
        # Its text may hold what clients must not see; the log has the traceback.
        raise ServerError(f"the function `tenant` of the server raised {type(error).__name__}") from error
    if not isinstance(tenant, str):
        kind = type(tenant).__name__
        raise ServerError(f"the function `tenant` of the server returned a {kind}; return a text, empty for no tenant")
    return checked_key(tenant, "the tenant")


NO_ORDERING = Ordering()
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")


def ordering_of(settings: Settings, tenant_of: Callable[[requests.Request], str] | None = None) -> Ordering:
    """Return what a service reads of its requests.

    Args:
        settings: of the service.
        tenant_of: see `Ordering`.

    Raises:
        DefinitionError: the setting `tenant_header` is no name of a header, or there is a function beside it.
    """
    name = settings.tenant_header.strip()
    if not _TOKEN.fullmatch(name):
        raise DefinitionError(
            f"the setting tenant_header is the name of a header, such as x-fairness-key, not {settings.tenant_header!r}"
        )
    if name and tenant_of is not None:
        raise DefinitionError(
            f"the tenant of a request is said by the header {name} (setting tenant_header) and by the function that "
            "Server(tenant=...) was given; leave out one of them"
        )
    return Ordering(settings.priority_header, name.lower().encode(), tenant_of)


def ordered(call: Call, request: Request, path: str, ordering: Ordering, labels: Labels | None) -> Call | Failure:
    """Return the call of a request whose body is the input, with what is to be known of its order; or what is wrong.

    Args:
        call: as the route has made it.
        request: of which it was made.
        path: of the route.
        ordering: what the service reads.
        labels: what the route's first stage asks.
    """
    headers = request.headers
    try:
        priority, tenant = ordering.priority_and_tenant(request, path, call.request)
        cost, key = call.cost, call.key
        if labels is not None:
            given = headers.get(BATCH_KEY) if labels.groups else None
            key = "" if given is None else call_order.read_text(given, "x-batch-key")
            cost, key = labels.of_body(request.body, key)
    except MosecError as error:
        failure = describe(error)
        if failure.code >= 500:
            # It is logged where the request is answered.
            raise
        return failure
    return call._replace(priority=priority, key=key, cost=cost, tenant=tenant)
