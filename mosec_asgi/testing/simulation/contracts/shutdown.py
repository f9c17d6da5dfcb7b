"""Workers are asked to stop when the service stops, once they have nothing left to do (contract 9)."""

from __future__ import annotations

from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE
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
        over = self._is_over()
        needed = over or life in life.stage.leaving or self._is_dropped(life)
        require(needed, Contract.SHUTDOWN, "%s was asked to stop without need", life)
        live = [case.name for case in life.unheard.values() if not case.done]
        require(not live, Contract.SHUTDOWN, "%s was asked to stop and has %s", life, live)
        drained = over or not life.unheard
        require(drained, Contract.CHANGE, "%s was asked to stop and has not answered all", life)
        if life.finished_at is None:
            life.finished_at = self._journal.now
        if life.phase in (Phase.STARTING, Phase.READY, Phase.DRAINING):
            life.phase = Phase.STOPPING
            life.unheard.clear()
            life.units.clear()
        if over and life not in life.stage.leaving:
            service.stopped = True

    def _is_over(self) -> bool:
        """Whether the service has been told to stop, and has nothing left to answer, or no time left for it."""
        service = self._service
        if service.stopping is None:
            return False
        told, grace = service.stopping
        return self._journal.now >= told + grace - TOLERANCE or all(case.done for case in service.open.values())

    @staticmethod
    def _is_dropped(life: Life) -> bool:
        """Whether a worker was to come beside others, and the change that it belongs to has ended; it leaves."""
        stage, number = life.stage, life.worker_id
        if stage.candidates.get(number) is life:
            del stage.candidates[number]
        elif number in stage.places and stage.places[number].successor is life:
            stage.places[number].successor = None
        else:
            return False
        stage.leaving.append(life)
        return True

    def launcher_closes(self, index: int) -> None:
        """The service lets go of what the workers of a stage were started from."""
        lives = self._service.stages[index].lives
        text = "the launcher of stage %d is closed beside %s"
        self._journal.require(not lives, Contract.SHUTDOWN, text, index, lives)
        self._service.closed_launchers.add(index)
