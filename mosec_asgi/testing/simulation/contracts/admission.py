"""Which calls the service may admit, which it may refuse, and with which failures (contract 3, bounded)."""

from __future__ import annotations

import math

from mosec_asgi.batching.coordinator import MOST_RETRY_SECONDS
from mosec_asgi.errors import CLOSING, STAGE_DOWN, TOO_LONG, Failure, at_capacity, over_target, overloaded, too_late
from mosec_asgi.messages import Outcome
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE
from mosec_asgi.testing.simulation.model import Case, StageModel


class Admission(Checker):
    """Checks what is admitted and what is refused."""

    def submitted(self, case: Case, *, admitted: bool) -> None:
        """A call was submitted, and the service counts one more that it has admitted, or does not."""
        case.submitted = True
        case.admitted = admitted
        if admitted:
            self._admitted(case)
        else:
            self._refused(case)

    def check_refusal(self, case: Case, outcome: Outcome) -> None:
        """Check the outcome of a call that was not admitted."""
        journal = self._journal
        journal.count(f"refused {outcome.code}")
        told = outcome.failure
        if told is not None:
            for failure, what in ((over_target(1), "its latency target"), (too_late(1), "its time")):
                if told.text == failure.text:
                    journal.count(f"refusals for {what}")
        for failure, longest in case.refusals:
            if told is None or (told.code, told.text) != (failure.code, failure.text):
                continue
            after = told.retry_after
            right = after == failure.retry_after if longest is None else after is not None and 1 <= after <= longest
            journal.require(right, Contract.BOUNDED, "%s: Retry-After %s, at most %s", case.name, after, longest)
            return
        contract = Contract.BOUNDED if self._service.stopping is None else Contract.SHUTDOWN
        raise journal.fail(contract, f"{case.name}: refused with {outcome}, and could be with {case.refusals}")

    def _admitted(self, case: Case) -> None:
        service, require = self._service, self._journal.require
        others = sum(other.admitted and not other.done for other in service.open.values() if other is not case)
        limit = service.world.limits.capacity
        require(others < limit, Contract.BOUNDED, "%s admitted beyond a capacity of %d", case.name, limit)
        require(service.stopping is None, Contract.SHUTDOWN, "%s admitted after the stop", case.name)
        down = [index for index in case.stages if service.stages[index].down]
        require(not down, Contract.RESPAWN, "%s admitted though the stages %s are down", case.name, down)
        self._journal.count("admitted")

    def _refused(self, case: Case) -> None:
        """Note which refusals are right at this moment; the client hears of its refusal in a later turn."""
        self._journal.note("%s: is to be refused", case.name)
        self._service.stages[case.stage].withdraw(case)
        case.refusals = self._right_refusals(case, case.latest - self._journal.now)

    def _right_refusals(self, case: Case, timeout: float) -> list[tuple[Failure, int | None]]:
        """Return the failures that say why a call is refused, each with the most `Retry-After` where it is measured."""
        service = self._service
        if service.stopping is not None:
            return [(CLOSING, None)]
        stages = [service.stages[index] for index in case.stages]
        limits = service.world.limits
        seconds = max(map(self._backlog_seconds, stages))
        longest = min(MOST_RETRY_SECONDS, max(1, math.ceil(seconds + TOLERANCE)))
        right: list[tuple[Failure, int | None]] = []
        if sum(other.admitted and not other.done for other in service.open.values()) >= limits.capacity:
            right.append((at_capacity(1), longest))
        if any(stage.down for stage in stages):
            right.append((STAGE_DOWN, None))
        if limits.load_shedding and sum(map(self._most_seconds, stages)) > timeout - TOLERANCE:
            right += [(TOO_LONG, None), (too_late(1), longest), (overloaded(1), longest)]
        if limits.load_shedding and any(map(self._may_be_over_target, stages)):
            right.append((over_target(1), longest))
        return right

    def _may_be_over_target(self, stage: StageModel) -> bool:
        """Whether a call that comes to a stage now must wait there, and may be there for longer than its target."""
        targets = [plan.latency_target for plan in stage.views if plan.latency_target]
        return bool(targets) and stage.is_taken and self._most_seconds(stage) > min(targets) - TOLERANCE

    def _backlog_seconds(self, stage: StageModel) -> float:
        """Return the most that what is at a stage, or will come, may take: each answer as all work there was so far."""
        stage.note_work(self._journal.now)
        # The clock's error counts anew each time that the service begins and ceases to measure.
        per_answer = 1.1 * stage.worked + 0.02
        coming = sum(stage.index in case.stages[case.position + 1 :] for case in self._service.open.values())
        there = coming + len(stage.live()) + sum(len(life.unheard) for life in stage.at_work)
        return per_answer * there + stage.most_until_ready(self._journal.now)

    def _most_seconds(self, stage: StageModel) -> float:
        """Return the most that a request which comes to a stage now may take there, and what chance may add to it."""
        own = 1.1 * stage.worked + 0.02
        return 3.0 * (self._backlog_seconds(stage) + 2.0 * own) + max(plan.max_wait for plan in stage.views)
