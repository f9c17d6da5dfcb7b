"""A worker is sent live tasks, each with the right payload, and no more than it can hold (contracts 2, 3 and 5)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.messages import EGRESS, INGRESS, OBJECT_IN, OBJECT_OUT, Payload, Tasks
from mosec_asgi.pool.supervisor import PoolWorker
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.contracts.waiting import Waiting
from mosec_asgi.testing.simulation.model import CLOCK_ERROR, Case, Flight, Life, ServiceModel

# A worker that needs as long for a task is sent no second one before it has answered.
SLOW_SECONDS = 0.002
MOST_AHEAD = 128
# Seconds.
ROUNDING = 1e-6


class Dispatch(Checker):
    """Checks the tasks that workers are sent."""

    def __init__(self, service: ServiceModel, journal: Journal, waiting: Waiting) -> None:
        super().__init__(service, journal)
        self._waiting = waiting
        # Returns the scheduler of a stage: its own predictions must be heeded.
        self.scheduler: Callable[[int], Scheduler[PoolWorker]] | None = None

    def sent(self, life: Life, message: Tasks) -> None:
        """A worker is sent tasks."""
        journal, stage, now = self._journal, life.stage, self._journal.now
        journal.note("%s: is sent tasks %s", life, message.ids)
        stage.note_work(now)
        if not life.unheard:
            life.still_since = now
        ahead = life.batches
        before: Case | None = None
        for task_id, flags, name, payload in zip(
            message.ids, message.flags, message.request_ids, message.payloads, strict=True
        ):
            case = self._live(task_id, name, life)
            journal.require(case.id == task_id, Contract.RIGHT_ANSWER, "%s was sent as task %d", case, task_id)
            self._waiting.starts(stage, case, before)
            before = case
            self._check_content(case, flags, payload)
            self._check_attempts(case, stage.plan.max_attempts)
            case.belongs_to(life)
            life.unheard[task_id] = case
            life.units[task_id] = message.ids[0]
        self._check_company(life, [life.unheard[task_id] for task_id in message.ids])
        if not ahead:
            self._check_target(life, [life.unheard[task_id] for task_id in message.ids])
        alone = not life.runs_alone or len(life.unheard) == 1
        journal.require(alone, Contract.CRASH, "tasks beside one to be alone: %s", life)
        self._check_amount(life, len(message.ids), ahead)
        stage.note_work(now)

    def _live(self, task_id: int, name: str, life: Life) -> Case:
        unit = life.stage.unit_of(task_id)
        if isinstance(unit, Flight):
            self._journal.require(unit.name == name, Contract.RIGHT_ANSWER, "%s was sent as %s", unit, name)
            self._journal.count("work for several" if len(unit.live) > 1 else "work for one that others may share")
            return unit
        case = self._service.open.get(name)
        if case is not None and case.flight is not None:
            raise self._journal.fail(Contract.ONCE, f"{case} was sent to {life}, and {case.flight} is equal")
        if case is None or case.done or case.left or case.submitted > case.admitted:
            raise self._journal.fail(Contract.CANCELLATION, f"{name} was sent to {life} though it is over")
        return case

    def _check_content(self, case: Case, flags: int, payload: Payload) -> None:
        require = self._journal.require
        require(payload == case.payload, Contract.RIGHT_ANSWER, "%s got %r", case, payload)
        first, last = (OBJECT_IN, OBJECT_OUT) if case.objects else (INGRESS, EGRESS)
        needed = (first if case.position == 0 else 0) | (last if case.is_last else 0)
        require(flags == needed, Contract.RIGHT_ANSWER, "%s got the flags %d", case, flags)

    def _check_attempts(self, case: Case, most: int) -> None:
        require = self._journal.require
        require(case.deaths < most, Contract.CRASH, "%s is run again after %d deaths", case, case.deaths)
        require(case.events == 0, Contract.CRASH, "%s is run again after an event", case)

    def _check_company(self, life: Life, unit: list[Case]) -> None:
        """Check that tasks may share a batch: they have one key, and cost no more than they may."""
        plan, require = life.stage.plan, self._journal.require
        if plan.batch_size == 1 or len(unit) == 1:
            return
        keys = {case.arrival.key for case in unit}
        require(not plan.rules.keyed or len(keys) == 1, Contract.COMPANY, "%s has the keys %s in a batch", life, keys)
        costs = [case.arrival.cost for case in unit]
        spent = max(costs) * len(costs) if plan.rules.by_cost else sum(costs)
        within = not plan.rules.max_cost or spent <= plan.rules.max_cost
        require(within, Contract.COMPANY, "%s has a batch of %s, above %d", life, costs, plan.rules.max_cost)
        self._journal.count("batches of a key" if plan.rules.keyed else "batches")
        if plan.rules.max_cost:
            self._journal.count("batches within a budget")

    def _check_target(self, life: Life, unit: list[Case]) -> None:
        """Check that a smaller batch would not have had a task in time which this one has late, by what is predicted.

        Args:
            life: a worker that begins the batch now.
            unit: what it is sent.
        """
        plan = life.stage.plan
        scheduler = None if self.scheduler is None else self.scheduler(life.stage.index)
        steering = None if scheduler is None else scheduler.steering
        if steering is None or scheduler is None or plan.rules.by_cost or len(unit) == 1 or not steering.times.known:
            return
        costs = [case.arrival.cost if plan.rules.max_cost else 1 for case in unit]
        predicted = [steering.times.of(max(1, total)) for total in accumulate(costs)]
        if not steering.reached:
            # A target that nothing can meet.
            return
        self._journal.count("batches for a target")
        require, now = self._journal.require, self._journal.now
        whole = predicted[-1]
        allowed = sum(seconds <= steering.target + ROUNDING for seconds in predicted)
        if allowed < len(unit) and all(case.queued_at + steering.target < now + CLOCK_ERROR for case in unit[:allowed]):
            # So many that all of the largest batch for the target are late: there the target bounds nothing.
            self._journal.count("batches beyond a target")
            return
        require(whole <= steering.target + ROUNDING, Contract.TARGET, "%s has a batch of %s s", life, whole)
        floor = steering.times.of(steering.bounds(scheduler.slots).floor)
        dues = [min(case.queued_at + steering.target, case.latest) - now for case in unit]
        for place in range(1, len(unit)):
            smaller = predicted[place - 1]
            if floor <= smaller + ROUNDING:
                saved = [due for due in dues[:place] if smaller + TOLERANCE <= due < whole - TOLERANCE]
                require(not saved, Contract.TARGET, "%s has a batch of %d, %d is in time", life, len(unit), place)

    def _check_amount(self, life: Life, count: int, batches: int) -> None:
        """Check that a worker has no more than it can run, and what may be sent ahead.

        Args:
            life: the worker.
            count: the tasks that it is sent.
            batches: those that it had before.
        """
        plan, require = life.stage.plan, self._journal.require
        sizes = [plan.batch_size for plan in life.stage.views]
        if plan.batch_size > 1:
            require(count <= max(sizes), Contract.BOUNDED, "a batch of %d for %s", count, life)
            require(count <= life.spec.max_batch_size, Contract.CHANGE, "a batch of %d for %s", count, life)
            if batches >= plan.concurrency:
                # One that costs enough is full as well, whatever of it fits, and one that may not grow for its target.
                steered = any(view.steered_target for view in life.stage.views)
                full = count in sizes or plan.rules.max_cost > 0 or plan.rules.by_cost or steered
                ahead = batches == plan.concurrency and full
                require(ahead, Contract.BOUNDED, "%d tasks ahead for %s with %d batches", count, life, batches)
            return
        concurrency = max(plan.concurrency for plan in life.stage.views)
        if concurrency > 1:
            most = concurrency + concurrency // 4
        elif life.quickest is None or life.quickest >= SLOW_SECONDS:
            most = 1
        else:
            most = MOST_AHEAD
        require(len(life.unheard) <= most, Contract.BOUNDED, "%s has %d tasks", life, len(life.unheard))
