"""Watches a service from outside, and says when it breaks a contract.

The oracle stands between the service and the world. It sees what clients ask and what they are answered, what workers
are sent and what they say, and keeps its own picture of it (`model`). A contract is checked at the moment at which it
can be broken: when a frame is sent, an answer arrives, a worker is ended. What the service owes is checked whenever all
that was ready has run and time is about to pass: by then a task that can start must have started, and who must have an
answer must have it.
"""

from __future__ import annotations

from collections.abc import Callable

from mosec_asgi.testing.simulation.client_oracle import ClientOracle
from mosec_asgi.testing.simulation.contracts import Record
from mosec_asgi.testing.simulation.debt_oracle import DebtOracle
from mosec_asgi.testing.simulation.frame_oracle import HeardOracle, SentOracle
from mosec_asgi.testing.simulation.life_oracle import LifeOracle

from mosec_asgi.testing.simulation.model import Picture
from mosec_asgi.testing.simulation.scenario import World


class Oracle:
    """All that watches, and what they share.

    Attributes:
        picture: of the service.
        record: of what has happened.
        clients: watches what they ask and are answered.
        sent: watches what workers are sent; heard: what they say.
        lives: watches how workers begin and end.
        debts: looks for what should have happened.
    """

    def __init__(self, world: World, clock: Callable[[], float], *, verbose: bool = False) -> None:
        """Begin with nothing seen.

        Args:
            world: the service that is watched.
            clock: seconds.
            verbose: print each event as it happens.
        """
        self.clock = clock
        self.picture = Picture(world)
        self.record = Record(clock, verbose=verbose)
        self.clients = ClientOracle(self.picture, self.record, clock)
        self.sent = SentOracle(self.picture, self.record, clock)
        self.heard = HeardOracle(self.picture, self.record, clock)
        self.lives = LifeOracle(self.picture, self.record, clock)
        self.debts = DebtOracle(self.picture, self.record, clock)
        self.require = self.record.require

    def hold_up(self, seconds: float) -> None:
        """The whole program is held up, its workers as well."""
        self.record.note("all is held up for %.3f s", seconds)
        self.record.count("hold-ups")
        self.picture.late += seconds
        for life in self.picture.lives:
            life.still_since = self.clock() + seconds
