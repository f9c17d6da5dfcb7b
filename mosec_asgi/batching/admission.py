"""Which calls are admitted, and which tasks are still worth a worker's time. Pure: time comes in as `now`.

A first-come-first-served queue under more load than its workers can bear fills until every task in it is about to
expire; then workers are busy all the time with work that nobody waits for. So a call is admitted only if it can be
*finished* in time, and whatever cannot be finished any more never reaches a worker.

Theory of operation
-------------------
*What is measured.* For each stage, the time of a unit of work (a task or a batch, see `service_time`) as the server
sees it: from the moment at which a worker's slot begins it until its answer comes. The number of slots is the number of
ready workers times their concurrency. With `units` ahead of it, a task begins when all but `slots - 1` of them are
done. One unit is done every `mean / slots` seconds, counted from when the latest unit was done. If no unit was done for
longer than a unit takes, the units that run are expected to take as long again.

*At admission.* The time at which the call will be done is added up along the stages of its route: at each, the call
waits for the tasks that are there and those on their way there (`coming`: admitted, and still at earlier stages), and
then takes its own time. The tasks ahead count with the mean time, the call itself with the time that nearly all tasks
take. A stream counts with the time to its first event, and holds its slot until its end. A stage without measurements
refuses nothing. That its first task has been running for long does not mean that the next ones will: code may be
compiled for it. Nor does a long queue mean that a call is late: tasks ahead of it may expire before their turn.

A batch waits to fill only as long as its tasks have time for that (`leeway`), so that no call is refused for this wait.
Where the cost of what waits says how many batches that is, it counts by its cost (`Load.queued_work`).

*At the head of the queue* the same estimate is made with nothing ahead, and a task that cannot be finished any more is
dropped. So an estimate that was wrong at admission costs an answer, never a worker's time. A call's own time counts as
at most half of its timeout, unless most calls take longer: a few slow calls must not cause all calls to be refused.

*Chance.* The allowance for chance depends on the load (`CAUTION`). Near its capacity a stage refuses only calls that
have nearly no hope, and counts the call's usual time: a refused call might have been served. Under overload there are
always other calls, so a call that is only likely to be in time gives way to one that is nearly certain to be. What is
measured is wrong by chance, too: in the first seconds, and for long where times have a long tail. So a load counts as
too great only by what chance does not explain (`DOUBTS`).

*A short queue under overload.* If only the deadline limits the queue, every call is answered just before its deadline.
If arrivals have exceeded what the stage can do by the factor `OVERLOAD` over two timeouts (`offered`), the queue need
only be long enough not to run empty by chance. For a random walk that is a few units:
`-ln(EMPTY) * (load + scatter) / (2 * (load - 1))`, the heavy-traffic formula of Kingman. Tasks that were sent ahead of
their turn belong to the queue. A queue below that length is a burst, and bursts pass. A stage's `latency_target` asks
for a bound at any load.

Slots that began at the same time end at the same time. All tasks of such a round are begun at its end, and whoever
comes at its beginning waits for all of it. By the ages of what runs it is known when that end is near. Then the queue
may be as long as there are slots about to become free; before, it is kept to the few units.

*It never gets stuck.* A stage that has had nothing to do for `PROBE_SECONDS` refuses nothing until a task is there. So
a stage that would refuse every call because of old measurements is measured again.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

from mosec_asgi.batching.stage_admission import FRESH_SECONDS, SHORT_SECONDS, StageAdmission

# How long the first task of a queue must have waited, before the queue is kept short: so many seconds, or so much of
# the call's timeout where that is less.
STANDING_SECONDS = 0.05
STANDING_SHARE = 0.05


class Reason(str, enum.Enum):
    """Why a call is refused, as the metrics call it."""

    CLOSING = "closing"
    LOADING = "loading"
    STAGE_DOWN = "stage_down"
    CAPACITY = "capacity"
    DEADLINE = "deadline"
    OWN_TIME = "own_time"
    OVERLOAD = "overload"
    LATENCY_TARGET = "latency_target"
    GAVE_WAY = "gave_way"


class Refusal(NamedTuple):
    """Why a call is not admitted.

    Attributes:
        reason: of the refusal.
        stage: the stage that refuses, by its place in the service's list; the route's first where no stage does.
    """

    reason: Reason
    stage: int


class Calm:
    """Up to where nothing can be against a call of a route, as it is for a moment; see `Admission.is_calm`.

    Attributes:
        stages: of the route.
        most: of so many calls in the service, none is refused.
        until: when to look again.
        count: calls since the last look, not yet counted as offered to the stages.
    """

    __slots__ = ("count", "most", "stages", "until")

    def __init__(self, stages: Sequence[int]) -> None:
        self.stages = stages
        self.most = 0.0
        self.until = -math.inf
        self.count = 0

    def end(self) -> None:
        """Have it looked at anew."""
        self.until = -math.inf


class Admission:
    """Decides which calls a service admits."""

    def __init__(
        self,
        stages: Sequence[StageAdmission],
        routes: Sequence[Sequence[int]],
        *,
        timeout: float = math.inf,
        capacity: float = math.inf,
        active: bool = True,
    ) -> None:
        """Begin.

        Args:
            stages: in the order of the service's list.
            routes: the stages of each, by their places.
            timeout: of the service, in seconds.
            capacity: the most calls in the service; the caller refuses more, with the reason.
            active: refuse and drop; else only measure.
        """
        self.stages = stages
        self.active = active
        self._timeout = timeout
        self._capacity = capacity
        self._closed = False
        self._calms = [Calm(route) for route in routes]
        places = range(len(stages))
        self._earlier = [[r[: r.index(place)] for r in routes if place in r] for place in places]
        self._later = [[r[r.index(place) + 1 :] for r in routes if place in r and place != r[-1]] for place in places]
        for place, stage in enumerate(stages):
            stage.shared = any(r[0] == place for r in routes) and any(place in r[1:] for r in routes)
            stage.on_change = [calm.end for calm in self._calms if place in calm.stages]
        # Of each route: whether it must be told of a call that it was admitted.
        self.follows = [len(route) > 1 or stages[route[0]].shared for route in routes]

    def is_calm(self, route: int, there: int, timeout: float, now: float) -> bool:
        """Whether nothing can be against a call, however things stand: so few are there. It counts as judged.

        So it is nearly always, and the rest, some tenths of a microsecond for each stage, is not needed.

        Args:
            route: the place of its route.
            there: calls in the service, at whatever stage.
            timeout: its own, in seconds.
            now: the time.
        """
        calm = self._calms[route]
        if now >= calm.until:
            self._look(calm, now)
        if there >= calm.most or timeout < self._timeout:
            return False
        calm.count += 1
        return True

    def _look(self, calm: Calm, now: float) -> None:
        left, per_task = self._timeout, 0.0
        calm.most = -1.0 if self._closed else self._capacity
        calm.until = math.inf
        for index in calm.stages:
            stage = self.stages[index]
            if now >= stage.due:
                self._refresh(index, now)
            left -= stage.easy
            per_task += stage.per_task
            if stage.careful or stage.down:
                calm.most = -1.0
            calm.until = min(calm.until, stage.due)
        if per_task:
            calm.most = min(calm.most, left / per_task)

    def judge(self, route: Sequence[int], timeout: float, now: float) -> Refusal | None:
        """Return why a call is to be refused; None where it is admitted.

        Args:
            route: its stages, by their places.
            timeout: its own, in seconds.
            now: the time.
        """
        left = timeout
        for index in route:
            stage = self.stages[index]
            stage.offered.count += 1
            if now >= stage.due:
                self._refresh(index, now)
            left -= stage.easy + (stage.load.queued_work + stage.coming) * stage.per_task
            if stage.careful:
                left = -1.0
        # The rest takes some microseconds.
        if left >= 0.0 or not self.active:
            return None
        return self._judge(route, timeout, now)

    def _judge(self, route: Sequence[int], timeout: float, now: float) -> Refusal | None:
        at = own = 0.0
        for index in route:
            stage = self.stages[index]
            if not stage.known:
                continue
            at = stage.leaves(at, stage.coming, timeout, timeout, now)
            own += stage.own(timeout, 1)
            if at > timeout:
                # A call that could not even wait in the shortest queue is refused for its own time, not for the queue.
                hopeless = own + SHORT_SECONDS > timeout
                return Refusal(Reason.OWN_TIME if hopeless else Reason.DEADLINE, index)
            reason = self._too_long_a_queue(stage, timeout, now)
            if reason is not None:
                return Refusal(reason, index)
        return None

    def _too_long_a_queue(self, stage: StageAdmission, timeout: float, now: float) -> Reason | None:
        if stage.waiting >= stage.short and self._stands(stage, timeout, now):
            return Reason.OVERLOAD
        if stage.is_over_target(timeout, now):
            return Reason.LATENCY_TARGET
        return None

    def _stands(self, stage: StageAdmission, timeout: float, now: float) -> bool:
        """Whether the queue of a stage stands, and is not just about to be taken.

        Where units take microseconds, the measured time is mostly the way to the worker and back. There it is asked
        whether the first task has waited for a while, which is exact (CoDel uses it, too: RFC 8289).
        """
        soon = min(STANDING_SECONDS, timeout * STANDING_SHARE)
        if now - stage.load.waiting_since < soon and stage.times.mean <= SHORT_SECONDS:
            return False
        return stage.slots == 1 or stage.waiting >= stage.free_soon(soon, now)

    # -- what has happened -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Note that no calls are admitted: there is something against each."""
        self._closed = True
        for calm in self._calms:
            calm.end()

    def open(self) -> None:
        """Note that calls are admitted again, each on its own merits."""
        self._closed = False
        for calm in self._calms:
            calm.end()

    def turned_away(self, route: Sequence[int]) -> None:
        """Note that a call came and was refused without being judged."""
        for index in route:
            self.stages[index].offered.count += 1

    def admitted(self, route: Sequence[int]) -> None:
        """Note that a call was admitted, of a route that `follows` says so of."""
        stage = self.stages[route[0]]
        if stage.shared:
            stage.direct.count += 1
        if len(route) > 1:
            for index in route[1:]:
                self.stages[index].coming += 1

    def arrived(self, stage: int) -> None:
        """Note that a task has come from one stage to the next, which is `stage`."""
        self.stages[stage].coming -= 1

    def left(self, route: Sequence[int], position: int) -> None:
        """Note that a task has ended at the stage at `position`."""
        for index in route[position + 1 :]:
            self.stages[index].coming -= 1

    def _refresh(self, index: int, now: float) -> None:
        """Read what has been measured of a stage."""
        for calm in self._calms:
            for place in calm.stages:
                self.stages[place].offered.count += calm.count
            calm.count = 0
        stage = self.stages[index]
        stage.supply = sum(
            min((self.stages[i].per_second or math.inf for i in earlier), default=math.inf)
            for earlier in self._earlier[index]
        )
        stage.supply_scatter = max(
            (self.stages[i].times.scatter for earlier in self._earlier[index] for i in earlier), default=0.0
        )
        stage.due = now + FRESH_SECONDS
        stage.refresh(now)
        if self.active and stage.known:
            later = (self._margin_of(later) for later in self._later[index])
            stage.margin = stage.easy + max(later, default=0.0)
        self._tell_leeway(index)
        stage.upstream = max(
            (sum(self.stages[i].times.mean for i in earlier) for earlier in self._earlier[index]), default=0.0
        )

    def _tell_leeway(self, index: int) -> None:
        """Let a stage's scheduler know what its tasks need from when they are sent to a worker."""
        stage = self.stages[index]
        routes = [[self.stages[place] for place in later] for later in self._later[index]]
        needs = (sum(each.easy + each.load.queued_work * each.per_task for each in later) for later in routes)
        known = stage.known and all(each.known for later in routes for each in later)
        stage.leeway.learn(stage.easy + max(needs, default=0.0), known=known)

    def _margin_of(self, later: Sequence[int]) -> float:
        """Return the most seconds that the later stages take, an estimate that holds for `FRESH_SECONDS` from now."""
        stages = [self.stages[index] for index in later]
        return sum(FRESH_SECONDS + 2.0 * (stage.easy + stage.load.queued_work * stage.per_task) for stage in stages)

    # -- at the head of a queue --------------------------------------------------------------------------------------

    def is_late(
        self, route: Sequence[int], position: int, together: int, deadline: float, limit: float, now: float
    ) -> bool:
        """Whether a task that would be sent to a worker now can no longer be finished in time.

        Args:
            route: of the call.
            position: in it, of the stage that the task is at.
            together: tasks that are sent as a unit.
            deadline: of the call.
            limit: the call's timeout, in seconds.
            now: the time.
        """
        stage = self.stages[route[position]]
        if now >= stage.due:
            self._refresh(route[position], now)
        if not stage.known:
            return False
        return now + self.needs(route, position, together, limit, now) > deadline

    def needs(self, route: Sequence[int], position: int, together: int, limit: float, now: float) -> float:
        """Return the seconds until a task is done if a worker is sent it now; for the arguments see `is_late`."""
        stage = self.stages[route[position]]
        at = 0.0 if stage.is_unproven(now) else stage.wait(0, now) + stage.own(limit, together)
        before: float = stage.load.in_flight
        for index in route[position + 1 :]:
            stage = self.stages[index]
            if stage.known:
                # It waits for no batch to fill there, if it has no time for that.
                at = stage.leaves(at, before, limit, 0.0, now)
            before += stage.load.queued_work + stage.load.in_flight
        return at

    def retry_after(self, route: Sequence[int], now: float) -> float:
        """Return the seconds that the slowest of the stages needs for its present tasks; 0 while that is not known."""
        return max(self.stages[index].backlog(now) for index in route)
