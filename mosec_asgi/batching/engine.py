"""The engine as its callers see it: the web, a dry run, a test, or a process that forwards their calls. Pure.

Only messages cross (`mosec_asgi.messages`). A caller chooses a call's number, submits it, and hears what becomes of it:
exactly one `Outcome`, and before it the chunks of a stream. A refusal is an outcome like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mosec_asgi.messages import Call, Chunk, Credit, Outcome
from mosec_asgi.observing.statistics import BatchLine, WorkerReport

# An attribute of a caller that takes, and drops, results which a link holds, though they are bytes for a client; others
# are given these as bytes. It is asked for large results alone.
TAKES_HELD = "takes_held"
# An attribute of an engine that puts payloads which came in pieces (`messages.Pieces`) together where a worker reads
# them.
TAKES_PIECES = "takes_pieces"


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """A stage at one moment.

    Attributes:
        name: the stage's name.
        queued: tasks that wait.
        in_flight: tasks that its workers have and have not answered.
        slots_in_use: tasks, or batches where there is batching, that its workers run.
        ready: workers that can be given tasks.
        workers: workers that there should be.
        restarts: workers started in place of dead ones so far.
        down: no worker is alive, and the last try to start one failed.
        expected_wait: seconds that a task which comes now is likely to wait; 0 while that is not known.
        batch_size: the most tasks in a batch; 1 where there is no batching.
        concurrency: tasks, or batches where there is batching, that a worker runs at a time.
        places: its workers.
        draining: workers that are being replaced, and answer what they have.
        batch_line: what a batch takes, where a latency target bounds batches and that is known.
    """

    name: str
    queued: int
    in_flight: int
    slots_in_use: int
    ready: int
    workers: int
    restarts: int
    down: bool
    expected_wait: float = 0.0
    batch_size: int = 1
    concurrency: int = 1
    places: tuple[WorkerReport, ...] = ()
    draining: int = 0
    batch_line: BatchLine | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """A service at one moment.

    Attributes:
        admitted: calls admitted and not yet answered.
        closing: the service is shutting down, and soon admits no more.
        stages: in the order of the service's list.
        shared_memory: bytes of shared memory that payloads take.
        loading: the workers are being started for the first time, and no call is admitted yet.
        away: the engine is another process, which is not there.
    """

    admitted: int
    closing: bool
    stages: tuple[StageStatistics, ...]
    shared_memory: int = 0
    loading: bool = False
    away: bool = False


class Caller(Protocol):
    """Whoever has made a call, and hears what becomes of it.

    The engine calls both methods in the middle of its own work, with the state of other calls in hand. So they must be
    brief, and must not call the engine.
    """

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of a call. Called once for each call, never before `submit` has returned."""

    def streamed(self, chunk: Chunk) -> None:
        """Take a piece of a stream, in order and never after the outcome; `Engine.credit` reports what has gone on."""


class Engine(Protocol):
    """Runs calls."""

    def new_id(self) -> int:
        """Return a number for a call that no other caller of this engine object chooses."""

    def submit(self, call: Call, caller: Caller) -> None:
        """Have a call run.

        Args:
            call: the call.
            caller: hears what becomes of it.

        Raises:
            ValueError: a call with this number runs already.
        """

    def cancel(self, call_id: int) -> None:
        """Drop a call that nobody waits for; nothing happens if it is settled.

        Its outcome has the code `errors.CANCELLED`, and comes before this returns.
        """

    def credit(self, credit: Credit) -> None:
        """Note what the client has taken of a stream, which makes room for as much. Ignored after the stream's end."""

    def statistics(self) -> Statistics:
        """Return how things stand."""
