"""The worker's end of its link: what has come, who has left, and how much of each stream is on its way.

How messages cross is the business of a subclass: over a socket to a process (`pool.process.port`), by a queue to a
thread. Whatever queues there is where tasks wait: while `forward` runs, the next ones already lie in it. A worker that
streams, or is asked `is_cancelled`, looks into it in between, for clients that have left and for room that others have
made by reading.
"""

from __future__ import annotations

import abc
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.messages import Cancels, Chunks, Credits, Results, Tasks

if TYPE_CHECKING:
    # A worker without an event loop does not load it.
    import asyncio


class ProgressNotes(Protocol):
    """Where a worker notes how far it has come; see `messages.Progress`."""

    def begin(self, tasks: int = 1) -> None:
        """Note that the worker begins the next `tasks` of those that it was sent."""

    def beat(self) -> None:
        """Note that the worker does a step."""


def inputs(tasks: Tasks) -> Sequence[bytes]:
    """Return the payloads of tasks that have come through a port: bytes, since their link has read what it held."""
    return tasks.payloads  # type: ignore[return-value]


class Port(abc.ABC):
    """Receives tasks and sends what becomes of them. Sending may be done from any thread.

    A subclass hands what comes to `take`, and says by `ended` that no more comes.

    Attributes:
        progress: where the worker notes how far it has come.
        memory: what it shares with the server for large payloads, where it shares any.
        tasks: messages of tasks that have come and have not been begun.
        cancelled: tasks that the worker has and nobody waits for.
        ended: the server has ended the stream, or is gone: no more tasks come.
    """

    def __init__(self, progress: ProgressNotes) -> None:
        self.progress = progress
        self.memory: Mapped | None = None
        self.tasks: deque[Tasks] = deque()
        self.cancelled: set[int] = set()
        self.ended = False
        # Held while something is received, and while something is sent or changed.
        self._receiving = threading.Lock()
        self._lock = threading.RLock()
        # Tasks that have come and are not answered.
        self._held: set[int] = set()
        # Bytes of streams that have been sent and are not reported as taken.
        self._outstanding: dict[int, int] = {}

    # -- receiving ---------------------------------------------------------------------------------------------------

    def next_tasks(self) -> Tasks | None:
        """Return the next tasks, waiting for them; None when the server has ended the stream."""
        if self.tasks:
            # What came behind them may cancel some of them.
            self.poll()
        return self.tasks.popleft() if self.wait_for_tasks() else None

    def wait_for_tasks(self) -> bool:
        """Wait until there are tasks to begin; False when the server has ended the stream."""
        while True:
            with self._receiving:
                # Looked at with the lock held: another thread may have taken in just now what would be waited for.
                if self.tasks or self.ended:
                    return bool(self.tasks)
                self.report()
                self._receive(wait=True)

    def poll(self) -> None:
        """Take in what has come, without waiting."""
        # A thread that pushes events while the worker waits for tasks leaves the receiving to it.
        if self._receiving.acquire(blocking=False):
            try:
                while not self.ended and self._receive(wait=False):
                    pass
            finally:
                self._receiving.release()

    @abc.abstractmethod
    def wait(self, seconds: float) -> None:
        """Wait until something comes, then take it in."""

    @abc.abstractmethod
    def watch(self, loop: asyncio.AbstractEventLoop, on_news: Callable[[], None]) -> None:
        """Have an event loop call `on_news` whenever something has come that `poll` would take in, or the end has."""

    @abc.abstractmethod
    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have it call nothing any more."""

    @abc.abstractmethod
    def _receive(self, *, wait: bool) -> bool:
        """Hand what has come to `take`; False where nothing has, or the end.

        Args:
            wait: wait for something.
        """

    def take(self, message: Tasks | Cancels | Credits) -> None:
        """Take in a message of the server."""
        with self._lock:
            if isinstance(message, Tasks):
                self.tasks.append(message)
                self._held.update(message.ids)
            elif isinstance(message, Cancels):
                # Some may have been answered while the message was on its way.
                self.cancelled.update(self._held.intersection(message.ids))
            else:
                for task_id, size in zip(message.ids, message.sizes, strict=True):
                    if task_id in self._outstanding:
                        self._outstanding[task_id] -= size

    def has_left(self, task_id: int) -> bool:
        """Whether nobody waits for a task any more, as far as it has been taken in."""
        return self.ended or task_id in self.cancelled or task_id not in self._held

    def holds(self, task_id: int) -> bool:
        """Whether a task has come and has not been answered."""
        return task_id in self._held

    # -- sending -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def ready(self) -> None:
        """Say that the worker can be given tasks."""

    @abc.abstractmethod
    def failed(self, text: str) -> None:
        """Say why the worker could not start."""

    def answer(self, results: Results) -> None:
        """Send results; their tasks are done with."""
        self.progress.beat()
        with self._lock:
            self._held.difference_update(results.ids)
            if self.cancelled:
                self.cancelled.difference_update(results.ids)
            if self._outstanding:
                for task_id in results.ids:
                    self._outstanding.pop(task_id, None)
            self._send_results(results)

    def answer_one(self, task_id: int, answer: tuple[int, bytes], seconds: float = 0.0) -> None:
        """Send the answer of one task: its status and its payload."""
        self.answer(Results((task_id,), (answer[0],), (answer[1],), seconds))

    def emit(self, ids: Sequence[int], payloads: Sequence[bytes]) -> None:
        """Send pieces of streams."""
        with self._lock:
            for task_id, payload in zip(ids, payloads, strict=True):
                self._outstanding[task_id] = self._outstanding.get(task_id, 0) + len(payload)
            self._send_chunks(Chunks(ids, payloads))

    def outstanding(self, task_id: int) -> int:
        """Return how many bytes of a stream are on their way to its client."""
        return self._outstanding.get(task_id, 0)

    def report(self) -> None:
        """Say which parts of shared memory, kept beyond their tasks, are needed no more; an answer says it as well."""
        # Nothing is shared, unless a subclass says otherwise.
        return

    @abc.abstractmethod
    def _send_results(self, results: Results) -> None:
        """Send results; called with the lock held, as the next."""

    @abc.abstractmethod
    def _send_chunks(self, chunks: Chunks) -> None:
        """Send pieces of streams."""
