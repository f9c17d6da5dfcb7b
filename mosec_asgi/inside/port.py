"""The worker's end of its link: what has come, who has left, and how much of each stream is on its way.

A subclass carries the messages: over a socket to a process (`pool.process.port`), or by a queue to a thread. Tasks wait
in that socket or queue: while `forward` runs, the next ones are already there. A worker that streams, or that calls
`is_cancelled`, reads from it in between, to learn which clients have left and how much others have read.
"""

from __future__ import annotations

import abc
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from mosec_asgi.inside.pickler import Store
from mosec_asgi.inside.stopwatch import Stopwatch
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.labels import UNLABELLED
from mosec_asgi.messages import TRACED, Cancels, Chunks, Credits, Results, Tasks

if TYPE_CHECKING:
    # A worker without an event loop does not load asyncio.
    import asyncio


class ProgressNotes(Protocol):
    """Where a worker notes how far it has come; see `messages.Progress`."""

    def begin(self, tasks: int = 1) -> None:
        """Note that the worker begins the next `tasks` of those that it was sent."""

    def beat(self) -> None:
        """Note that the worker does a step."""


def inputs(tasks: Tasks) -> Sequence[bytes]:
    """Return the payloads of tasks that have come through a port: these are always bytes."""
    return tasks.payloads  # type: ignore[return-value]


class Port(abc.ABC):
    """Receives tasks and sends their answers. Any thread may send.

    A subclass passes each message to `take`, and sets `ended` when no more can come.

    Attributes:
        progress: where the worker notes how far it has come.
        memory: the memory that it shares with the server for large payloads, if there is any.
        tasks: messages of tasks that have come and have not been begun.
        cancelled: tasks that the worker has and nobody waits for.
        ended: the server has ended the stream, or is gone: no more tasks come.
        store: the store in which it leaves large payloads for other workers, in the place of such memory.
        stopwatch: measures when `forward` has a traced task; None where there are none.
        labelled: results are sent with what the next stage asks to know of them (`codec.Labelled`).
    """

    stopwatch: Stopwatch | None = None
    store: Store | None = None

    def __init__(self, progress: ProgressNotes) -> None:
        self.progress = progress
        self.memory: Mapped | None = None
        self.tasks: deque[Tasks] = deque()
        self.cancelled: set[int] = set()
        self.ended = False
        self.labelled = False
        # The first is held while something is received, the second while something is sent or changed.
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
            # Later messages may cancel some of the tasks.
            self.poll()
        return self.tasks.popleft() if self.wait_for_tasks() else None

    def wait_for_tasks(self) -> bool:
        """Wait until there are tasks to begin; False when the server has ended the stream."""
        while True:
            with self._receiving:
                # Checked with the lock held: another thread may just have received what this one would wait for.
                if self.tasks or self.ended:
                    return bool(self.tasks)
                self.report()
                self._receive(wait=True)

    def poll(self) -> None:
        """Take in what has come, without waiting."""
        # While the worker waits for tasks, a thread that pushes events does not receive.
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
        """Make an event loop call `on_news` whenever `poll` would take in a message, or at the end of the stream."""

    @abc.abstractmethod
    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop these calls."""

    @abc.abstractmethod
    def _receive(self, *, wait: bool) -> bool:
        """Pass what has come to `take`; False where nothing has come, or the stream has ended.

        Args:
            wait: wait for something.
        """

    def take(self, message: Tasks | Cancels | Credits) -> None:
        """Take in a message of the server."""
        with self._lock:
            self._take(message)

    def _take(self, message: Tasks | Cancels | Credits) -> None:
        """Do the same with the lock held."""
        if isinstance(message, Tasks):
            self.tasks.append(message)
            # It is the highest of the flags.
            if self.stopwatch is not None and max(message.flags, default=0) >= TRACED:
                flags = message.flags
                self.stopwatch.wanted.update(
                    [one for one, flag in zip(message.ids, flags, strict=True) if flag & TRACED]
                )
            self._held.update(message.ids)
        elif isinstance(message, Cancels):
            # Some of the tasks may have been answered while the message was on its way.
            self.cancelled.update(self._held.intersection(message.ids))
        else:
            for task_id, size in zip(message.ids, message.sizes, strict=True):
                if task_id in self._outstanding:
                    self._outstanding[task_id] -= size

    def has_left(self, task_id: int) -> bool:
        """Whether nobody waits for a task any more, by the messages that were taken in."""
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

    def measure(self) -> None:
        """Say with the answers of traced tasks from now on when `forward` had them."""
        self.stopwatch = Stopwatch(self._now)

    # Of another clock, where the worker has one.
    _now: Callable[[], float] = staticmethod(time.perf_counter)

    def answer(self, results: Results) -> None:
        """Send results, and forget their tasks."""
        self.progress.beat()
        if self.stopwatch is not None and self.stopwatch.wanted:
            results = results._replace(forwards=self.stopwatch.take(results.ids))
        if self.labelled:
            # A failure has none, and needs none.
            labels = [getattr(payload, "label", UNLABELLED) for payload in results.payloads]
            results = results._replace(labels=labels)
        ids = results.ids
        with self._lock:
            self._held.difference_update(ids)
            if self.cancelled:
                self.cancelled.difference_update(ids)
            if self._outstanding:
                for task_id in ids:
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
        """Report which blocks of shared memory that were kept are not needed any more; each answer does so as well."""
        # A port without shared memory has nothing to report.
        return

    @abc.abstractmethod
    def _send_results(self, results: Results) -> None:
        """Send results; called with the lock held, as the next."""

    @abc.abstractmethod
    def _send_chunks(self, chunks: Chunks) -> None:
        """Send pieces of streams."""
