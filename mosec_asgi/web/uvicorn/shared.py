"""What the connections of a service share."""

from __future__ import annotations

import logging

from mosec_asgi import log
from mosec_asgi.lazy_timer import later
from mosec_asgi.ration import Ration, RationedLogger
from mosec_asgi.web.budget import UnreadBudget
from mosec_asgi.web.limits import Limits
from mosec_asgi.web.uvicorn.open_files import OpenFiles


class Shared:
    """What the connections of a service share.

    Attributes:
        unread: the room for answers that are not read.
        ration: logs what clients cause.
        logger: uvicorn's, of which clients cause the warnings and, by way of middleware, the errors.
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
        uvicorns = logging.getLogger("uvicorn.error")
        self._errors = Ration(uvicorns, later)
        self.logger = RationedLogger(uvicorns, self.ration, self._errors)
        self.open_files = OpenFiles(logger)

    def say_all(self) -> None:
        """Say what was left out of the log."""
        self.ration.say_all()
        self._errors.say_all()
