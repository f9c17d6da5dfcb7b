"""The base of all checks."""

from __future__ import annotations

from mosec_asgi.testing.simulation.contracts.dues import Dues
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.model import ServiceModel


class Checker:
    """Checks some of the contracts: compares what the service does with the model of it, and keeps the model."""

    def __init__(self, service: ServiceModel, journal: Journal) -> None:
        self._service = service
        self._journal = journal

    def settle(self, dues: Dues) -> None:
        """Check what the service owes now that all that was ready has run; most checkers have nothing to check then."""
