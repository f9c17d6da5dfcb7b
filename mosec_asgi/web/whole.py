"""What is shown of a service as a whole, wherever its engine runs."""

from __future__ import annotations

from typing import Protocol

from mosec_asgi.batching.engine import Engine, Statistics
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.observing.exposition import Exposition
from mosec_asgi.observing.metrics import ServiceMetrics


class Whole(Protocol):
    """A service, as probes and Prometheus see it."""

    async def statistics(self) -> Statistics:
        """Return how things stand."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type, which is empty where they cannot be shown.

        Args:
            accept: the header of who asks.
        """


class Here:
    """A service whose engine runs in this process; see `Whole`."""

    def __init__(self, engine: Engine, metrics: ServiceMetrics, custom: CustomMetrics | None = None) -> None:
        """Put together what is shown.

        Args:
            engine: of the service.
            metrics: what was counted and measured.
            custom: what users' workers count.
        """
        self._engine = engine
        self._exposition = Exposition(metrics, engine.statistics, custom)

    async def statistics(self) -> Statistics:
        """Return how things stand."""
        return self._engine.statistics()

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type."""
        return self._exposition.render(accept)
