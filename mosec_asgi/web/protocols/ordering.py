"""What a request says of the order in which it is run: its headers, and what the first stage asks of its body.

Only the routes that have something to read pay for it: the others make their calls without a look at this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mosec_asgi import wishes
from mosec_asgi.config import Settings
from mosec_asgi.errors import DefinitionError, Failure, MosecError, describe
from mosec_asgi.labels import Labels
from mosec_asgi.log import internal_logger
from mosec_asgi.messages import Call
from mosec_asgi.web.exchange import Request
from mosec_asgi.web.responses import Headers

BATCH_KEY = b"x-batch-key"
PRIORITY = b"x-priority"

logger = internal_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ordering:
    """What the routes of a service read of a request, beside what each reads.

    Attributes:
        priority: the header `x-priority`.
        tenant: the name of the header that says on whose behalf a request comes, in lower case; empty for none.
    """

    priority: bool = False
    tenant: bytes = b""

    @property
    def reads(self) -> bool:
        """Whether it reads anything."""
        return self.priority or bool(self.tenant)

    def wishes(self, headers: Headers) -> tuple[int, str]:
        """Return the priority and the tenant of a request.

        Raises:
            ClientError: one of its headers is wrong.
        """
        priority, tenant = 0, ""
        if self.priority and PRIORITY in headers:
            priority = wishes.read_priority(headers[PRIORITY])
        if self.tenant and self.tenant in headers:
            tenant = wishes.read_text(headers[self.tenant], self.tenant.decode("latin-1"))
        return priority, tenant


NO_ORDERING = Ordering()
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")


def ordering_of(settings: Settings) -> Ordering:
    """Return what a service reads of its requests.

    Raises:
        DefinitionError: the setting `tenant_header` is no name of a header.
    """
    name = settings.tenant_header.strip()
    if not _TOKEN.fullmatch(name):
        raise DefinitionError(
            f"the setting tenant_header is the name of a header, such as x-fairness-key, not {settings.tenant_header!r}"
        )
    return Ordering(settings.priority_header, name.lower().encode())


def ordered(call: Call, request: Request, ordering: Ordering, labels: Labels | None) -> Call | Failure:
    """Return the call of a request whose body is the input, with what is to be known of its order; or what is wrong.

    Args:
        call: as the route has made it.
        request: of which it was made.
        ordering: what the service reads.
        labels: what the route's first stage asks.
    """
    headers = request.headers
    try:
        priority, tenant = ordering.wishes(headers)
        cost, key = call.cost, call.key
        if labels is not None:
            given = headers.get(BATCH_KEY) if labels.groups else None
            key = "" if given is None else wishes.read_text(given, "x-batch-key")
            cost, key = labels.of_body(request.body, key)
    except MosecError as error:
        failure = describe(error)
        if failure.code >= 500:
            logger.error("%s", failure.text, exc_info=error, extra={"request_id": request.request_id})
        return failure
    return call._replace(priority=priority, key=key, cost=cost, tenant=tenant)
