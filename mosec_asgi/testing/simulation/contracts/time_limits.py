"""A worker is ended when it takes too long to start, to stop, or for a step, and not before (contract 7)."""

from __future__ import annotations

from mosec_asgi.batching.stage import GRACE_SECONDS, LOOK_SECONDS
from mosec_asgi.pool.supervisor import CLOSE_SECONDS
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE, Dues
from mosec_asgi.testing.simulation.model import Life, Phase

STUCK = "stuck"
# Both limits have passed. For which of them the service has ended it is not to be seen from here.
STUCK_OR_DRAINING = "stuck, or too long in draining"


class TimeLimits(Checker):
    """Checks when workers are ended for being slow."""

    def exceeded(self, life: Life) -> str:
        """Return the limit beyond which a worker is that the service ends, though it has done nothing wrong."""
        if life.phase is Phase.STARTING:
            return self._started_late(life)
        if life.phase is Phase.STOPPING:
            return self._stopped_late(life)
        if self._drains_late(life):
            return STUCK_OR_DRAINING if self._is_stuck(life) else "too long in draining"
        still = self._journal.now - life.still_since
        self._journal.require(
            self._is_stuck(life), Contract.TIME, "%s was ended after %.3f s without a step", life, still
        )
        return STUCK

    def _started_late(self, life: Life) -> str:
        late = self._journal.now >= life.launched_at + life.stage.plan.start_timeout - TOLERANCE
        self._journal.require(late, Contract.TIME, "%s was ended before its start timeout", life)
        return "too long in starting"

    def _stopped_late(self, life: Life) -> str:
        stopping = self._service.stopping
        patience = CLOSE_SECONDS if stopping is None or stopping[1] > 0 else 0.5
        late = life.finished_at is not None and self._journal.now >= life.finished_at + patience - TOLERANCE
        self._journal.require(late, Contract.SHUTDOWN, "%s was ended before it could stop", life)
        return "too long in stopping"

    def _drains_late(self, life: Life) -> bool:
        limit = self._service.world.limits.drain_timeout
        return life.phase is Phase.DRAINING and self._journal.now >= life.left_at + limit - TOLERANCE

    def _is_stuck(self, life: Life) -> bool:
        # A look comes a little late, and what it sees may have begun just after the one before.
        limit = life.spec.timeout + GRACE_SECONDS - LOOK_SECONDS - TOLERANCE
        return bool(life.unheard) and self._journal.now - life.still_since >= limit

    def settle(self, dues: Dues) -> None:
        """Check that no worker is beyond its limits and lives."""
        for life in self._service.lives(Phase.STARTING):
            due = life.launched_at + life.stage.plan.start_timeout
            dues.require_by(due, Contract.TIME, "%s takes too long to start and lives", life)
        for life in self._service.lives(Phase.STOPPING):
            if self._service.stopping is None and life.finished_at is not None:
                due = life.finished_at + CLOSE_SECONDS
                dues.require_by(due, Contract.TIME, "%s takes too long to stop and lives", life)
        for life in self._service.lives(Phase.READY, Phase.DRAINING):
            if life.unheard:
                due = life.still_since + life.spec.timeout + GRACE_SECONDS + 2 * LOOK_SECONDS + TOLERANCE
                dues.require_by(due, Contract.TIME, "%s makes no step and lives", life)
