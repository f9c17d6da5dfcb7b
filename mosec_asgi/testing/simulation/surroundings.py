"""What all parts of a history share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from mosec_asgi.testing.simulation.agenda import Agenda
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.messages import as_it_is, over_a_socket
from mosec_asgi.testing.simulation.oracle import Oracle
from mosec_asgi.testing.simulation.scenario import Scenario

M = TypeVar("M")


@dataclass(slots=True)
class Surroundings:
    """What the simulated workers and clients of a history share.

    Attributes:
        seed: of the history.
        scenario: what it consists of.
        agenda: the simulation's timers.
        oracle: watches.
        faulty: things go wrong; unset when the service is to come back to health.
    """

    seed: int
    scenario: Scenario
    agenda: Agenda
    oracle: Oracle
    faulty: bool = True

    def crosses(self, message: M) -> M:
        """Return what comes out where a message crosses between layers: the same, over whatever it has gone."""
        try:
            return over_a_socket(message) if self.scenario.pickled else as_it_is(message)
        except Exception as error:
            raise self.oracle.journal.fail(
                Contract.MESSAGES, f"{message!r} cannot cross a socket: {error!r}"
            ) from error
