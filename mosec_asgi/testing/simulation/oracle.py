"""What must hold of a service, whatever happens: its contracts, checked against the simulation's own picture.

The oracle stands between the service and the world. It sees what clients ask and what they are answered, what workers
are sent and what they say, and keeps its picture (`model`) of it. A contract is checked at the moment at which it can
be broken: when a message is sent, an answer arrives, a worker is ended. What the service owes is checked whenever all
that was ready has run and time is about to pass (`settle_up`): by then a task that can start must have started, and who
must have an answer must have it.

A violation is recorded as well as raised, so that no `except` in the service can hide it.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mosec_asgi.batching.coordinator import CLOSE_SECONDS, MOST_RETRY_SECONDS
from mosec_asgi.batching.engine import StageStatistics, Statistics
from mosec_asgi.batching.stage import GRACE_SECONDS, LOOK_SECONDS
from mosec_asgi.errors import (
    CLIENT_LEFT,
    CLOSING,
    NOT_BEGUN,
    STAGE_DOWN,
    STALLED,
    TIMED_OUT,
    TOO_LONG,
    WORKER_DIED,
    Failure,
    at_capacity,
    overloaded,
    too_late,
)
from mosec_asgi.messages import (
    EGRESS,
    INGRESS,
    OBJECT_IN,
    OBJECT_OUT,
    OK,
    Cancels,
    Chunks,
    Outcome,
    Payload,
    Results,
    Tasks,
)
from mosec_asgi.pool.supervisor import EXIT_SECONDS
from mosec_asgi.testing.simulation.messages import Asked, Failed, Held, Ready, Said, as_bytes
from mosec_asgi.testing.simulation.model import Case, Life, Phase, Place, StageModel
from mosec_asgi.testing.simulation.scenario import World

# Timers are rounded up to whole milliseconds, and the clock may lag behind the loop's time by nearly one.
TOLERANCE = 0.003
# Seconds before a dead worker is replaced: the first wait, and the longest.
FIRST_BACKOFF = 0.1
MOST_BACKOFF = 30.0
# Of a worker that was ready before it died.
MOST_BACKOFF_READY = 1.0
HEALTHY_SECONDS = 10.0
# A worker that needs as long for a task is sent no second one before it has answered.
SLOW_SECONDS = 0.002
MOST_AHEAD = 128
REMEMBERED = 60
SHOWN = 40

OVERFLOW = "sent more of a stream than there was room for"
# The service may take it for that, depending on what it had told the worker by then.
DOUBTFUL = "may have " + OVERFLOW


class Contract(enum.Enum):
    """The contracts of DESIGN.md, section 5, and what goes without saying."""

    ONE_ANSWER = "1 one answer"
    RIGHT_ANSWER = "2 right answer"
    BOUNDED = "3 bounded"
    CRASH = "5 crash"
    RESPAWN = "6 respawn"
    TIME = "7 time"
    CANCELLATION = "8 cancellation"
    SHUTDOWN = "9 shutdown"
    ORDER = "10 order"
    PROGRESS = "no task waits beside a worker that could run it"
    PROTOCOL = "workers are spoken to as they can understand"
    MESSAGES = "messages are the same after any way"
    MEMORY = "what lies in memory is dropped once"
    NO_ERRORS = "no exception escapes"


class Violation(AssertionError):
    """A contract does not hold.

    Attributes:
        contract: which.
        seed: of the history in which it was broken.
        replay: how to see it again.
    """

    def __init__(self, contract: Contract, text: str) -> None:
        super().__init__(f"{contract.value}: {text}")
        self.contract = contract
        self.seed: int | None = None
        self.replay = ""

    def tell(self, seed: int, history: list[str], replay: str) -> None:
        """Say where it comes from, and what happened before."""
        self.seed, self.replay = seed, replay
        lines = [f"seed {seed} breaks a contract: {self}", *history[-SHOWN:], f"to see it again: {replay}"]
        self.args = ("\n".join(lines),)


class Oracle:
    """Watches a service and says when it breaks a contract."""

    def __init__(self, world: World, clock: Callable[[], float], *, verbose: bool = False) -> None:
        """Begin with nothing seen.

        Args:
            world: the service that is watched.
            clock: seconds.
            verbose: print each event as it happens.
        """
        self.world = world
        self.stages = [
            StageModel(index, plan, {spec.worker_id: Place() for spec in plan.specs})
            for index, plan in enumerate(world.stages)
        ]
        # The requests that have no answer yet, by name, and all that there ever were, by the numbers of their calls.
        self.open: dict[str, Case] = {}
        self.by_id: dict[int, Case] = {}
        self.violation: Violation | None = None
        # A violation was found, and what follows does not count.
        self.muted = False
        # When the service was told to stop, and with how much grace.
        self.stopping: tuple[float, float] | None = None
        self.started = False
        self.stopped = False
        # Payloads that lie in memory, and stages whose launchers have been closed.
        self.held = 0
        self.closed_launchers: set[int] = set()
        # What happened, by name, for the summary.
        self.counts: dict[str, int] = {}
        self._clock = clock
        self._verbose = verbose
        self._events: deque[tuple[float, str, tuple[Any, ...]]] = deque(maxlen=REMEMBERED)
        self._lives = 0
        # Nothing has happened since the last look, and when to look again all the same.
        self._quiet = False
        self._next_due = 0.0

    @property
    def now(self) -> float:
        """The time, in seconds."""
        return self._clock()

    # -- telling -----------------------------------------------------------------------------------------------------

    def note(self, text: str, *arguments: Any) -> None:
        """Remember an event."""
        self._quiet = False
        self._events.append((self._clock(), text, arguments))
        if self._verbose:
            print(self._line(self._events[-1]))

    def count(self, what: str) -> None:
        """Count an event for the summary."""
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def history(self) -> list[str]:
        """The last events, as text."""
        return [self._line(event) for event in self._events]

    @staticmethod
    def _line(event: tuple[float, str, tuple[Any, ...]]) -> str:
        now, text, arguments = event
        return f"{now:12.6f}  {text % arguments}"

    def fail(self, contract: Contract, text: str) -> Violation:
        """Record a violation, of which only the first counts, and return what is to be raised."""
        if self.violation is None:
            self.violation = Violation(contract, text)
            self.note("VIOLATION of %s: %s", contract.value, text)
        return self.violation

    def require(self, holds: bool, contract: Contract, text: str, *arguments: Any) -> None:
        """Raise a violation unless `holds`."""
        if not holds and not self.muted:
            raise self.fail(contract, text % arguments)

    # -- clients -----------------------------------------------------------------------------------------------------

    def submit(self, case: Case, timeout: float) -> None:
        """A call is about to be submitted."""
        now = self._clock()
        case.soonest = case.latest = now + timeout
        self.note("%s: arrives for stages %s", case.name, case.stages)
        self.require(case.id not in self.by_id, Contract.RIGHT_ANSWER, "the number %d was given out twice", case.id)
        self.by_id[case.id] = case
        self.open[case.name] = case
        self.stages[case.stage].arrive(case, now)

    def submitted(self, case: Case, *, admitted: bool) -> None:
        """It was submitted, and the service counts one more that it has admitted, or does not."""
        case.submitted = True
        case.admitted = admitted
        if admitted:
            self._admitted(case)
        else:
            self._refused(case)

    def _admitted(self, case: Case) -> None:
        others = sum(other.admitted and not other.done for other in self.open.values() if other is not case)
        limit = self.world.limits.capacity
        self.require(others < limit, Contract.BOUNDED, "%s admitted beyond a capacity of %d", case.name, limit)
        self.require(self.stopping is None, Contract.SHUTDOWN, "%s admitted after the stop", case.name)
        down = [index for index in case.stages if self.stages[index].down]
        self.require(not down, Contract.RESPAWN, "%s admitted though the stages %s are down", case.name, down)
        self.count("admitted")

    def _refused(self, case: Case) -> None:
        """Note which refusals are right at this moment; its client hears of it in a later turn."""
        self.note("%s: is to be refused", case.name)
        self.stages[case.stage].waiting.remove(case)
        case.refusals = self._right_refusals(case, case.latest - self._clock())

    def _right_refusals(self, case: Case, timeout: float) -> list[tuple[Failure, int | None]]:
        """Return the failures that say why a call is refused, each with the most `Retry-After` where it is measured."""
        if self.stopping is not None:
            return [(CLOSING, None)]
        stages = [self.stages[index] for index in case.stages]
        limits = self.world.limits
        seconds = max(map(self._backlog_seconds, stages))
        longest = min(MOST_RETRY_SECONDS, max(1, math.ceil(seconds + TOLERANCE)))
        right: list[tuple[Failure, int | None]] = []
        if sum(other.admitted and not other.done for other in self.open.values()) >= limits.capacity:
            right.append((at_capacity(1), longest))
        if any(stage.down for stage in stages):
            right.append((STAGE_DOWN, None))
        if limits.load_shedding and sum(map(self._most_seconds, stages)) > timeout - TOLERANCE:
            right += [(TOO_LONG, None), (too_late(1), longest), (overloaded(1), longest)]
        return right

    def _check_refusal(self, case: Case, outcome: Outcome) -> None:
        """Check the outcome of a call that was not admitted."""
        self.count(f"refused {outcome.code}")
        told = outcome.failure
        for failure, longest in case.refusals:
            if told is None or (told.code, told.text) != (failure.code, failure.text):
                continue
            after = told.retry_after
            right = after == failure.retry_after if longest is None else after is not None and 1 <= after <= longest
            self.require(right, Contract.BOUNDED, "%s: Retry-After %s, at most %s", case.name, after, longest)
            return
        contract = Contract.BOUNDED if self.stopping is None else Contract.SHUTDOWN
        raise self.fail(contract, f"{case.name}: refused with {outcome}, and could be with {case.refusals}")

    def _backlog_seconds(self, stage: StageModel) -> float:
        """Return the most that what is at a stage, or will come, may take: each answer as all work there was so far."""
        stage.note_work(self._clock())
        # The clock's error counts anew each time that the service begins and ceases to measure.
        per_answer = 1.1 * stage.worked + 0.02
        coming = sum(stage.index in case.stages[case.position + 1 :] for case in self.open.values())
        return per_answer * (coming + len(stage.live()) + sum(len(life.unheard) for life in stage.ready))

    def _most_seconds(self, stage: StageModel) -> float:
        """Return the most that a request which comes to a stage now may take there, and what chance may add to it."""
        own = 1.1 * stage.worked + 0.02
        return 3.0 * (self._backlog_seconds(stage) + 2.0 * own) + stage.plan.max_wait

    def leave(self, case: Case) -> None:
        """Its client is about to leave."""
        self.note("%s: the client leaves", case.name)
        if not case.done:
            case.left = True

    def has_left(self, case: Case) -> None:
        """Its client has left, and the service has been told."""
        told = case.done or not case.admitted
        self.require(told, Contract.CANCELLATION, "%s: cancelled, and has no outcome", case)

    def chunk(self, case: Case, call_id: int, chunk: bytes) -> None:
        """A piece of its stream reaches its client."""
        now = self._clock()
        self.require(call_id == case.id, Contract.RIGHT_ANSWER, "%s: got an event of call %d", case, call_id)
        self.require(case.submitted, Contract.ONE_ANSWER, "%s: an event before it was submitted", case)
        self.require(not case.done, Contract.ONE_ANSWER, "%s: an event after the answer", case.name)
        right = bool(case.chunks) and case.chunks.popleft()[0] == chunk
        self.require(right, Contract.RIGHT_ANSWER, "%s: got the event %r", case.name, chunk)
        limit = self.world.limits.stream_buffer
        self.require(case.unread < limit, Contract.BOUNDED, "%s: an event beyond %d bytes", case.name, limit)
        case.unread += len(chunk)
        self._allow(case, now)
        self.note("%s: event of %d bytes, %d unread", case.name, len(chunk), case.unread)

    def reads(self, case: Case, size: int) -> None:
        """Its client is about to say that it has read so much."""
        self.note("%s: reads %d bytes", case.name, size)
        was_full, was_free = self._is_full(case), self._is_free(case)
        case.unread -= size
        case.read += size
        if case.done or was_free:
            return
        latest, soonest = case.latest, case.soonest
        self._allow(case, self._clock())
        if not was_full:
            # Perhaps the service did not take it for full, and then nothing has changed.
            case.latest, case.soonest = max(latest, case.latest), min(soonest, case.soonest)

    def _is_full(self, case: Case) -> bool:
        """Whether so much is unread that its worker must wait."""
        return case.unread >= self.world.limits.stream_buffer

    def _is_free(self, case: Case) -> bool:
        """Whether so little is unread that its worker need not wait, though up to a quarter was not yet reported."""
        return case.unread * 4 < self.world.limits.stream_buffer * 3

    def _allow(self, case: Case, now: float) -> None:
        """Note until when the next event must come, or the client must read."""
        limits = self.world.limits
        spans = []
        if not self._is_full(case):
            spans.append(limits.event_timeout)
        if not self._is_free(case):
            spans.append(limits.stall_timeout)
        case.soonest, case.latest = now + min(spans), now + max(spans)

    def settled(self, case: Case, outcome: Outcome) -> None:
        """Its client is told what has become of it; to be judged when the service has done all that belongs to it."""
        self.require(outcome.call_id == case.id, Contract.RIGHT_ANSWER, "%s: got %s", case, outcome)
        self.require(case.submitted, Contract.ONE_ANSWER, "%s: %s before it was submitted", case, outcome)
        self.require(not case.done, Contract.ONE_ANSWER, "%s: %s after %s", case, outcome, case.outcome)
        case.outcome = outcome

    def judge(self, case: Case, outcome: Outcome) -> None:
        """Check what a client was told."""
        self.open.pop(case.name)
        self.stages[case.stage].note_work(self._clock())
        self.note("%s: answered %d %r", case.name, outcome.code, outcome.payload)
        if not case.admitted:
            self._check_refusal(case, outcome)
            return
        self.count(f"answered {outcome.code}")
        if case.expected is not None:
            right = outcome == case.expected
            self.require(right, Contract.RIGHT_ANSWER, "%s: %s instead of %s", case, outcome, case.expected)
        else:
            self._check_unexpected(case, outcome.failure)

    def _check_unexpected(self, case: Case, failure: Failure | None) -> None:
        """Check an outcome that no worker has given."""
        now = self._clock()
        if failure in (TIMED_OUT, STALLED):
            self.count("answered 408 by the service")
            late = now >= case.soonest - TOLERANCE
            life = case.life
            stuck = life is not None and life.fault == "stuck" and case.id in life.begun
            self.require(late or stuck, Contract.TIME, "%s: 408 before its time", case)
            stalled = case.streams and not self._is_free(case)
            self.require(failure == TIMED_OUT or stalled, Contract.TIME, "%s: called a stalled client", case)
        elif failure is not None and failure.text.startswith(self._dropped_by(case)):
            self.count("answered 408 by the service")
            self.count("dropped from the queue")
            shedding = self.world.limits.load_shedding and failure.code == TIMED_OUT.code
            self.require(shedding, Contract.TIME, "%s: dropped: %s", case, failure)
            has = case.life is not None and case.id in case.life.unheard
            self.require(not has, Contract.TIME, "%s: dropped, and a worker has it", case)
        elif failure == CLOSING:
            due = self.stopping is not None and now >= sum(self.stopping) - TOLERANCE
            self.require(due, Contract.SHUTDOWN, "%s: 503 before the grace was over", case)
        elif failure == STAGE_DOWN:
            stage = self.stages[case.stage]
            self.require(stage.down or stage.down_at == now, Contract.RESPAWN, "%s: 503 from a stage that is up", case)
        elif failure == CLIENT_LEFT:
            self.count("calls cancelled")
            self.require(case.left, Contract.CANCELLATION, "%s: its client has not left", case)
        else:
            contract = Contract.CRASH if failure == WORKER_DIED else Contract.RIGHT_ANSWER
            raise self.fail(contract, f"{case}: {case.outcome} out of nowhere, after {case.deaths} deaths")

    def _dropped_by(self, case: Case) -> str:
        """Return how the text begins with which the stage that a request is at drops it."""
        return NOT_BEGUN.partition(",")[0].format(self.stages[case.stage].plan.name)

    # -- memory ------------------------------------------------------------------------------------------------------

    def hold(self, payload: bytes) -> Payload:
        """Return a payload in memory, to be dropped once by whoever is given it."""
        self.held += 1
        self.count("payloads in memory")
        return Held(payload, self._dropped, lambda text: self.fail(Contract.MEMORY, text))

    def _dropped(self) -> None:
        self.held -= 1

    # -- workers: what they are sent ---------------------------------------------------------------------------------

    def launched(self, stage: int, worker_id: int) -> Life:
        """A worker is started."""
        now = self._clock()
        place = self._place_to_fill(stage, worker_id)
        self._lives += 1
        place.life = Life(self.stages[stage], worker_id, self._lives, now)
        self.note("%s: launched", place.life)
        self.count("workers launched")
        return place.life

    def launch_refused(self, stage: int, worker_id: int) -> None:
        """A worker is about to be refused its start."""
        place = self._place_to_fill(stage, worker_id)
        self.note("stage %d: the launch of worker %d is refused", stage, worker_id)
        self._start_failed(self.stages[stage], place)

    def _place_to_fill(self, stage: int, worker_id: int) -> Place:
        place = self.stages[stage].places[worker_id]
        self.require(place.life is None, Contract.RESPAWN, "launched beside %s, which still lives", place.life)
        self.require(not self.stopped, Contract.SHUTDOWN, "a worker was launched after the stop")
        if place.again is not None:
            now, (soonest, _) = self._clock(), place.again
            self.require(now >= soonest - TOLERANCE, Contract.RESPAWN, "launched %.3f s too early", soonest - now)
            place.again = None
        return place

    def sent(self, life: Life, message: Asked) -> None:
        """The service sends a worker a message, which may be in vain."""
        self.require(life.phase is Phase.READY, Contract.PROTOCOL, "a message for %s, %s", life, life.phase.value)
        if isinstance(message, Tasks):
            self.note("%s: is sent tasks %s", life, message.ids)
            self._sent_tasks(life, message)
        elif isinstance(message, Cancels):
            self.note("%s: is told of clients that have left: %s", life, message.ids)
            for task_id in message.ids:
                self.require(self.by_id[task_id].done, Contract.CANCELLATION, "task %d cancelled, is live", task_id)
            life.cancelled.update(message.ids)
        else:
            self.note("%s: is told of what was read: %s", life, message)
            for task_id, size in zip(message.ids, message.sizes, strict=True):
                case = self.by_id[task_id]
                case.reported += size
                right = case.reported <= case.read
                self.require(right, Contract.BOUNDED, "%s: %d reported, %d read", case, case.reported, case.read)

    def _sent_tasks(self, life: Life, message: Tasks) -> None:
        stage, plan, now = life.stage, life.stage.plan, self._clock()
        stage.note_work(now)
        if not life.unheard:
            life.still_since = now
        ahead = life.batches
        before: Case | None = None
        for task_id, flags, name, payload in zip(
            message.ids, message.flags, message.request_ids, message.payloads, strict=True
        ):
            case = self.open.get(name)
            if case is None or case.done or case.left or case.submitted > case.admitted:
                raise self.fail(Contract.CANCELLATION, f"{name} was sent to {life} though it is over")
            self.require(case.id == task_id, Contract.RIGHT_ANSWER, "%s was sent as task %d", case, task_id)
            self._check_turn(stage, case)
            if before is not None:
                right = not before.overtakes(case)
                self.require(right, Contract.ORDER, "%s was sent behind %s", case, before)
            before = case
            self.require(payload == case.payload, Contract.RIGHT_ANSWER, "%s got %r", case, payload)
            first, last = (OBJECT_IN, OBJECT_OUT) if case.objects else (INGRESS, EGRESS)
            needed = (first if case.position == 0 else 0) | (last if case.is_last else 0)
            self.require(flags == needed, Contract.RIGHT_ANSWER, "%s got the flags %d", case, flags)
            tries = case.deaths < plan.max_attempts
            self.require(tries, Contract.CRASH, "%s is run again after %d deaths", case, case.deaths)
            self.require(case.events == 0, Contract.CRASH, "%s is run again after an event", case)
            case.life = life
            life.unheard[task_id] = case
            life.units[task_id] = message.ids[0]
        self.require(
            not life.runs_alone or len(life.unheard) == 1, Contract.CRASH, "tasks beside one to be alone: %s", life
        )
        self._check_amount(life, len(message.ids), ahead)
        stage.note_work(now)

    def _check_turn(self, stage: StageModel, case: Case) -> None:
        waiting = stage.live()
        self.require(case in waiting, Contract.RIGHT_ANSWER, "%s is not waiting at stage %d", case, stage.index)
        place = waiting.index(case)
        # Several workers are sent theirs at the same moment, one after the other; only then it shows. Where workers run
        # several tasks at a time, and may do so for long, those that must be alone are not waited for.
        one_by_one = stage.plan.concurrency == 1
        stage.overtaken.update(
            other for other in waiting if case.overtakes(other) and (one_by_one or case.alone == other.alone)
        )
        stage.overtaken.discard(case)
        del waiting[place]

    def _check_amount(self, life: Life, count: int, batches: int) -> None:
        plan = life.stage.plan
        if plan.batch_size > 1:
            self.require(count <= plan.batch_size, Contract.BOUNDED, "a batch of %d for %s", count, life)
            if batches >= plan.concurrency:
                ahead = batches == plan.concurrency and count == plan.batch_size
                self.require(ahead, Contract.BOUNDED, "%d tasks ahead for %s with %d batches", count, life, batches)
            return
        if plan.concurrency > 1:
            most = plan.concurrency + plan.concurrency // 4
        elif life.quickest is None or life.quickest >= SLOW_SECONDS:
            most = 1
        else:
            most = MOST_AHEAD
        self.require(len(life.unheard) <= most, Contract.BOUNDED, "%s has %d tasks", life, len(life.unheard))

    def finish(self, life: Life) -> None:
        """The service asks a worker to stop."""
        self.note("%s: is asked to stop", life)
        if not self.started and any(stage.down for stage in self.stages):
            # It cannot start, and ends what it had started.
            self.stopping = self.stopping or (self._clock(), 0.0)
        self.require(self.stopping is not None, Contract.SHUTDOWN, "%s was asked to stop without need", life)
        live = [case.name for case in life.unheard.values() if not case.done]
        self.require(not live, Contract.SHUTDOWN, "%s was asked to stop and has %s", life, live)
        if life.finished_at is None:
            life.finished_at = self._clock()
        if life.phase in (Phase.STARTING, Phase.READY):
            life.phase = Phase.STOPPING
            life.unheard.clear()
            life.units.clear()
        self.stopped = True

    def let_go(self, life: Life, *, unread: bool) -> None:
        """The service closes a worker's link: it gives it up."""
        if life.phase is Phase.LOST:
            return
        self.require(not unread or life.fault != "died", Contract.CRASH, "the last words of %s were not read", life)
        self.note("%s: is given up: %s", life, life.fault or "by the service's own choice")
        now = self._clock()
        if not life.fault:
            life.fault = self._why_ended(life, now)
            self.count(f"workers {life.fault}")
        life.stage.note_work(now)
        life.phase = Phase.LOST
        life.lost_at = now
        held, life.unheard = life.unheard, {}
        life.units.clear()
        for case in held.values():
            self._take_back(life, case)
        life.stage.note_work(now)

    def _why_ended(self, life: Life, now: float) -> str:
        """Return why the service ends a worker that has done nothing wrong at this moment."""
        if life.phase is Phase.STARTING:
            late = now >= life.launched_at + life.stage.plan.start_timeout - TOLERANCE
            self.require(late, Contract.TIME, "%s was ended before its start timeout", life)
            return "too long in starting"
        if life.phase is Phase.STOPPING:
            patience = CLOSE_SECONDS if self.stopping is not None and self.stopping[1] > 0 else 0.5
            late = life.finished_at is not None and now >= life.finished_at + patience - TOLERANCE
            self.require(late, Contract.SHUTDOWN, "%s was ended before it could stop", life)
            return "too long in stopping"
        still = now - life.still_since
        # A look comes a little late, and what it sees may have begun just after the one before.
        limit = life.stage.plan.timeout + GRACE_SECONDS - LOOK_SECONDS - TOLERANCE
        right = bool(life.unheard) and still >= limit
        self.require(right, Contract.TIME, "%s was ended after %.3f s without a step", life, still)
        return "stuck"

    def _take_back(self, life: Life, case: Case) -> None:
        begun = case.id in life.begun
        if begun:
            case.deaths += 1
        if case.done:
            return
        self.require(not (begun and life.fault == "stuck"), Contract.TIME, "%s: on a stuck worker, no 408", case)
        if case.events or case.deaths >= life.stage.plan.max_attempts:
            case.fails(WORKER_DIED)
        else:
            case.alone = case.deaths > 0
            case.life = None
            life.stage.come_back(case)

    def launcher_closes(self, index: int) -> None:
        """The service lets go of what the workers of a stage were started from."""
        lives = self.stages[index].lives
        self.require(not lives, Contract.SHUTDOWN, "the launcher of stage %d is closed beside %s", index, lives)
        self.closed_launchers.add(index)

    def kill(self, life: Life) -> None:
        """The service kills a worker."""
        self.note("%s: is killed", life)
        life.killed = True
        useless = life.phase is Phase.LOST or life.failed_at is not None
        self.require(useless, Contract.PROTOCOL, "%s was killed while in use", life)

    # -- workers: what they say --------------------------------------------------------------------------------------

    def hear(self, life: Life, message: Said, take: Callable[[Said], None]) -> None:
        """A message of a worker reaches the service, which `take`s it."""
        before, life.fault = life.fault, ""
        affected: list[Case] = []
        if life.phase is Phase.STOPPING:
            # Whatever it says: nobody waits for it any more.
            life.fault = ""
            if isinstance(message, Failed):
                life.failed_at = self._clock()
        else:
            life.fault = self._wrong(life, message)
            if not life.fault:
                affected = self._heard(life, message)
        wrong = life.fault
        if wrong:
            self.note("%s: %s", life, wrong)
            self.count("faults noticed in messages")
        life.fault = life.fault or before
        take(message)
        lost = life.phase is Phase.LOST
        if not lost:
            self.require(wrong in ("", DOUBTFUL), Contract.RIGHT_ANSWER, "%s %s, and lives", life, wrong)
            life.fault = before
        for case in affected:
            owed = [chunk for chunk, must in case.chunks if must]
            case.chunks.clear()
            self.require(not owed or lost, Contract.RIGHT_ANSWER, "%s: events were not passed on", case)

    def _wrong(self, life: Life, message: Said) -> str:
        """Return what is wrong with a message; nothing where nothing is."""
        starting = life.phase is Phase.STARTING
        if isinstance(message, (Ready, Failed)):
            return "" if starting else f"sent {type(message).__name__} while it was ready"
        if starting:
            return f"sent {type(message).__name__}"
        if isinstance(message, Results):
            return self._wrong_results(life, message)
        if not life.stage.plan.streams:
            return "sent events, and does not stream"
        return "" if life.unheard.keys() >= set(message.ids) else "sent events of what it does not have"

    @staticmethod
    def _wrong_results(life: Life, message: Results) -> str:
        ids = list(message.ids)
        if life.stage.plan.ordered:
            return "" if list(life.unheard)[: len(ids)] == ids else "answered out of turn"
        return "" if len(set(ids)) == len(ids) and life.unheard.keys() >= set(ids) else "answered what it has not"

    def _heard(self, life: Life, message: Said) -> list[Case]:
        """Take what a worker says into the picture; return the requests whose clients are to get events."""
        if isinstance(message, Ready):
            self._is_ready(life)
        elif isinstance(message, Failed):
            life.failed_at = self._clock()
        elif isinstance(message, Results):
            self._heard_results(life, message)
        else:
            return self._heard_events(life, message)
        return []

    def _is_ready(self, life: Life) -> None:
        self.note("%s: is ready", life)
        life.phase = Phase.READY
        life.ready_at = life.heard_at = self._clock()
        place = life.stage.places[life.worker_id]
        place.tried, place.failing = True, False
        life.stage.down = False

    def _heard_results(self, life: Life, message: Results) -> None:
        self.note("%s: answers %s", life, message.ids)
        now = life.heard_at = self._clock()
        life.stage.note_work(now)
        if message.ids:
            seconds = message.seconds / len(message.ids)
            life.quickest = seconds if life.quickest is None else min(seconds, life.quickest)
        cases = [life.unheard.pop(task_id) for task_id in message.ids]
        for task_id in message.ids:
            del life.units[task_id]
        for case, code, payload in zip(cases, message.codes, message.payloads, strict=True):
            if not case.done:
                self._answer(case, code, as_bytes(payload), now)
        life.stage.note_work(now)

    def _answer(self, case: Case, code: int, payload: bytes, now: float) -> None:
        """Note where a request goes on its worker's answer."""
        if code != OK or case.is_last:
            case.expected = Outcome(case.id, code, payload)
        else:
            case.position += 1
            case.payload = payload
            case.deaths = 0
            case.alone = False
            case.life = None
            stage = self.stages[case.stage]
            stage.arrive(case, now)
            if stage.down:
                case.fails(STAGE_DOWN)

    def _heard_events(self, life: Life, message: Chunks) -> list[Case]:
        self.note("%s: sends events of %s", life, message.ids)
        affected = []
        coming: dict[int, int] = {}
        for task_id, chunk in zip(message.ids, message.payloads, strict=True):
            case = life.unheard[task_id]
            case.alone = False
            if case.done:
                continue
            affected.append(case)
            unread = case.unread + coming.get(task_id, 0)
            unreported = case.unread + case.read - case.reported + coming.get(task_id, 0)
            if unread >= self.world.limits.stream_buffer:
                life.fault = OVERFLOW
                break
            # What it was not yet told to be read may count against it or not.
            must = unreported < self.world.limits.stream_buffer
            if not must:
                life.fault = DOUBTFUL
            case.events += 1
            coming[task_id] = coming.get(task_id, 0) + len(chunk)
            case.chunks.append((chunk, must))
        return affected

    def link_ends(self, life: Life, reason: str, take: Callable[[str], None]) -> None:
        """A worker's link has ended, or what it says has no meaning, which the service hears by `take`."""
        self.note("%s: its link has ended: %s", life, reason or "in good order")
        stops = life.phase is Phase.STOPPING
        life.fault = life.fault or "lost its link"
        take(reason)
        self.require(stops or life.phase is Phase.LOST, Contract.CRASH, "%s lost its link and is kept", life)
        if reason and not stops:
            self.require(life.killed, Contract.RESPAWN, "%s has no meaning any more and lives", life)

    def exits(self, life: Life, take: Callable[[], None]) -> None:
        """A worker has ended, which the service hears by `take`."""
        self.note("%s: has ended", life)
        if life.phase is not Phase.LOST:
            self.count("workers died by themselves")
        life.fault = life.fault or "died"
        take()
        self.require(life.phase is Phase.LOST, Contract.CRASH, "%s has died and is kept", life)
        stage = life.stage
        place = stage.places[life.worker_id]
        place.life = None
        if self.stopped:
            return
        if life.ready_at is None:
            self._start_failed(stage, place)
        else:
            healthy = life.quickest is not None or self._clock() - life.ready_at >= HEALTHY_SECONDS
            self._expect_another(stage, place, healthy=healthy, longest=MOST_BACKOFF_READY)

    def _start_failed(self, stage: StageModel, place: Place) -> None:
        place.tried = place.failing = True
        stage.down = all(other.failing for other in stage.places.values())
        if stage.down:
            self.note("stage %d is down", stage.index)
            self.count("stages down")
            stage.down_at = self._clock()
            for case in stage.live():
                case.fails(STAGE_DOWN)
        self._expect_another(stage, place, healthy=False, longest=MOST_BACKOFF)

    def _expect_another(self, stage: StageModel, place: Place, *, healthy: bool, longest: float) -> None:
        """Note when a dead worker is to be replaced: at once after a healthy spell, else ever later."""
        now = self._clock()
        stage.restarts += 1
        if healthy:
            place.early = 0
            place.again = (now, now)
        else:
            place.early += 1
            exponent = min(place.early, 40)
            least = FIRST_BACKOFF * 2.0 ** (exponent - 2) if place.early > 1 else 0.0
            most = FIRST_BACKOFF * 2.0 ** (exponent - 1)
            place.again = (now + min(longest, least), now + min(longest, most))

    # -- whenever time is about to pass ------------------------------------------------------------------------------

    def settle_up(self, statistics: Callable[[], Statistics]) -> None:
        """Check what the service owes now that all that was ready has run."""
        now = self._clock()
        if self._quiet and now <= self._next_due:
            return
        self._next_due = math.inf
        for case in self.open.values():
            if case.expected is not None or case.left or not case.admitted:
                raise self.fail(Contract.ONE_ANSWER, f"{case} should have its answer: {case.expected!r}")
            self._owed(case.latest, now, Contract.ONE_ANSWER, "%s is beyond its deadline", case)
        for stage in self.stages:
            overtaken = [case for case in stage.overtaken if not case.done]
            self.require(not overtaken, Contract.ORDER, "%s were overtaken at stage %d", overtaken, stage.index)
            stage.overtaken.clear()
            for place in stage.places.values():
                self._settle_place(stage, place, now)
            if self.stopping is None and stage.waiting and not stage.down:
                self._settle_waiting(stage, now)
        if not self._quiet:
            self._quiet = True
            self._compare(statistics())

    def _owed(self, due: float, now: float, contract: Contract, text: str, *arguments: Any) -> None:
        """Raise a violation if something was due before now; else look again when it is."""
        due += TOLERANCE
        if now > due:
            raise self.fail(contract, text % arguments)
        self._next_due = min(self._next_due, due)

    def _settle_place(self, stage: StageModel, place: Place, now: float) -> None:
        life = place.life
        if life is None:
            if place.again is not None and self.stopping is None:
                text = "a worker of stage %d was not replaced"
                self._owed(place.again[1], now, Contract.RESPAWN, text, stage.index)
        elif life.lost_at is not None or life.failed_at is not None:
            # It may end by itself.
            if not life.killed and self.stopping is None:
                due = max(life.lost_at or 0.0, life.failed_at or 0.0) + EXIT_SECONDS
                self._owed(due, now, Contract.RESPAWN, "%s is given up and lives", life)
        elif life.phase is Phase.STARTING:
            due = life.launched_at + stage.plan.start_timeout
            self._owed(due, now, Contract.TIME, "%s takes too long to start and lives", life)
        elif life.unheard and life.phase is Phase.READY:
            self._settle_worker(life, now)

    def _settle_worker(self, life: Life, now: float) -> None:
        due = life.still_since + life.stage.plan.timeout + GRACE_SECONDS + 2 * LOOK_SECONDS + TOLERANCE
        self._owed(due, now, Contract.TIME, "%s makes no step and lives", life)
        if self._quiet:
            return
        for task_id, case in life.unheard.items():
            if case.done:
                told = task_id in life.cancelled
                self.require(told, Contract.CANCELLATION, "%s was not told that %s is over", life, case.name)
            elif case.streams and (case.read - case.reported) * 4 >= self.world.limits.stream_buffer:
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
        first = others[0]
        for life in ready:
            # Left to the scheduler, a worker that was busy may wait as long for those whom it has just answered.
            since = max(first.queued_at, life.heard_at) if plan.adaptive else first.queued_at
            due = since + plan.max_wait if len(others) < plan.batch_size else now - 2 * TOLERANCE
            running = life.batches if plan.batch_size > 1 else len(life.unheard)
            if running < plan.concurrency and not life.runs_alone:
                self._owed(due, now, Contract.PROGRESS, "%s waits beside %s", first, life)

    def _compare(self, statistics: Statistics) -> None:
        """Check that the service's own numbers are those of the picture."""
        admitted = (statistics.admitted, len(self.open))
        self.require(admitted[0] == admitted[1], Contract.CANCELLATION, "it counts %d admitted, not %d", *admitted)
        for stage, told in zip(self.stages, statistics.stages, strict=True):
            lives, plan = stage.ready, stage.plan
            in_flight = sum(len(life.unheard) for life in lives)
            units = [life.batches if plan.batch_size > 1 else len(life.unheard) for life in lives]
            running = sum(min(plan.concurrency, count) for count in units)
            there = StageStatistics(
                plan.name,
                len(stage.live()),
                in_flight,
                running,
                len(lives),
                len(stage.places),
                stage.restarts,
                stage.down,
            )
            wait = told.expected_wait
            self.require(0.0 <= wait < math.inf, Contract.BOUNDED, "stage %d expects a wait of %s", stage.index, wait)
            if there != replace(told, expected_wait=0.0):
                raise self.fail(Contract.CANCELLATION, f"stage {stage.index} counts {told}, not {there}")
