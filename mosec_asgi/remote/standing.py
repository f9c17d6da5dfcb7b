"""How a service stands, as the engine's process tells web processes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass

from mosec_asgi.batching.engine import Statistics
from mosec_asgi.observing.statistics import ServiceReport


@dataclass(frozen=True)
class Standing:
    """How a service stands.

    Attributes:
        statistics: at this moment.
        report: the same, with what was counted so far.
        room: by route, how many calls its workers run at once, and how many are worth having in flight.
    """

    statistics: Statistics
    report: ServiceReport
    room: Mapping[str, tuple[int, int]]

    def packed(self) -> bytes:
        """Return it as bytes."""
        return pickle.dumps((self.statistics, self.report, dict(self.room)), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def read(cls, data: bytes) -> Standing:
        """Return what was packed, by a process that the kernel says is this user's own."""
        return cls(*pickle.loads(data))
