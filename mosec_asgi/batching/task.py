"""A task: one request on its way through its pipeline, and its lifecycle as a table. Pure.

              ┌────────┐  DISPATCH   ┌──────┐
    submit ──►│ QUEUED ├────────────►│ SENT │
              └─┬──────┘◄────────────┴─┬──┬─┘
                │     ADVANCE, REQUEUE │  │
                │                      │  │
         SETTLE │               SETTLE │  │
                ▼                      ▼  │
              ┌───────────────────────────┴─┐
              │           SETTLED           │
              └─────────────────────────────┘

ADVANCE: a stage has answered and there is another; the task goes to the end of that one's queue. REQUEUE: the worker
died; the task goes back to the head of the same stage's queue. SETTLE happens exactly once, whatever the cause: the
result, an error, the deadline, the client's leaving. A task that is settled while it is SENT is still on its worker;
whatever that worker answers is dropped.
"""

from __future__ import annotations

import enum

from mosec_asgi.batching.engine import Caller
from mosec_asgi.batching.flow import Flow
from mosec_asgi.messages import Call, Payload, StageTime, tuple_new


# IntEnum, not Enum: a plain enum's hash is a Python function, and each request looks up the table four times.
class State(enum.IntEnum):
    """Where a task is in its life."""

    QUEUED = enum.auto()
    SENT = enum.auto()
    SETTLED = enum.auto()


class Event(enum.IntEnum):
    """What happens to a task."""

    DISPATCH = enum.auto()
    ADVANCE = enum.auto()
    REQUEUE = enum.auto()
    SETTLE = enum.auto()


# By these names a member is read at once: to read it of its class takes CPython 3.11 several times as long.
QUEUED, SENT, SETTLED = State
DISPATCH, ADVANCE, REQUEUE, SETTLE = Event


class TaskError(Exception):
    """An event that cannot happen in the task's state."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (QUEUED, DISPATCH): SENT,
    (QUEUED, SETTLE): SETTLED,
    (SENT, ADVANCE): QUEUED,
    (SENT, REQUEUE): QUEUED,
    (SENT, SETTLE): SETTLED,
}


class Task:
    """One request on its way.

    Attributes:
        id: the number of its call.
        caller: hears what becomes of it.
        request_id: what the logs and the client call it.
        route: the place of its route in the service's list.
        stages: the stages of its pipeline, by their place in the service's list.
        position: which of `stages` it is at, from 0.
        at_last_stage: whether that is its pipeline's last.
        payload: the encoded input of the stage that it is at; empty once it is settled.
        body: its first input, where it may have to begin again; None where that is not kept.
        starts: how often it has begun at its first stage.
        arrived: when it was admitted, in seconds of the coordinator's clock.
        deadline: when it is answered 408.
        queued: when it came to the queue of the stage that it is at.
        number: how many tasks had come to that stage, with it: a tie-breaker for the order of arrival.
        began: when a worker turned to it, as far as can be told: as it was sent, or as an answer made room for it.
        attempts: workers of this stage that died while they ran it, or may have.
        alone: its worker died; it is to be run with nothing else on the worker.
        place: on its worker: how many tasks that one had been sent with it.
        batch: on its worker: the place of its batch's first task.
        flow: of a task whose result is a stream: what is on its way to the client.
        example: a dry run: the first worker's own example takes the place of the payload.
        objects: its call is one of objects: see `Call`.
        request: what workers are told of its request, where they ask for it.
        times: of the stages that have answered it, where the service notes them.
        trace: of its request's span; see `Call`.
        priority: what comes first where there is a choice: the higher number.
        key: of its input at the stage that it is at; inputs of different keys share no batch there.
        cost: of that input.
        tenant: on whose behalf it came.
        state: see the table.
    """

    __slots__ = (
        "alone", "arrived", "at_last_stage", "attempts", "batch", "began", "body", "caller", "cost", "deadline",
        "example", "flow", "id", "key", "number", "objects", "payload", "place", "position", "priority", "queued",
        "request", "request_id", "route", "stages", "starts", "state", "tenant", "times", "trace",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        caller: Caller,
        stages: tuple[int, ...],
        now: float,
        deadline: float,
        flow: Flow | None = None,
    ) -> None:
        (
            self.id, self.route, self.payload, self.request_id, _, self.example, self.objects, self.priority, self.key,
            self.request, self.trace, self.cost, self.tenant,
        ) = call  # fmt: skip
        self.caller = caller
        self.stages = stages
        self.position = 0
        self.at_last_stage = len(stages) == 1
        self.arrived = self.queued = self.began = now
        self.deadline = deadline
        self.attempts = 0
        self.body: bytes | None = None
        self.starts = 1
        self.alone = False
        self.flow = flow
        self.number = self.place = self.batch = 0
        self.times: tuple[StageTime, ...] = ()
        self.state = QUEUED

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.state.name} stage={self.position} attempts={self.attempts}>"

    @property
    def stage(self) -> int:
        """The stage that it is at, by its place in the service's list."""
        return self.stages[self.position]

    def note_time(self, stage: str, now: float) -> None:
        """Note what its time has gone into at this stage, whose worker has answered it."""
        began = self.began
        self.times += (tuple_new(StageTime, (stage, began - self.queued, now - began)),)

    def times_until(self, stage: str, now: float) -> tuple[StageTime, ...]:
        """Return what its time has gone into at all stages; `stage` is the name of the one that it is at."""
        began = now if self.state is QUEUED else self.began
        return (*self.times, StageTime(stage, began - self.queued, now - began))

    def step(self, event: Event) -> None:
        """Go to the state after `event`.

        Raises:
            TaskError: the table has no such step.
        """
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise TaskError(f"{self!r} cannot see the event {event.name}") from None

    def advance(self, payload: Payload, now: float) -> None:
        """Go on to the next stage with what this one has answered."""
        self.step(ADVANCE)
        self._drop_payload()
        self.position += 1
        self.at_last_stage = self.position + 1 == len(self.stages)
        self.payload = payload
        self.queued = now
        self.attempts = 0
        self.alone = False
        if self.flow is not None:
            self.flow.go_on()

    def begin_again(self, now: float) -> None:
        """Go back to the first stage with what it came with, because what a later one was to be given is lost."""
        assert self.body is not None
        self.step(ADVANCE)
        self._drop_payload()
        self.position = 0
        self.at_last_stage = False
        self.payload = self.body
        self.queued = now
        self.attempts = 0
        self.alone = False
        self.starts += 1

    def settle(self) -> None:
        """End its life; the payload's memory is free from here on."""
        self.step(SETTLE)
        self._drop_payload()
        self.payload = b""
        self.body = None

    def _drop_payload(self) -> None:
        payload = self.payload
        if not isinstance(payload, bytes):
            payload.drop()
