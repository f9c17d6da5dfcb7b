"""What the connections of a service share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mosec_asgi import log
from mosec_asgi.ration import Ration
from mosec_asgi.web.budget import UnreadBudget
from mosec_asgi.web.limits import Limits
from mosec_asgi.web.uvicorn.open_files import OpenFiles


class Shared:
    """What the connections of a service share.

    Attributes:
        unread: the room for answers that are not read.
        ration: logs what clients cause.
        open_files: looks at their descriptors.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin with nothing.

        Args:
            limits: of a connection, and of all together.
        """
        self.unread = UnreadBudget(limits.answer_memory, limits.least_rate)
        logger = log.internal_logger(__name__)
        self.ration = Ration(logger, later)
        self.open_files = OpenFiles(logger)


def later(seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    """Call something later, on the event loop that runs."""
    return asyncio.get_running_loop().call_later(seconds, callback)
