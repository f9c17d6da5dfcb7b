"""The measured speed of one stage, and what follows from it for the admission of calls. Pure.

The module `admission`, which uses this one, explains the theory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from mosec_asgi.batching.leeway import Leeway
from mosec_asgi.batching.offered import Offered
from mosec_asgi.batching.service_time import ALONE, MOST_SAMPLES, ServiceTimes

# The ratio of arrivals to what the stage can do from which its queue is kept short; LEAST must hold in every span.
OVERLOAD = 1.75
LEAST_OVERLOAD = 1.3
# The same, over a longer time: up to where a stage refuses only what is nearly hopeless, and from where only what is
# nearly certain to be in time is worth a worker's time.
CAUTION = (1.0, 1.15)
# Standard errors of the measured speed, and of the counted arrivals, that are allowed for before that. A wrong speed
# stays wrong for long; arrivals are counted anew all the time.
DOUBTS = (2.0, 1.0)
# Standard deviations of the work ahead that are allowed for at the door: near capacity, and under overload.
DEVIATIONS = (-1.75, 1.0)
# How often a short queue may run empty.
EMPTY = 0.06
# The scatter that is assumed even for perfectly regular arrivals.
STEADY = 0.2
PROBE_SECONDS = 1.0
# Seconds of work in the shortest queue that is kept: where units take microseconds, a few of them are nothing.
SHORT_SECONDS = 0.01
# Seconds for which an evaluation of the measurements is used again. One evaluation takes some 0.1 ms.
FRESH_SECONDS = 0.05
# Of an end that is predicted, in seconds: less is an error of rounding.
ROUNDING = 1e-6
# Seconds of work in a quick worker's window, as in the scheduler: may be ahead though nothing is queued.
WINDOW_SECONDS = 0.0015


class Load(Protocol):
    """What a stage has, at this moment."""

    @property
    def queued_work(self) -> float:
        """What waits, counted in tasks of the usual cost."""

    @property
    def in_flight(self) -> int:
        """Tasks that workers have."""

    @property
    def units(self) -> int:
        """Units of work that workers have: batches, or tasks where there is no batching."""

    @property
    def workers(self) -> int:
        """Workers that can be given tasks."""

    @property
    def waiting_since(self) -> float:
        """When the task that waits the longest came; infinite where none waits."""

    def begun_before(self, time: float) -> int:
        """Return how many of the tasks that workers run at this moment were begun before `time`."""


class _Pause:
    """The latest pause in which several units stood still.

    Attributes:
        until: when the first of these was answered.
        seconds: of that unit.
    """

    __slots__ = ("seconds", "until")

    def __init__(self) -> None:
        self.until = -math.inf
        self.seconds = 0.0

    def is_over(self, began: float, seconds: float) -> bool:
        """Whether a slow unit is of another pause: not if this one, of such a length, had only just ended."""
        return began > self.until + self.seconds or seconds > 2.0 * self.seconds


class StageAdmission:
    """What is known of one stage's speed, and what follows from it.

    Attributes:
        offered: calls that were to come here, the refused ones too.
        done: tasks that workers have answered.
        direct: those that were admitted and came here first.
        pressure: what is offered in relation to what the stage can do.
        caution: from 0, near capacity, to 1 under overload, where only calls that are nearly certain to be in time are
            admitted.
        coming: tasks that are admitted and still at earlier stages.
        slots: units of work that run at a time; where no worker is ready, those of the one that starts.
        margin: a task that is begun now and has more seconds than this left is in time.
        shared: some route has this stage first, and another has it later.
        supply: tasks per second that earlier stages can bring at most.
        supply_scatter: the squared coefficient of variation of those stages' times.
        upstream: seconds that tasks on their way here take at earlier stages, without waiting there.
        target: seconds that a task should spend here at most; 0 for no such wish.
        done_in: tells for a time in how many seconds a task is done that comes then, where batches are formed for the
            target: it knows what each worker has. None where it cannot tell.
        times: of its units of work.
        on_change: called when there are more or fewer workers.
        down: no call can be served here; the caller refuses it, with the reason.
        due: when the service has to read again what follows, with what it knows of other stages (`Admission`).
        known: anything has been measured.
        careful: each call must be looked at closely.
        easy: seconds that a task takes here at most, where none is queued, and it does not wait for a batch to fill.
        leeway: hears what a task needs that waits for its batch to fill; its scheduler goes by that.
        per_task: seconds that each queued task adds to that.
        short: a queue below this is never too long.
    """

    __slots__ = (
        "_batch_size", "_before_next", "_concurrency", "_every", "_first_pause", "_firsts", "_max_wait",
        "_most", "_no_worker_since", "_pause", "_progress", "_read_due", "_soon", "_soon_due", "_start", "careful",
        "caution", "coming", "direct", "done", "done_in", "down", "due", "easy", "known", "leeway", "load", "margin",
        "offered", "on_change", "per_task", "pressure", "shared", "short", "slots", "supply", "supply_scatter",
        "target", "times", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        load: Load,
        timeout: float,
        *,
        batch_size: int = 1,
        concurrency: int = 1,
        max_wait: float = 0.0,
        streams: bool = False,
        latency_target: float = 0.0,
    ) -> None:
        """Begin without knowledge.

        Args:
            load: of the stage.
            timeout: of the service, in seconds.
            batch_size: the most tasks in a unit of work.
            concurrency: units that a worker runs at a time.
            max_wait: seconds that an idle worker waits for a batch to fill, if it always does.
            streams: the first event is what must come in time.
            latency_target: seconds that a task should spend here at most; 0 for no such wish.
        """
        self.load = load
        # The size of a batch where there is always work, and the most that one may have.
        self._batch_size = self._most = batch_size
        self._concurrency = concurrency
        self._max_wait = max_wait
        self.target = latency_target
        self.done_in: Callable[[float], float | None] = _unknown
        self.leeway = Leeway()
        self.times = ServiceTimes(batch_size)
        self._firsts = ServiceTimes() if streams else None
        self.offered = Offered(timeout)
        self.direct = Offered(timeout)
        self.done = Offered(timeout)
        self.pressure = 0.0
        self.caution = 0.0
        self.slots = concurrency
        self.margin = -math.inf
        self.supply = math.inf
        self.supply_scatter = 0.0
        self.shared = False
        self.coming = 0
        self.upstream = 0.0
        # When a unit was last begun on a free slot, or answered.
        self._progress = -math.inf
        self.due = self._read_due = -math.inf
        # Since when there is no worker, if there is none; and the seconds that the latest took to start.
        self._no_worker_since: float | None = None
        self._start = 0.0
        self._pause, self._first_pause = _Pause(), _Pause()
        # Of so many units, the time of one is noted, and how many are still to come before the next of those.
        self._every = self._before_next = 1
        self.on_change: Sequence[Callable[[], None]] = ()
        self.known = self.careful = self.down = False
        self.easy = self.per_task = 0.0
        self.short = math.inf
        # How many of the running tasks may be done soon, and when to count them again.
        self._soon = 0
        self._soon_due = -math.inf

    def configure(self, *, batch_size: int, concurrency: int, max_wait: float, latency_target: float) -> None:
        """Go on with other values; for the arguments see `__init__`.

        Where a unit of work is another from here on, what was measured of units is forgotten, and nothing is refused
        for it until it is known again.
        """
        if (batch_size, concurrency) != (self._most, self._concurrency):
            self._batch_size = self._most = batch_size
            self._concurrency = concurrency
            self.times = ServiceTimes(batch_size)
            self.known = self.careful = False
            self.leeway.learn(0.0, known=False)
            self.easy = self.per_task = self.caution = self.pressure = 0.0
            self.short = math.inf
            self.margin = -math.inf
        elif not latency_target:
            self.batches_of(batch_size)
        self._max_wait = max_wait
        self.target = latency_target
        self._changed()

    def batches_of(self, size: int) -> None:
        """Reckon with batches of another size: a latency target bounds them. What was measured of batches stays."""
        if size != self._batch_size:
            self._batch_size = size
            self.times.resize(size)
            self.due = self._read_due = -math.inf

    # -- what has happened -------------------------------------------------------------------------------------------

    def sent(self, units: int, now: float) -> None:
        """Note that workers were sent so many units of work, after the fact."""
        if self.load.units - units < self.slots:
            # The first of them is begun now, as a slot was free.
            self._progress = now

    def answered(self, items: int, began: float, now: float, *, units: int, wanted: bool) -> None:
        """Note that a worker has answered.

        Args:
            items: the number of tasks.
            began: when it turned to the first of them.
            now: the time.
            units: units of work that it has come to the end of.
            wanted: somebody still waits for one of the answers at least.
        """
        self._progress = now
        self.done.count += items
        if not units:
            return
        self._before_next -= 1
        if self._before_next > 0:
            return
        self._before_next = self._every
        seconds = now - began
        if self._batch_size == 1:
            # One after the other, where a worker runs one at a time.
            if self._concurrency == 1:
                seconds /= items
            else:
                items = 1
        elif self._concurrency > 1:
            # More batches than it runs at a time may have been sent to it: when each was begun is not known.
            seconds *= min(1.0, self.slots / (self.load.units + units))
        # The units that ran together while all of them stood still have seen the same thing: one of them is enough.
        if seconds > self.times.high and self._stood_still(began, seconds, now):
            return
        # Workers skip tasks of clients that have left: quick, but not because the work is.
        if wanted or seconds > self.times.mean:
            self.times.add(items if self._firsts is None else self._batch_size, seconds, began)

    def _stood_still(self, began: float, seconds: float, now: float) -> bool:
        """Whether a unit is slow because the stage stood still, as one that was noted before says already.

        A machine or a worker that pauses holds up all slots at once. Were each of their units to count, the stage would
        be taken to have become slower, and calls be refused long after the pause. A stage that has become slower is
        slow in the next round of its slots, too, of which all count.
        """
        pause = self._pause
        if began < pause.until:
            return True
        if self.times.mean and pause.is_over(began, seconds):
            running, overdue = self.load.begun_before(now), self.load.begun_before(now - self.times.high)
            if overdue and 2 * overdue >= running:
                pause.until, pause.seconds = now, seconds
        return False

    def joined(self, *, first: bool) -> None:
        """Note that a call, which was counted as it came, shares the work of another.

        Args:
            first: this is the first stage of its route.
        """
        self.offered.count -= 1
        if first and self.shared:
            self.direct.count -= 1

    def worker_ready(self, seconds: float) -> None:
        """Note that there is one more worker, `seconds` after its launch."""
        self._start = seconds
        self._no_worker_since = None
        self.down = False
        self._changed()

    def went_down(self) -> None:
        """Note that no worker is ready, and that none could be started."""
        self.down = True
        self._changed()

    def worker_gone(self, now: float) -> None:
        """Note that there is one worker less, after the fact."""
        if not self.load.workers and self._no_worker_since is None:
            self._no_worker_since = now
        self._changed()

    def _changed(self) -> None:
        """Have all read anew: what was read was of other slots."""
        self.due = self._read_due = -math.inf
        for tell in self.on_change:
            tell()

    def first_event(self, began: float, now: float) -> None:
        """Note the first event of a stream, to which a worker turned at the time `began`."""
        firsts = self._firsts
        if firsts is None:
            return
        seconds = now - began
        # As for units; which streams wait for their first event is not counted, so it has to be far longer.
        if seconds > ALONE * firsts.high and firsts.mean:
            pause = self._first_pause
            if began < pause.until:
                return
            if pause.is_over(began, seconds):
                pause.until, pause.seconds = now, seconds
        firsts.add(1, seconds, began)

    # -- what follows ------------------------------------------------------------------------------------------------

    @property
    def per_second(self) -> float:
        """Tasks per second that the stage can do at most; 0 while that is not known."""
        mean = self.times.mean
        return self.slots * self._batch_size / mean if mean else 0.0

    def refresh(self, now: float) -> None:
        """Read what has been measured."""
        self.slots = max(1, self.load.workers) * self._concurrency
        self.offered.roll(now)
        self.direct.roll(now)
        self.done.roll(now)
        # So many are noted until the next time, as far as that can be told, that all the latest ones are new.
        self._every = self._before_next = max(1, self.times.noted * self._every // MOST_SAMPLES)
        known = self.times.read()
        high = self.times.high
        if self._firsts is not None:
            known = self._firsts.read() and known
            high = max(high, self._firsts.high)
        if not known:
            return
        self.known = True
        rate = self.per_second
        for counted in (self.offered, self.direct, self.done):
            counted.suit(rate)
        self.per_task = 1.0 / rate
        self.pressure = min(self.offered.per_second, self.supply) / rate
        # What earlier stages hold up counts too: there is as much to choose from.
        self.caution = _share(self.offered.sustained / (rate * (1.0 + self._doubt)), *CAUTION)
        self.short = self.most_queued
        silent = now - self._progress
        overdue = silent if silent > high and self.load.units >= self.slots else 0.0
        self.easy = 2.0 * self.times.mean + WINDOW_SECONDS + high + overdue
        is_calm = not self.caution and self.short == math.inf
        self.careful = not is_calm or self.target > 0.0 or self._no_worker_since is not None

    @property
    def _doubt(self) -> float:
        """The share by which the offered load may seem too great by chance."""
        of_speed, of_arrivals = DOUBTS
        return math.hypot(of_speed * self.times.doubt, of_arrivals * self.offered.doubt)

    def _read(self, now: float) -> None:
        """Read what has been measured, for statistics: `due` stays, or frequent statistics would put it off."""
        if now >= self._read_due:
            self._read_due = now + FRESH_SECONDS
            self.refresh(now)

    def wait(self, queued: float, now: float) -> float:
        """Return how long a task that comes after `queued` others waits for a slot, in seconds."""
        slots = self.slots
        start = self._starts_in(now)
        ahead = self._ahead(queued)
        if ahead <= 0:
            return start
        times = self.times
        gap = times.mean / slots
        if self.load.units < slots:
            # A slot is free, and is about to be taken, or will be there with the worker that starts.
            return start + ahead * gap
        silent = now - self._progress
        if slots == 1 or silent > times.high:
            return (ahead - 1) * gap + times.left(silent)
        return ahead * gap - min(silent, gap)

    def _starts_in(self, now: float) -> float:
        """Return in how many seconds there is a worker: 0 where there is one, else as the latest start has taken."""
        if self._no_worker_since is None:
            return 0.0
        gone = now - self._no_worker_since
        # Beyond that it is an exception, of which nothing is known: as long again.
        return self._start - gone if gone <= self._start else gone

    def expected_wait(self, now: float) -> float:
        """Return how long a task that comes now is likely to wait, in seconds; 0 while that is not known."""
        self._read(now)
        return self.wait(self.load.queued_work, now) if self.known else 0.0

    def own(self, limit: float, items: int) -> float:
        """Return how long a task takes in a unit of `items`, from its beginning.

        Args:
            limit: the call's timeout, in seconds.
            items: of the unit of work that it is likely to be a part of.
        """
        usual = self._usual(limit)
        high = min(self._own_times.high, limit / 2)
        return self._with(items, usual + self.caution * max(0.0, high - usual))

    def _usual(self, limit: float) -> float:
        """Return how long a call with this timeout usually takes, once it is begun.

        Other calls may take much longer, and run into their timeouts. A call that may be quick is not refused for them,
        unless nearly all are like that.
        """
        times = self._own_times
        return min(times.usual, max(times.least, limit / 2))

    @property
    def _own_times(self) -> ServiceTimes:
        """What a call waits for once it is begun."""
        return self.times if self._firsts is None else self._firsts

    def _with(self, items: int, full: float) -> float:
        """Return what a unit of `items` takes where a full one takes `full` seconds."""
        return self.times.of(items, full) if self._batch_size > 1 and self._firsts is None else full

    def leaves(self, at: float, before: float, limit: float, left: float, now: float) -> float:
        """Return in how many seconds a task is done here.

        Args:
            at: seconds in which it comes.
            before: tasks that come before it, beside those that are here.
            limit: the call's timeout, in seconds.
            left: seconds to its deadline, of which it may spend some on waiting for its batch to fill.
            now: the time.
        """
        if not before and not self.load.queued_work and self.is_unproven(now):
            return at
        queued = self.load.queued_work + before
        if at:
            queued += self.direct.per_second * at
        starts = self.wait(queued, now)
        waits = starts > at or self.load.units >= self.slots
        items = self._batch_size if waits else min(self._batch_size, int(queued) + 1)
        if not starts:
            own = self.own(limit, items)
        else:
            starts = self._allowing(starts, queued, now)
            # What is allowed for chance in the work ahead is enough for that in its own.
            own = self._with(items, self._usual(limit))
        if waits:
            return max(at, starts) + own
        return at + (min(self._max_wait, self.leeway.most(left - at)) if self._max_wait else 0.0) + own

    def _allowing(self, wait: float, queued: float, now: float) -> float:
        """Return a wait with an allowance for chance.

        Near its capacity a stage refuses only what is nearly hopeless; under overload it admits only what is nearly
        certain. What a later stage would drop has cost the earlier ones their time.
        """
        slots, mean, caution = self.slots, self.times.mean, self.caution
        ahead = max(0.0, self._ahead(queued))
        # Slots that were taken at the same time are free at the same time: in rounds.
        silent = now - self._progress if self.load.units >= slots else 0.0
        rounds = math.ceil(ahead / slots) * mean - min(silent, mean)
        wait += caution * max(0.0, rounds - wait)
        deviation = mean / slots * math.sqrt(ahead * self.times.scatter + (ahead * self.times.doubt) ** 2)
        least, most = DEVIATIONS
        return max(0.0, wait + (least + caution * (most - least)) * deviation)

    def _ahead(self, queued: float) -> float:
        """Return how many units must be done before there is a slot for a task that comes after `queued` others."""
        return self.load.units + queued // self._batch_size - self.slots + 1

    def is_over_target(self, timeout: float, now: float) -> bool:
        """Whether a call that comes now has to wait, and would be here for longer than the target."""
        if not self.target or not self.wait(self.load.queued_work, now):
            return False
        seconds = self.done_in(now) if self._no_worker_since is None else None
        return (self.leaves(0.0, 0, timeout, timeout, now) if seconds is None else seconds) > self.target + ROUNDING

    def backlog(self, now: float) -> float:
        """Return the seconds that the tasks here and on their way here take; 0 while that is not known."""
        self._read(now)
        rate = self.per_second
        return self._starts_in(now) + (self.load.queued_work + self.coming) / rate if rate else 0.0

    def is_unproven(self, now: float) -> bool:
        """Whether the stage has had nothing to do for so long that what is known of it should be tried again."""
        idle = not self.load.in_flight and now - self._progress >= PROBE_SECONDS
        return idle and self._no_worker_since is None

    @property
    def most_queued(self) -> float:
        """How many tasks may wait here, or be on their way here, before the queue is longer than it need be."""
        rate, load = self.per_second, self.pressure
        # Earlier stages limit what comes here: if they bring little more than this stage can do, a longer queue is
        # needed; if they bring less, no queue forms.
        # What was done in the same time could be done. The measured speed may be that of a moment in which the machine
        # had something else to do, and callers who wait for their answers have brought less since, too.
        able = max(rate, self.done.per_second)
        calm = self.offered.per_second < OVERLOAD * able or self.offered.least < LEAST_OVERLOAD * rate
        if calm or load <= 1.0:
            return math.inf
        # Random arrivals have a scatter of 1; the output of a saturated earlier stage has that of its times.
        came = 1.0 if self.offered.per_second <= self.supply else min(1.0, STEADY + self.supply_scatter)
        units = -math.log(EMPTY) * (load * came + self.times.scatter * self._batch_size) / (2.0 * (load - 1.0))
        return max(units + self._batch_size - 1, self._batch_size, SHORT_SECONDS * rate) + rate * self.upstream

    @property
    def waiting(self) -> float:
        """The tasks that are admitted and that no worker runs yet: on their way here, queued, or sent ahead."""
        return self.load.queued_work + self.coming + self._sent_ahead

    @property
    def _sent_ahead(self) -> int:
        """The tasks that workers have beside those that they run."""
        return max(0, self.load.units - self.slots) * self._batch_size

    def free_soon(self, seconds: float, now: float) -> int:
        """Return how many of the tasks that run may be done within so many seconds, as old as they are.

        To count them takes some microseconds for 50 slots, so a count is used again for a small part of those seconds.
        """
        if now >= self._soon_due:
            self._soon_due = now + seconds / 10.0
            self._soon = self.load.begun_before(now + seconds - self.times.least)
        return self._soon


def _unknown(now: float) -> float | None:
    """Tell nothing: no batches are formed for a target."""
    return None


def _share(value: float, least: float, most: float) -> float:
    """Return how far `value` has come from `least` to `most`, from 0 to 1."""
    return min(1.0, max(0.0, (value - least) / (most - least)))
