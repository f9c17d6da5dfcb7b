"""Payloads that lie in memory are dropped once."""

from __future__ import annotations

from mosec_asgi.messages import Payload
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.messages import Held
from mosec_asgi.testing.simulation.model import ServiceModel


class Memory(Checker):
    """Counts the payloads in memory.

    Attributes:
        held: payloads that were not dropped yet.
    """

    def __init__(self, service: ServiceModel, journal: Journal) -> None:
        super().__init__(service, journal)
        self.held = 0

    def hold(self, payload: bytes) -> Payload:
        """Return a payload in memory, to be dropped once by whoever is given it."""
        self.held += 1
        self._journal.count("payloads in memory")
        return Held(payload, self._dropped, lambda text: self._journal.fail(Contract.MEMORY, text))

    def _dropped(self) -> None:
        self.held -= 1
