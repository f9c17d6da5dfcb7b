"""The actor's end of its connection: the frames of a process's pipe, and notes of progress between them.

A process writes how far it has come into memory that it shares with its server. An actor has to say it, and before it
goes on: if `forward` takes the process with it, what it had begun must be known. A frame for each small task would cost
more than the task. So

- where a worker runs the tasks of a message one after the other without a pause, they are all said to be begun with the
  first of them: several small tasks come in one message only where they take less than a millisecond together. If the
  worker dies among them, the rest counts as begun;
- an answer waits for the note that follows at once, where the next message has come already: both are one write.

Each frame shows that the worker does something; where it sends none, a step is noted every tenth of a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mosec_asgi.ipc import frames
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.messages import Cancels, Credits, Results, Tasks
from mosec_asgi.pool.process.port import SocketPort
from mosec_asgi.pool.ray.store import RayStore

# Seconds between two notes of steps, and between two looks at the memory that the process takes.
BEAT_SECONDS = 0.1
MEMORY_SECONDS = 1.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class RayPort(SocketPort):
    """A port on a connection to the server.

    Attributes:
        kept: the store, where large results are left for the next stage.
        at_once: the worker runs the tasks of a message one after the other without a pause, and then those of the next.
    """

    def __init__(self, sock: Stream) -> None:
        """Take over a connection on which both sides have proved who they are."""
        self._notes = Notes(self.send_frame)
        super().__init__(sock, self._notes)
        self.at_once = False
        self.kept: RayStore | None = None
        # Answers that go out with the next note.
        self._waiting = b""
        # The server has said that it sends no more: the end of the connection is in good order.
        self._finished = False

    @property
    def forsaken(self) -> bool:
        """Whether the connection has ended though the server has not said so."""
        return self.ended and not self._finished

    def next_tasks(self) -> Tasks | None:
        """Return the next tasks, waiting for them; None when the server has ended the stream."""
        tasks = super().next_tasks()
        if self.at_once and tasks is not None:
            self._notes.begin_all(len(tasks.ids))
        return tasks

    def ready(self) -> None:
        """Say that the worker can be given tasks."""
        self._notes.tell()
        super().ready()

    def _take_frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Finish):
            self.ended = self._finished = True
        elif isinstance(frame, (Tasks, Cancels, Credits)):
            self._take(frame)
        elif isinstance(frame, frames.Freed) and self.kept is not None:
            self.kept.freed(frame.blocks)
        else:
            raise frames.FrameError(f"an actor is sent tasks, not {type(frame).__name__}")

    def _send_results(self, results: Results) -> None:
        encoded = frames.encode_results(results)
        self._notes.sent()
        # All that is left to answer waits in whole messages, so `next_tasks` is about to be called.
        if self.at_once and self.tasks and len(self._held) == sum(len(tasks.ids) for tasks in self.tasks):
            self._waiting += encoded
        else:
            self._send(encoded)

    def send_frame(self, frame: bytes) -> None:
        """Send a frame that is about no task."""
        with self._lock:
            self._send(frame)

    def _send(self, data: bytes) -> None:
        if self._waiting:
            data, self._waiting = self._waiting + data, b""
        super()._send(data)


class Notes:
    """How far the worker has come, and how far the server knows of it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        """Begin with nothing; `send` takes a frame."""
        self._send = send
        self._begun = 0
        # Of those, what the server knows; it may know of more, those of a message that has been begun.
        self._told = 0
        self._said_at = 0.0
        self._memory = 0
        self._looked_at = 0.0

    def begin(self, tasks: int = 1) -> None:
        """Note that the worker begins the next `tasks` of those that it was sent."""
        self._begun += tasks
        if self._begun > self._told:
            self._told = self._begun
            self.tell()

    def begin_all(self, tasks: int) -> None:
        """Note that the worker begins the next `tasks`, of which `begin` will speak one by one."""
        self._told = self._begun + tasks
        self.tell()

    def beat(self) -> None:
        """Note that the worker does a step."""
        if time.monotonic() - self._said_at > BEAT_SECONDS:
            self.tell()

    def sent(self) -> None:
        """Note that something else is sent, which shows as much."""
        self._said_at = time.monotonic()

    def tell(self) -> None:
        """Tell the server."""
        now = self._said_at = time.monotonic()
        if now - self._looked_at > MEMORY_SECONDS:
            self._looked_at, self._memory = now, resident_memory()
        self._send(frames.encode_noted(frames.Noted(self._told, self._memory)))


def resident_memory() -> int:
    """Return the bytes of memory that this process takes; 0 without Linux's /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0
