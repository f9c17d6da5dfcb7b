"""The events of a stage, for observers such as metrics and tracing.

A stage reports each event by one call, and by none if no observer listens: `StageEvents` finds out once which methods
of `StageObserver` the observers override, and holds for each event the function to call, or None. The caller reads

    if (told := self._events.sent) is not None:
        told(worker_id, tasks, now)

Times are seconds of the coordinator's clock. Observers change nothing of what they are shown, and must be brief.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mosec_asgi.messages import Results


class ObservedTask(Protocol):
    """What an observer may look at of a task; see `batching.task.Task`."""

    @property
    def id(self) -> int:
        """The number of its call."""

    @property
    def request_id(self) -> str:
        """What the logs and the client call it."""

    @property
    def arrived(self) -> float:
        """When it was admitted."""

    @property
    def queued(self) -> float:
        """When it came to the queue of the stage that it is at."""

    @property
    def began(self) -> float:
        """When a worker turned to it, as far as can be told."""

    @property
    def cost(self) -> int:
        """Of its input at the stage that it is at, where that counts it."""

    @property
    def trace(self) -> str:
        """Of its request's span; see `messages.Call`."""

    @property
    def attempts(self) -> int:
        """Workers of this stage that died while they ran it, or may have."""


class StageObserver:
    """Hears what happens at one stage. Each method does nothing; one that is not overridden is never called."""

    def refused(self, code: int, reason: str, now: float) -> None:
        """Note that a call was refused because of this stage, or for another reason if its pipeline begins here.

        Args:
            code: the status of its answer.
            reason: one of `batching.admission.Reason`, by its value.
            now: the time.
        """

    def arrived(self, task: ObservedTask, now: float) -> None:
        """Note that a task has come to the queue."""

    def joined(self, task: ObservedTask, flight: ObservedTask, now: float) -> None:
        """Note that a task that has come waits for the answer to another, whose input is equal; see `single_flight`."""

    def sent(self, worker_id: int, tasks: Sequence[ObservedTask], now: float) -> None:
        """Note that tasks have left the queue for a worker, in one message: a batch where there is batching."""

    def came(self, worker_id: int, tasks: Sequence[ObservedTask], results: Results, now: float) -> None:
        """Note the answers of a worker before anything follows from them; `answered` comes when all has.

        Args:
            worker_id: its number.
            tasks: in the order of the answers, those among them for which nobody waits any more.
            results: the answers.
            now: the time.
        """

    def lost(self, worker_id: int, tasks: Sequence[ObservedTask], now: float) -> None:
        """Note that tasks are taken back from a worker that has ended; their `attempts` are counted."""

    def answered(self, worker_id: int, tasks: Sequence[ObservedTask], seconds: float, wanted: int, now: float) -> None:
        """Note that a worker has answered tasks.

        Args:
            worker_id: its number.
            tasks: in the order of the answers.
            seconds: the time that it has worked on them.
            wanted: how many of them a client still waited for.
            now: the time.
        """

    def chunk(self, task: ObservedTask, since: float | None, now: float) -> None:
        """Note a piece of a stream; `since` is when the last one came, None for the first."""

    def stream_ended(self, task: ObservedTask, now: float) -> None:
        """Note that a stream, of which at least one piece has come, has ended, well or not."""

    def timed_out(self, task: ObservedTask, now: float) -> None:
        """Note that a task's time was over while it was here."""

    def cancelled(self, task: ObservedTask, now: float) -> None:
        """Note that a task's client has left while it was here."""

    def settled(self, task: ObservedTask, code: int, now: float) -> None:
        """Note that a task has got its outcome while it was here."""

    def resized(self, num: int, now: float) -> None:
        """Note that the stage is to have `num` workers from here on: it has been scaled, or is about to be."""


class StageEvents:
    """The events of one stage: for each, the function that calls its listeners, or None without listeners."""

    refused: Callable[[int, str, float], None] | None
    arrived: Callable[[ObservedTask, float], None] | None
    joined: Callable[[ObservedTask, ObservedTask, float], None] | None
    sent: Callable[[int, Sequence[ObservedTask], float], None] | None
    came: Callable[[int, Sequence[ObservedTask], Results, float], None] | None
    lost: Callable[[int, Sequence[ObservedTask], float], None] | None
    answered: Callable[[int, Sequence[ObservedTask], float, int, float], None] | None
    chunk: Callable[[ObservedTask, float | None, float], None] | None
    stream_ended: Callable[[ObservedTask, float], None] | None
    timed_out: Callable[[ObservedTask, float], None] | None
    cancelled: Callable[[ObservedTask, float], None] | None
    settled: Callable[[ObservedTask, int, float], None] | None
    resized: Callable[[int, float], None] | None

    def __init__(self, observers: Sequence[StageObserver] = ()) -> None:
        """Find out which observers listen to which events."""
        for event in StageEvents.__annotations__:
            silent = getattr(StageObserver, event)
            listeners = [getattr(one, event) for one in observers if getattr(type(one), event) is not silent]
            setattr(self, event, _as_one(listeners))


def _as_one(listeners: Sequence[Callable[..., None]]) -> Callable[..., None] | None:
    """Return one function that calls all of them."""
    if len(listeners) < 2:
        return listeners[0] if listeners else None

    def tell(*event: Any) -> None:
        for listener in listeners:
            listener(*event)

    return tell
