"""Tasks start in order of arrival, and none waits beside a worker that could run it (contract 10)."""

from __future__ import annotations

from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE, Dues
from mosec_asgi.testing.simulation.model import Case, Life, StageModel


class Waiting(Checker):
    """Checks the tasks that wait at the stages."""

    def starts(self, stage: StageModel, case: Case, before: Case | None) -> None:
        """A task that waited is sent to a worker; `before` is the one before it in the same message."""
        self._take(stage, case)
        if before is not None:
            right = not before.overtakes(case, stage.plan.rules)
            self._journal.require(right, Contract.ORDER, "%s was sent behind %s", case, before)

    def settle(self, dues: Dues) -> None:
        """Check that no task was overtaken, and that each task which can start has started."""
        for stage in self._service.stages:
            overtaken = [case for case in stage.overtaken if not case.done]
            self._journal.require(
                not overtaken, Contract.ORDER, "%s were overtaken at stage %d", overtaken, stage.index
            )
            stage.overtaken.clear()
            if self._service.stopping is None and stage.waiting and not stage.down:
                self._settle_stage(stage, dues)

    def _take(self, stage: StageModel, case: Case) -> None:
        waiting = stage.live()
        waits = case in waiting
        self._journal.require(waits, Contract.RIGHT_ANSWER, "%s is not waiting at stage %d", case, stage.index)
        place = waiting.index(case)
        # Several workers are sent theirs at the same moment, one after the other; only then it shows. Where workers run
        # several tasks at a time, and may do so for long, those that must be alone are not waited for.
        one_by_one = all(plan.concurrency == 1 for plan in stage.views)
        stage.overtaken.update(
            other
            for other in waiting
            if case.overtakes(other, stage.plan.rules) and (one_by_one or case.alone == other.alone)
        )
        stage.overtaken.discard(case)
        del waiting[place]

    def _settle_stage(self, stage: StageModel, dues: Dues) -> None:
        waiting, plans, ready = stage.live(), stage.views, stage.ready
        lone = next((case for case in waiting if case.alone), None)
        if lone is not None:
            empty = [life for life in ready if not life.unheard]
            self._journal.require(not empty, Contract.PROGRESS, "%s, to be alone, waits beside %s", lone, empty)
            if any(plan.concurrency == 1 for plan in plans):
                # The others wait until some worker has done what it has.
                return
        others = [case for case in waiting if not case.alone]
        if not others:
            return
        first = others[0]
        for life in ready:
            # Left to the scheduler, a worker that was busy may wait as long for those whom it has just answered.
            due = max(self._due(plan, life, first, stage.holds_a_batch(plan), dues) for plan in plans)
            if life.running < min(plan.concurrency for plan in plans) and not life.runs_alone:
                dues.require_by(due, Contract.PROGRESS, "%s waits beside %s", first, life)

    @staticmethod
    def _due(plan: StagePlan, life: Life, first: Case, full: bool, dues: Dues) -> float:
        """Return when the first of those that wait must be with a worker that could run it."""
        since = max(first.queued_at, life.heard_at) if plan.adaptive else first.queued_at
        return dues.now - 2 * TOLERANCE if full else since + plan.max_wait
