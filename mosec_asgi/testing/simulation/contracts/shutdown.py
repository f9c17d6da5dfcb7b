"""Workers are asked to stop when the service stops, once they have nothing left to do (contract 9)."""

from __future__ import annotations

from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.model import Life, Phase


class Shutdown(Checker):
    """Checks how workers and launchers are told to stop."""

    def finish(self, life: Life) -> None:
        """The service asks a worker to stop."""
        service, require = self._service, self._journal.require
        self._journal.note("%s: is asked to stop", life)
        if not service.started and any(stage.down for stage in service.stages):
            # It cannot start, and ends what it had started.
            service.stopping = service.stopping or (self._journal.now, 0.0)
        require(service.stopping is not None, Contract.SHUTDOWN, "%s was asked to stop without need", life)
        live = [case.name for case in life.unheard.values() if not case.done]
        require(not live, Contract.SHUTDOWN, "%s was asked to stop and has %s", life, live)
        if life.finished_at is None:
            life.finished_at = self._journal.now
        if life.phase in (Phase.STARTING, Phase.READY):
            life.phase = Phase.STOPPING
            life.unheard.clear()
            life.units.clear()
        service.stopped = True

    def launcher_closes(self, index: int) -> None:
        """The service lets go of what the workers of a stage were started from."""
        lives = self._service.stages[index].lives
        text = "the launcher of stage %d is closed beside %s"
        self._journal.require(not lives, Contract.SHUTDOWN, text, index, lives)
        self._service.closed_launchers.add(index)
