"""A stage can be changed while it serves, and no call is lost by it (contract 12).

That no call is lost, or answered twice, is seen by the checks of answers; here it is checked which workers are taken
away, that they answer what they have before they are told to stop, and that a change has come about when it says so.
"""

from __future__ import annotations

from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import Dues
from mosec_asgi.testing.simulation.model import Life, Phase, Place, StageModel
from mosec_asgi.testing.simulation.scenario import Change, Kind


class Changes(Checker):
    """Checks what becomes of changes that are asked for, and which workers they take away."""

    def asked(self, change: Change) -> float:
        """A change is about to be asked for; return when that is."""
        stage = self._service.stages[change.stage]
        self._journal.note("stage %d is to be changed: %s", change.stage, change)
        stage.changes.append(change)
        if change.kind is Kind.CONFIGURE:
            stage.plans.append(change.applied_to(stage.plan))
        return self._journal.now

    def given_up(self, change: Change) -> None:
        """Whoever has asked for a change does not wait for it any more."""
        self._journal.count("changes given up")
        self._end(change)

    def failed(self, change: Change, failures: int, error: str) -> None:
        """A change has failed, which some failed start, of those since `failures`, must have caused."""
        self._journal.count("changes failed")
        stage = self._end(change)
        right = stage.failed_starts > failures or self._service.stopping is not None
        self._journal.require(right, Contract.CHANGE, "%s failed though every worker could start: %s", change, error)

    def made(self, change: Change, asked: float) -> None:
        """A change has come about."""
        self._journal.count(f"changes: {change.kind.value}")
        # Of two that end in the same instant, whoever has asked for the first may hear of it last.
        tied = self._service.stages[change.stage].changed_at == self._journal.now
        stage = self._end(change)
        if change.kind is Kind.CONFIGURE:
            stage.plan = change.applied_to(stage.plan)
            stage.plans = [stage.plan, *(other.applied_to(stage.plan) for other in stage.changes if other.configures)]
        if tied or stage.changes or self._service.stopping is not None:
            # Another may have undone it.
            return
        places = list(stage.places.values())
        if change.kind is Kind.SCALE:
            right = len(places) == change.num
            self._journal.require(right, Contract.CHANGE, "%s, and there are %d places", change, len(places))
            return
        lives = [place.life for place in places if place.life is not None]
        if change.kind is Kind.RESTART:
            old = [life for life in lives if life.launched_at < asked]
            self._journal.require(not old, Contract.CHANGE, "%s, and these are from before: %s", change, old)
        else:
            wanted = (change.batch_size or stage.plan.specs[0].max_batch_size, stage.plan.timeout)
            other = [life for life in lives if (life.spec.max_batch_size, life.spec.timeout) != wanted]
            self._journal.require(not other, Contract.CHANGE, "%s, and these were not told: %s", change, other)

    def _end(self, change: Change) -> StageModel:
        stage = self._service.stages[change.stage]
        self._journal.note("the change of stage %d has ended: %s", change.stage, change)
        stage.changes.remove(change)
        stage.changed_at = self._journal.now
        if not stage.changes:
            self._leave_what_was_begun(stage)
        # One that failed may have held until now.
        stage.plans = [stage.plan, *(other.applied_to(stage.plan) for other in stage.changes if other.configures)]
        return stage

    def _leave_what_was_begun(self, stage: StageModel) -> None:
        """Let successors leave that were given up and have not ended: nobody waits for them any more.

        Those that still start are told to stop, which is seen; these have nothing left to be told.
        """
        for place in stage.places.values():
            life = place.successor
            if life is not None and life.given_up_at is not None and not (place.life and place.life.is_full):
                place.successor = None
                stage.leave(life, self._journal.now)

    # -- which workers go --------------------------------------------------------------------------------------------

    def resized(self, index: int, num: int) -> None:
        """The service says that a stage is to have so many workers from here on."""
        stage = self._service.stages[index]
        changing = any(change.kind is Kind.SCALE for change in stage.changes)
        self._journal.require(changing, Contract.CHANGE, "stage %d is resized to %d, unasked", index, num)
        surplus = len(stage.places) - num
        self._journal.require(surplus >= 0, Contract.CHANGE, "stage %d has %d workers out of nothing", index, -surplus)
        for number in sorted(stage.places, key=lambda number: _usefulness(stage.places[number], number))[:surplus]:
            place = stage.places.pop(number)
            self._journal.note("stage %d: worker %d is one too many", index, number)
            if place.life is not None:
                stage.leave(place.life, self._journal.now)

    # -- what is owed ------------------------------------------------------------------------------------------------

    def settle(self, dues: Dues) -> None:
        """Check that workers which have answered all are told to stop, and those with a full life are replaced."""
        if self._service.stopping is not None:
            return
        limit = self._service.world.limits.drain_timeout
        for stage in self._service.stages:
            for life in stage.draining:
                text = "%s has answered all that it had, and is not told to stop"
                self._journal.require(bool(life.unheard), Contract.CHANGE, text, life)
                dues.require_by(life.left_at + limit, Contract.CHANGE, "%s drains too long", life)
            if not stage.is_changing:
                self._settle_full_lives(stage)

    def _settle_full_lives(self, stage: StageModel) -> None:
        most = stage.plan.recycling.max_calls
        for life in stage.ready if most else ():
            replaced = life.calls < most or life.full_since_failure != stage.failed_starts
            self._journal.require(replaced, Contract.CHANGE, "%s has answered %d and serves on", life, life.calls)


def _usefulness(place: Place, number: int) -> tuple[int, int]:
    """Order places: first those without a worker that is or will be ready, of like ones the last."""
    life: Life | None = place.life
    if life is not None and life.phase is Phase.READY:
        return 2, -number
    starts = life is not None and life.phase is Phase.STARTING and not place.failing
    return int(starts), -number
