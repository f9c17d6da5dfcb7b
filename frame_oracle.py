"""What workers are sent, and what is made of what they say."""

from __future__ import annotations

from collections.abc import Callable

from mosec_asgi.testing.simulation.contracts import Contract, Record, Watcher

from mosec_asgi.batching.stage import STAGE_DOWN
from mosec_asgi.errors import Failure
from mosec_asgi.ipc import frames
from mosec_asgi.testing.simulation.model import Case, Life, Phase, Picture, StageModel

# A worker that needs as long for a task is sent no second one before it has answered.
SLOW_SECONDS = 0.002
MOST_AHEAD = 128

OVERFLOW = "sent more of a stream than there was room for"
# The service may take it for that, depending on what it had told the worker by then.
DOUBTFUL = "may have " + OVERFLOW


class SentOracle(Watcher):
    """Watches what workers are sent."""

    def __init__(self, picture: Picture, record: Record, clock: Callable[[], float]) -> None:
        super().__init__(record, clock)
        self._picture = picture

    def sent(self, life: Life, frame: frames.Frame) -> None:
        """The service sends a worker a frame."""
        self.require(life.phase is Phase.READY, Contract.PROTOCOL, "a frame for %s, %s", life, life.phase.value)
        if isinstance(frame, frames.Tasks):
            self.note("%s: is sent tasks %s", life, frame.ids)
            self._sent_tasks(life, frame)
        elif isinstance(frame, frames.Cancel):
            self.note("%s: is told of clients that have left: %s", life, frame.ids)
            live = [task_id for task_id in frame.ids if not self._picture.by_id[task_id].done]
            self.require(not live, Contract.CANCELLATION, "the tasks %s were cancelled, and are live", live)
            life.cancelled.update(frame.ids)
        elif isinstance(frame, frames.Taken):
            self.note("%s: is told of what was read: %s", life, frame)
            self._sent_taken(frame)
        else:
            raise self.fail(Contract.PROTOCOL, f"{life} was sent {frame}")

    def _sent_taken(self, frame: frames.Taken) -> None:
        for task_id, size in zip(frame.ids, frame.sizes, strict=True):
            case = self._picture.by_id[task_id]
            case.reported += size
            right = case.reported <= case.read
            self.require(right, Contract.BOUNDED, "%s: %d reported, %d read", case, case.reported, case.read)

    def _sent_tasks(self, life: Life, frame: frames.Tasks) -> None:
        stage, now = life.stage, self.clock()
        stage.note_work(now)
        if not life.unheard:
            life.still_since = now
        ahead = life.batches
        before: Case | None = None
        for task_id, flags, name, payload in zip(
            frame.ids, frame.flags, frame.request_ids, frame.payloads, strict=True
        ):
            case = self._picture.open.get(name)
            if case is None or case.done or case.left:
                raise self.fail(Contract.CANCELLATION, f"{name} was sent to {life} though it is over")
            self._check_task(case, task_id, flags, payload)
            self._check_turn(stage, case, before)
            before = case
            case.life = life
            life.unheard[task_id] = case
            life.units[task_id] = frame.ids[0]
            stage.happened["queue_wait seconds"] += now - case.queued_at
        stage.happened["queue_wait"] += len(frame.ids)
        lonely = not life.runs_alone or len(life.unheard) == 1
        self.require(lonely, Contract.CRASH, "tasks beside one to be alone: %s", life)
        self._check_amount(life, len(frame.ids), ahead)
        stage.note_work(now)

    def _check_task(self, case: Case, task_id: int, flags: int, payload: bytes) -> None:
        known = self._picture.learn_id(case, task_id)
        self.require(known, Contract.RIGHT_ANSWER, "%s has another number than %d", case, task_id)
        self.require(payload == case.payload, Contract.RIGHT_ANSWER, "%s got %r", case, payload)
        needed = (frames.INGRESS if case.position == 0 else 0) | (frames.EGRESS if case.is_last else 0)
        self.require(flags == needed, Contract.RIGHT_ANSWER, "%s got the flags %d", case, flags)
        tries = self._picture.stages[case.stage].plan.max_attempts
        again = case.deaths < tries and case.event_at is None
        self.require(again, Contract.CRASH, "%s is run again, after %d deaths or an event", case, case.deaths)

    def _check_turn(self, stage: StageModel, case: Case, before: Case | None) -> None:
        waiting = stage.live()
        self.require(case in waiting, Contract.RIGHT_ANSWER, "%s is not waiting at stage %d", case, stage.index)
        waiting.remove(case)
        # Several workers are sent theirs at the same moment, one after the other; only then it shows. Where workers run
        # several tasks at a time, and may do so for long, those that must be alone are not waited for.
        one_by_one = stage.plan.concurrency == 1
        stage.overtaken.discard(case)
        stage.overtaken.update(
            other for other in waiting if case.overtakes(other) and (one_by_one or case.alone == other.alone)
        )
        in_order = before is None or not before.overtakes(case)
        self.require(in_order, Contract.ORDER, "%s was sent behind %s", case, before)

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


