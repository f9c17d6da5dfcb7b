"""Which waiting tasks go to which worker next: one policy a module, all of them pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Task

WorkerKey = TypeVar("WorkerKey", bound=Hashable)


# Not a `NamedTuple`, which cannot be generic before Python 3.11, and not frozen, which would cost time for each task.
@dataclass(slots=True)
class Pick(Generic[WorkerKey]):
    """A decision: these tasks, which wait, go to this worker; without batching they may be sent with others."""

    worker: WorkerKey
    tasks: list[Task]


class Policy(Protocol[WorkerKey]):
    """Decides, and changes nothing: the caller carries out the pick, and asks again."""

    def pick(self, queue: TaskQueue, loads: Loads[WorkerKey], now: float) -> Pick[WorkerKey] | float | None:
        """Return the next pick, of any live tasks of the queue that need not be run alone.

        Returns:
            a pick; or the time at which to ask again even if nothing happens until then; or None where there is no need
            to ask again before something happens.
        """
