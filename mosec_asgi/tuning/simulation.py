"""A pipeline on virtual time: the service's own scheduler for each stage, models in the place of workers. Pure.

Calls arrive one by one, at random (Poisson); each is an item of the sample. A batch takes what the stage's line says,
and `HOP` seconds to its worker and back. All runs draw the same chance, scaled by the rate, so that what differs
between two runs is what was set, and not luck.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.task import Task
from mosec_asgi.messages import Call, Chunk, Outcome
from mosec_asgi.tuning.model import Choice, Choices, StageModel

# Seconds of a message between the server and a worker, one way.
HOP = 0.0001
# The first calls find an empty service, and do not count.
WARM_UP = 0.1
SHARE = 0.99
# The service's setting `wait`, where `max_wait_time` is left to the scheduler: seconds.
DEFAULT_WAIT = 0.01


@dataclass(frozen=True, slots=True)
class Played:
    """What a run came to. Times are in seconds.

    Attributes:
        rate: calls that arrived in a second.
        per_second: calls that were answered in a second, between the first and the last arrival that count.
        p50: the median time from arrival to answer.
        p99: the 99th percentile.
        batches: the mean size of a batch, for each stage.
        met: no more than one call in a hundred took longer than the target. Where it is False, the run ended as soon
            as that was sure, and the other numbers are of what was answered until then.
    """

    rate: float
    per_second: float
    p50: float
    p99: float
    batches: tuple[float, ...]
    met: bool


@dataclass(frozen=True)
class Workload:
    """Calls, as they are drawn once for all runs.

    Attributes:
        gaps: the times between arrivals, at one call a second.
        items: which item of the sample each is.
        wait: seconds of the service's setting `wait`.
    """

    gaps: Sequence[float]
    items: Sequence[int]
    wait: float = DEFAULT_WAIT

    @classmethod
    def drawn(cls, calls: int, items: int, seed: int = 0, wait: float = DEFAULT_WAIT) -> Workload:
        """Draw so many calls of a sample of so many items."""
        rng = random.Random(seed)
        return cls([rng.expovariate(1.0) for _ in range(calls)], [rng.randrange(items) for _ in range(calls)], wait)


class _Nobody:
    """Waits for no outcome: the simulation notes what is answered."""

    def settled(self, outcome: Outcome) -> None:
        """Do nothing."""

    def streamed(self, chunk: Chunk) -> None:
        """Do nothing."""


_NOBODY = _Nobody()


@dataclass
class _Stage:
    """A stage in a run: its model, its scheduler, and when each of its workers is free."""

    model: StageModel
    scheduler: Scheduler[int]
    free_at: list[float]
    marked: bool = False
    wake_at: float | None = None
    batches: int = 0
    tasks: int = 0


class Run:
    """One run."""

    def __init__(
        self,
        models: Sequence[StageModel],
        choices: Choices,
        workload: Workload,
        rate: float,
        *,
        target: float = math.inf,
    ) -> None:
        """Prepare.

        Args:
            models: the stages.
            choices: their settings.
            workload: what comes.
            rate: calls a second.
            target: seconds that 99 calls in a hundred may take; the run ends when it is sure that more of them do not.
        """
        self._workload = workload
        self._rate = rate
        self._target = target
        self._calls = len(workload.gaps)
        self._first = int(WARM_UP * self._calls)
        self._allowed = int((1 - SHARE) * (self._calls - self._first))
        self._stages = [_stage(model, choice, workload.wait) for model, choice in zip(models, choices, strict=True)]
        self._route = tuple(range(len(models)))
        self._events: list[tuple[float, int, int, int, Any]] = []
        self._numbers = 0
        self._answered: list[float] = []
        self._latencies: list[float] = []
        self._late = 0
        self._done = 0

    def play(self) -> Played:
        """Run until every call is answered, or the target is missed."""
        gaps, events, calls = self._workload.gaps, self._events, self._calls
        number, arrival = 0, gaps[0] / self._rate
        begin = end = 0.0
        while self._done < calls and self._late <= self._allowed:
            now = min(arrival, events[0][0]) if events else arrival
            while arrival <= now:
                if number == self._first:
                    begin = arrival
                end = arrival
                self._come(Task(Call(number, 0, b"", ""), _NOBODY, self._route, now, math.inf), 0, now)
                number += 1
                arrival = arrival + gaps[number] / self._rate if number < calls else math.inf
            while events and events[0][0] <= now:
                _, _, place, worker, what = heapq.heappop(events)
                self._happen(place, worker, what, now)
            for place, stage in enumerate(self._stages):
                if stage.marked:
                    stage.marked = False
                    self._decide(place, stage, now)
        return self._outcome(begin, end)

    def _at(self, when: float, place: int, worker: int, what: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (when, self._numbers, place, worker, what))

    def _come(self, task: Task, place: int, now: float) -> None:
        stage = self._stages[place]
        task.cost, task.key = stage.model.labels[self._workload.items[task.id]]
        stage.scheduler.enqueue(task, now)
        stage.marked = True

    def _happen(self, place: int, worker: int, what: Any, now: float) -> None:
        stage = self._stages[place]
        stage.marked = True
        if isinstance(what, float):
            # A timer; one that was set anew is another one, and this fires for nothing.
            if stage.wake_at == what:
                stage.wake_at = None
            return
        seconds, ids = what
        for task in stage.scheduler.answered(worker, ids, seconds, now):
            if task.at_last_stage:
                self._settle(task, now)
            else:
                task.advance(b"", now)
                self._come(task, place + 1, now)

    def _settle(self, task: Task, now: float) -> None:
        task.settle()
        self._done += 1
        self._answered.append(now)
        if task.id >= self._first:
            latency = now - task.arrived
            self._latencies.append(latency)
            self._late += latency > self._target

    def _decide(self, place: int, stage: _Stage, now: float) -> None:
        assignments, wake_at = stage.scheduler.assign(now)
        batched = stage.scheduler.batched
        for each in assignments:
            for tasks in [each.tasks] if batched else [[task] for task in each.tasks]:
                seconds = stage.model.seconds([task.cost for task in tasks])
                end = max(now + HOP, stage.free_at[each.worker]) + seconds
                stage.free_at[each.worker] = end
                stage.batches += 1
                stage.tasks += len(tasks)
                self._at(end + HOP, place, each.worker, (seconds, [task.id for task in tasks]))
        if wake_at != stage.wake_at:
            stage.wake_at = wake_at
            if wake_at is not None:
                # A timer of the event loop fires after whole milliseconds, never early. Without the nanosecond an error
                # of rounding would be a millisecond.
                delay = math.ceil(max(0.0, wake_at - 1e-9 - now) * 1000) / 1000
                self._at(max(wake_at, now + delay), place, 0, wake_at)

    def _outcome(self, begin: float, end: float) -> Played:
        latencies = sorted(self._latencies) or [math.inf]
        done = sum(begin < when <= end for when in self._answered)
        return Played(
            self._rate,
            done / (end - begin) if end > begin else 0.0,
            latencies[len(latencies) // 2],
            latencies[max(0, len(latencies) - 1 - self._allowed)],
            tuple(stage.tasks / stage.batches if stage.batches else 0.0 for stage in self._stages),
            self._late <= self._allowed,
        )


def _stage(model: StageModel, choice: Choice, wait: float) -> _Stage:
    scheduler: Scheduler[int] = Scheduler(
        choice.size,
        choice.wait / 1000 if choice.wait else wait,
        adaptive=not choice.wait,
        rules=Rules(
            max_cost=choice.budget if choice.size > 1 else 0,
            keyed=model.keyed and choice.size > 1,
            by_cost=model.pads and choice.size > 1,
        ),
    )
    for worker in range(choice.num):
        scheduler.add_worker(worker)
    return _Stage(model, scheduler, [0.0] * choice.num)