class HeardOracle(Watcher):
    """Watches what workers say, and what the service makes of it."""

    def __init__(self, picture: Picture, record: Record, clock: Callable[[], float]) -> None:
        super().__init__(record, clock)
        self._picture = picture
        self._limit = picture.world.limits.stream_buffer

    def hear(self, life: Life, frame: frames.Frame, take: Callable[[frames.Frame], None]) -> None:
        """A frame of a worker reaches the service, which `take`s it."""
        before, life.fault = life.fault, self._wrong(life, frame)
        in_use = life.phase in (Phase.STARTING, Phase.READY)
        affected = self._heard(life, frame) if in_use and not life.fault else []
        wrong = life.fault
        if wrong:
            self.note("%s: %s", life, wrong)
            self.count("faults noticed in frames")
        life.fault = life.fault or before
        take(frame)
        lost = life.phase is Phase.LOST
        if not lost:
            self.require(wrong in ("", DOUBTFUL), Contract.RIGHT_ANSWER, "%s %s, and lives", life, wrong)
            life.fault = before
        for case in affected:
            owed = [chunk for chunk, must in case.chunks if must]
            case.chunks.clear()
            self.require(not owed or lost, Contract.RIGHT_ANSWER, "%s: events were not passed on", case)

    def _wrong(self, life: Life, frame: frames.Frame) -> str:
        """Return what is wrong with a frame; nothing where nothing is."""
        if not isinstance(frame, (frames.Ready, frames.Failed, frames.Results, frames.Events)):
            return f"sent {type(frame).__name__}"
        if life.phase in (Phase.STOPPING, Phase.LOST):
            return ""
        if isinstance(frame, (frames.Ready, frames.Failed)) != (life.phase is Phase.STARTING):
            return f"sent {type(frame).__name__} while it was {life.phase.value}"
        if isinstance(frame, frames.Results):
            return self._wrong_results(life, frame)
        if isinstance(frame, frames.Events):
            if not life.stage.plan.streams:
                return "sent events, and does not stream"
            return "" if life.unheard.keys() >= set(frame.ids) else "sent events of what it does not have"
        return ""

    @staticmethod
    def _wrong_results(life: Life, frame: frames.Results) -> str:
        ids = list(frame.ids)
        if life.stage.plan.ordered:
            return "" if list(life.unheard)[: len(ids)] == ids else "answered out of turn"
        return "" if len(set(ids)) == len(ids) and life.unheard.keys() >= set(ids) else "answered what it has not"

    def _heard(self, life: Life, frame: frames.Frame) -> list[Case]:
        """Take what a worker says into the picture; return the requests whose clients are to get events."""
        if isinstance(frame, frames.Ready):
            self._is_ready(life)
        elif isinstance(frame, frames.Failed):
            life.failed_at = self.clock()
        elif isinstance(frame, frames.Results):
            self._heard_results(life, frame)
        elif isinstance(frame, frames.Events):
            return self._heard_events(life, frame)
        return []

    def _is_ready(self, life: Life) -> None:
        self.note("%s: is ready", life)
        life.phase = Phase.READY
        life.ready_at = self.clock()
        life.stage.started_well(life.worker_id)

    def _heard_results(self, life: Life, frame: frames.Results) -> None:
        self.note("%s: answers %s", life, frame.ids)
        now = self.clock()
        life.stage.note_work(now)
        if frame.ids:
            seconds = frame.seconds / len(frame.ids)
            life.quickest = seconds if life.quickest is None else min(seconds, life.quickest)
        cases = [life.unheard.pop(task_id) for task_id in frame.ids]
        for task_id in frame.ids:
            del life.units[task_id]
        for case, code, payload in zip(cases, frame.codes, frame.payloads, strict=True):
            if not case.done:
                self._answer(case, code, payload, now)
        life.stage.note_work(now)

    def _answer(self, case: Case, code: int, payload: bytes, now: float) -> None:
        """Note where a request goes on its worker's answer."""
        if code != 200:
            case.expected = Failure(code, payload.decode())
        elif case.is_last:
            case.expected = payload
        else:
            case.position += 1
            case.payload = payload
            case.deaths = 0
            case.alone = False
            case.life = None
            stage = self._picture.stages[case.stage]
            stage.arrive(case, now)
            if stage.down:
                case.expected = STAGE_DOWN

    def _heard_events(self, life: Life, frame: frames.Events) -> list[Case]:
        self.note("%s: sends events of %s", life, frame.ids)
        affected = []
        coming: dict[int, int] = {}
        for task_id, chunk in zip(frame.ids, frame.payloads, strict=True):
            case = life.unheard[task_id]
            case.alone = False
            if case.done:
                continue
            affected.append(case)
            unread = case.unread + coming.get(task_id, 0)
            if unread >= self._limit:
                life.fault = OVERFLOW
                break
            # What its worker was not yet told to be read may count against it or not.
            must = unread + case.read - case.reported < self._limit
            if not must:
                life.fault = DOUBTFUL
            case.streaming = True
            coming[task_id] = coming.get(task_id, 0) + len(chunk)
            case.chunks.append((chunk, must))
        return affected
