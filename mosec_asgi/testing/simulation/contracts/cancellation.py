"""A call whose client leaves is ended wherever it is (contract 8)."""

from __future__ import annotations

from mosec_asgi.messages import Cancels
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import Dues
from mosec_asgi.testing.simulation.model import Case, Life, Phase


class Cancellation(Checker):
    """Checks what becomes of calls whose clients leave, and what workers are told of it."""

    def leave(self, case: Case) -> None:
        """A client is about to leave."""
        self._journal.note("%s: the client leaves", case.name)
        if not case.done:
            case.left = True

    def has_left(self, case: Case) -> None:
        """A client has left, and the service has been told."""
        told = case.done or not case.admitted
        self._journal.require(told, Contract.CANCELLATION, "%s: cancelled, and has no outcome", case)

    def reported(self, life: Life, message: Cancels) -> None:
        """A worker is told which of its tasks are over."""
        self._journal.note("%s: is told of clients that have left: %s", life, message.ids)
        for task_id in message.ids:
            over = life.unheard.get(task_id, self._service.by_id[task_id]).done
            self._journal.require(over, Contract.CANCELLATION, "task %d cancelled, is live", task_id)
        life.cancelled.update(message.ids)

    def settle(self, dues: Dues) -> None:
        """Check that workers know which of their tasks are over."""
        if dues.idle:
            return
        for life in self._service.lives(Phase.READY, Phase.DRAINING):
            for task_id, case in life.unheard.items():
                told = not case.done or task_id in life.cancelled
                self._journal.require(told, Contract.CANCELLATION, "%s was not told that %s is over", life, case.name)
