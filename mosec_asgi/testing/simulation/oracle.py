"""What must hold of a service, whatever happens: its contracts, checked against the simulation's own model.

The oracle stands between the service and the world. It sees what clients ask and what they are answered, what workers
are sent and what they say, and keeps a model (`model`) of it. Each group of contracts has its own checker in
`contracts`, which clients, links and workers tell what happens.
"""

from __future__ import annotations

from collections.abc import Callable

from mosec_asgi.batching.engine import Statistics
from mosec_asgi.testing.simulation.contracts.admission import Admission
from mosec_asgi.testing.simulation.contracts.answers import Answers
from mosec_asgi.testing.simulation.contracts.cancellation import Cancellation
from mosec_asgi.testing.simulation.contracts.changes import Changes
from mosec_asgi.testing.simulation.contracts.crash import Crash
from mosec_asgi.testing.simulation.contracts.dispatch import Dispatch
from mosec_asgi.testing.simulation.contracts.dues import Dues
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.contracts.memory import Memory
from mosec_asgi.testing.simulation.contracts.numbers import Numbers
from mosec_asgi.testing.simulation.contracts.protocol import Protocol
from mosec_asgi.testing.simulation.contracts.replies import Replies
from mosec_asgi.testing.simulation.contracts.respawn import Respawn
from mosec_asgi.testing.simulation.contracts.shutdown import Shutdown
from mosec_asgi.testing.simulation.contracts.streams import Streams
from mosec_asgi.testing.simulation.contracts.time_limits import TimeLimits
from mosec_asgi.testing.simulation.contracts.waiting import Waiting
from mosec_asgi.testing.simulation.model import ServiceModel
from mosec_asgi.testing.simulation.scenario import World


class Oracle:
    """Watches a service and says when it breaks a contract.

    Attributes:
        service: the model of the service.
        journal: what happens, and the first violation.
        admission, answers, ...: a checker for each group of contracts; see `contracts`.
    """

    def __init__(self, world: World, clock: Callable[[], float], *, verbose: bool = False) -> None:
        """Begin with nothing seen.

        Args:
            world: the service that is watched.
            clock: seconds.
            verbose: print each event as it happens.
        """
        self.service = service = ServiceModel(world)
        self.journal = journal = Journal(clock, verbose=verbose)
        self.admission = Admission(service, journal)
        self.streams = Streams(service, journal)
        self.answers = Answers(service, journal, self.admission, self.streams)
        self.cancellation = Cancellation(service, journal)
        self.waiting = Waiting(service, journal)
        self.dispatch = Dispatch(service, journal, self.waiting)
        self.protocol = Protocol(service, journal, self.dispatch, self.cancellation, self.streams)
        self.time_limits = TimeLimits(service, journal)
        self.respawn = Respawn(service, journal)
        self.crash = Crash(service, journal, self.respawn, self.time_limits)
        self.replies = Replies(service, journal, self.streams, self.respawn)
        self.shutdown = Shutdown(service, journal)
        self.changes = Changes(service, journal)
        self.memory = Memory(service, journal)
        self.numbers = Numbers(service, journal)
        self._owing = (
            self.answers,
            self.waiting,
            self.respawn,
            self.time_limits,
            self.cancellation,
            self.streams,
            self.changes,
        )
        # When to look again though nothing has happened.
        self._next_due = 0.0

    def settle_up(self, statistics: Callable[[], Statistics]) -> None:
        """Check what the service owes now that all that was ready has run."""
        journal = self.journal
        dues = Dues(journal)
        if dues.idle and dues.now <= self._next_due:
            return
        for checker in self._owing:
            checker.settle(dues)
        self._next_due = dues.next
        if not dues.idle:
            journal.quiet = True
            self.numbers.compare(statistics())
