"""What the service must have done by a certain time."""

from __future__ import annotations

import math
from typing import Any

from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.journal import Journal

# Timers are rounded up to whole milliseconds, and the clock may lag behind the loop's time by nearly one.
TOLERANCE = 0.003


class Dues:
    """One look at what is due.

    Attributes:
        now: when it is.
        next: when something else is due that has not happened yet.
        idle: nothing has happened since the look before, so that only time limits need a check.
    """

    def __init__(self, journal: Journal) -> None:
        self.now = journal.now
        self.next = math.inf
        self.idle = journal.quiet
        self._journal = journal

    def require_by(self, due: float, contract: Contract, text: str, *arguments: Any) -> None:
        """Raise a violation if something that has not happened was due before now; else look again when it is."""
        due += TOLERANCE
        if self.now > due:
            raise self._journal.fail(contract, text % arguments)
        self.next = min(self.next, due)
