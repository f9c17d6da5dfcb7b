"""What the service owes once all that was ready has run, and what it may leave behind at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mosec_asgi.testing.simulation.client_oracle import TOLERANCE
from mosec_asgi.testing.simulation.contracts import Contract, Record, Watcher

from mosec_asgi.batching.service import Statistics
from mosec_asgi.batching.stage import GRACE_SECONDS, LOOK_SECONDS
from mosec_asgi.metrics import StageMetrics
from mosec_asgi.pool.supervisor import EXIT_SECONDS
from mosec_asgi.testing.simulation.model import CLOCK_ERROR, Life, Phase, Picture, Place, StageModel


class DebtOracle(Watcher):
    """Looks, whenever time is about to pass, for what should have happened by now."""

    def __init__(self, picture: Picture, record: Record, clock: Callable[[], float]) -> None:
        super().__init__(record, clock)
        self._picture = picture
        self._limit = picture.world.limits.stream_buffer
        # When to look again if nothing happens before.
        self._next_due = -math.inf

    def settle_up(self, statistics: Callable[[], Statistics], metrics: Sequence[StageMetrics]) -> None:
        """Check what the service owes now that all that was ready has run.

        Args:
            statistics: asks the service how things stand.
            metrics: of its stages.
        """
        now = self.clock()
        if not self.record.news and now <= self._next_due:
            return
        self._next_due = math.inf
        for case in self._picture.open.values():
            if case.expected is not None or case.left:
                raise self.fail(Contract.ONE_ANSWER, f"{case} should have its answer: {case.expected!r}")
            self._owed(case.latest, now, Contract.ONE_ANSWER, "%s is beyond its deadline", case)
        for stage in self._picture.stages:
            self._settle_order(stage)
            for place in stage.places.values():
                self._settle_place(stage, place, now)
            if self._picture.stopping is None and stage.waiting and not stage.down:
                self._settle_waiting(stage, now)
        if self.record.news:
            self.record.news = False
            self._compare(statistics(), metrics)

    def _owed(self, due: float, now: float, contract: Contract, text: str, *arguments: Any) -> None:
        """Raise a violation if something was due before now; else look again when it is."""
        due += TOLERANCE
        if now > due:
            raise self.fail(contract, text % arguments)
        self._next_due = min(self._next_due, due)

    def _settle_order(self, stage: StageModel) -> None:
        if stage.overtaken:
            overtaken = [case for case in stage.overtaken if not case.done]
            self.require(not overtaken, Contract.ORDER, "%s were overtaken at stage %d", overtaken, stage.index)
            stage.overtaken.clear()

    # -- workers -----------------------------------------------------------------------------------------------------

    def _settle_place(self, stage: StageModel, place: Place, now: float) -> None:
        life = place.life
        if life is None:
            if place.again is not None and self._picture.stopping is None:
                text = "a worker of stage %d was not replaced"
                self._owed(place.again[1], now, Contract.RESPAWN, text, stage.index)
        elif life.lost_at is not None or life.failed_at is not None:
            if not life.killed and self._picture.stopping is None:
                self._owed(_kill_due(life), now, Contract.RESPAWN, "%s is given up and lives", life)
        elif life.phase is Phase.STARTING:
            due = life.launched_at + stage.plan.start_timeout
            self._owed(due, now, Contract.TIME, "%s takes too long to start and lives", life)
        elif life.unheard and life.phase is Phase.READY:
            self._settle_worker(life, now)

    def _settle_worker(self, life: Life, now: float) -> None:
        due = life.still_since + life.stage.plan.timeout + GRACE_SECONDS + 2 * LOOK_SECONDS + TOLERANCE
        self._owed(due, now, Contract.TIME, "%s makes no step and lives", life)
        for task_id, case in life.unheard.items():
            if case.done:
                if task_id not in life.cancelled:
                    raise self.fail(Contract.CANCELLATION, f"{life} was not told that {case.name} is over")
            elif case.streams and (case.read - case.reported) * 4 >= self._limit:
                raise self.fail(Contract.PROGRESS, f"{life} was not told what the client of {case.name} has read")

    def _settle_waiting(self, stage: StageModel, now: float) -> None:
        waiting, plan, ready = stage.live(), stage.plan, stage.ready
        lone = next((case for case in waiting if case.alone), None)
        if lone is not None:
            empty = [life for life in ready if not life.unheard]
            self.require(not empty, Contract.PROGRESS, "%s, to be alone, waits beside %s", lone, empty)
            if plan.concurrency == 1:
                # The others wait until some worker has done what it has.
                return
        others = [case for case in waiting if not case.alone]
        if not others:
            return
        first, full = others[0], len(others) >= plan.batch_size
        due = now - 2 * TOLERANCE if full else first.queued_at + plan.max_wait
        # A full batch goes ahead to a busy worker.
        most = plan.concurrency + (1 if full and plan.batch_size > 1 else 0)
        for life in ready:
            running = life.batches if plan.batch_size > 1 else len(life.unheard)
            if running < most and not life.runs_alone:
                self._owed(due, now, Contract.PROGRESS, "%s waits beside %s", first, life)

    # -- numbers -----------------------------------------------------------------------------------------------------

    def _compare(self, statistics: Statistics, metrics: Sequence[StageMetrics]) -> None:
        """Check that the service's own numbers are those of the picture."""
        admitted = (statistics.admitted, len(self._picture.open))
        self.require(admitted[0] == admitted[1], Contract.MEASURE, "it counts %d admitted, not %d", *admitted)
        for stage, told, measured in zip(self._picture.stages, statistics.stages, metrics, strict=True):
            ready, plan = stage.ready, stage.plan
            units = [life.batches if plan.batch_size > 1 else len(life.unheard) for life in ready]
            running = sum(min(unit, plan.concurrency) for unit in units)
            waiting, held = len(stage.live()), sum(len(life.unheard) for life in ready)
            there = (waiting, held, len(ready), stage.down, running)
            says = (told.queued, told.in_flight, told.ready, told.down, measured.gauges().running)
            if there != says:
                raise self.fail(Contract.MEASURE, f"stage {stage.index} counts {says}, not {there}")

    def check_totals(self, metrics: Sequence[StageMetrics]) -> None:
        """Check what was counted and measured in the end."""
        for stage, measured in zip(self._picture.stages, metrics, strict=True):
            happened = stage.happened
            for name in ("rejected", "timed_out", "cancelled"):
                said, right = getattr(measured, name), happened[name]
                self.require(said == right, Contract.MEASURE, "stage %d: %s %s, not %s", stage.index, name, said, right)
            for name in ("queue_wait", "first_event", "event_gap"):
                histogram = getattr(measured, name)
                # What was sent to a worker that had just died was sent all the same.
                if name != "queue_wait" or histogram.count <= happened[name]:
                    wrong = abs(histogram.total - happened[f"{name} seconds"])
                    right = histogram.count == happened[name] and wrong <= CLOCK_ERROR * (histogram.count + 1)
                    self.require(right, Contract.MEASURE, "stage %d: %s is wrong by %s", stage.index, name, wrong)
            now = (measured.streams_open, measured.gauges()[:3])
            self.require(now == (0, (0, 0, 0)), Contract.MEASURE, "stage %d has left %s", stage.index, now)


def _kill_due(life: Life) -> float:
    """Return when a worker that is given up is killed: at once, unless it may be about to end by itself."""
    if life.may_exit_until is not None:
        return life.may_exit_until
    if life.failed_at is not None:
        return life.failed_at + EXIT_SECONDS
    return life.lost_at or 0.0
