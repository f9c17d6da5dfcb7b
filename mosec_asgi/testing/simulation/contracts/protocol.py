"""Workers are sent only what they can take at the time."""

from __future__ import annotations

from mosec_asgi.messages import Cancels, Tasks
from mosec_asgi.testing.simulation.contracts.cancellation import Cancellation
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dispatch import Dispatch
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.contracts.streams import Streams
from mosec_asgi.testing.simulation.messages import Asked
from mosec_asgi.testing.simulation.model import Life, Phase, ServiceModel


class Protocol(Checker):
    """Checks when messages are sent to workers, and has each checked by the contract that it belongs to."""

    def __init__(
        self,
        service: ServiceModel,
        journal: Journal,
        dispatch: Dispatch,
        cancellation: Cancellation,
        streams: Streams,
    ) -> None:
        super().__init__(service, journal)
        self._dispatch = dispatch
        self._cancellation = cancellation
        self._streams = streams

    def sent(self, life: Life, message: Asked) -> None:
        """The service sends a worker a message, which may be in vain."""
        ready = life.phase is Phase.READY or (life.phase is Phase.DRAINING and not isinstance(message, Tasks))
        self._journal.require(ready, Contract.PROTOCOL, "a message for %s, %s", life, life.phase.value)
        if isinstance(message, Tasks):
            self._dispatch.sent(life, message)
        elif isinstance(message, Cancels):
            self._cancellation.reported(life, message)
        else:
            self._streams.reported(life, message)

    def kill(self, life: Life) -> None:
        """The service kills a worker."""
        self._journal.note("%s: is killed", life)
        life.killed = True
        useless = life.given_up_at is not None
        self._journal.require(useless, Contract.PROTOCOL, "%s was killed while in use", life)
