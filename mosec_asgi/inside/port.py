"""The worker's end of its pipe.

The pipe does the queueing: while `forward` runs, the next frames already lie in it. A worker that streams, or is asked
`is_cancelled`, looks into it in between, for clients that have left and for room that others have made by reading.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Sequence

from mosec_asgi.ipc import frames
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.messages import Cancels, Chunks, Credits, Results, Tasks

READ_SIZE = 1 << 18


def inputs(tasks: Tasks) -> Sequence[bytes]:
    """Return the payloads of tasks that have come through a port: bytes, since their link has read what it held."""
    return tasks.payloads  # type: ignore[return-value]


class Port:
    """Receives tasks and sends what becomes of them. Sending may be done from any thread.

    Attributes:
        progress: where the worker notes how far it has come.
        memory: what it shares with the server for large payloads, where it shares any.
        tasks: frames of tasks that have come and have not been begun.
        cancelled: tasks that the worker has and nobody waits for.
        ended: the server has ended the stream, or is gone: no more tasks come.
    """

    def __init__(self, sock: socket.socket, progress: ProgressPage) -> None:
        self.progress = progress
        self.memory: Mapped | None = None
        self.tasks: deque[Tasks] = deque()
        self.cancelled: set[int] = set()
        self.ended = False
        self._sock = sock
        self._decoder = frames.Decoder()
        # One for all reads: a new buffer of this size for each would be mapped, shrunk and unmapped, three system calls
        # that made up a quarter of what a small task costs the worker (10 of 37 µs).
        self._buffer = memoryview(bytearray(READ_SIZE))
        # Held while something is read, and while something is sent or changed.
        self._reading = threading.Lock()
        self._lock = threading.RLock()
        # Tasks that have come and are not answered.
        self._held: set[int] = set()
        # Bytes of streams that have been sent and are not reported as taken.
        self._outstanding: dict[int, int] = {}

    def fileno(self) -> int:
        """Return the descriptor to watch for something to `poll`."""
        return self._sock.fileno()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def next_tasks(self) -> Tasks | None:
        """Return the next frame of tasks, waiting for it; None when the server has ended the stream.

        Raises:
            FrameError: what comes is no frame, or not one for a worker.
        """
        if self.tasks:
            # What came behind them may cancel some of them.
            self.poll()
        return self.tasks.popleft() if self.wait_for_tasks() else None

    def wait_for_tasks(self) -> bool:
        """Wait until there are tasks to begin; False when the server has ended the stream.

        Raises:
            FrameError: what comes is no frame, or not one for a worker.
        """
        while True:
            with self._reading:
                # Looked at with the lock held: another thread may have taken in just now what would be waited for.
                if self.tasks or self.ended:
                    return bool(self.tasks)
                self.report()
                self._receive(0)

    def poll(self) -> None:
        """Take in what has come, without waiting."""
        # A thread that pushes events while the worker waits for tasks leaves the reading to it.
        if self._reading.acquire(blocking=False):
            try:
                while not self.ended and self._receive(socket.MSG_DONTWAIT):
                    pass
            finally:
                self._reading.release()

    def wait(self, seconds: float) -> None:
        """Wait until something comes, then take it in."""
        # Made anew: one cannot be used by two threads at a time.
        readable = select.poll()
        readable.register(self._sock, select.POLLIN)
        if not self.ended and readable.poll(seconds * 1000):
            self.poll()

    def has_left(self, task_id: int) -> bool:
        """Whether nobody waits for a task any more, as far as it has been taken in."""
        return self.ended or task_id in self.cancelled or task_id not in self._held

    def _receive(self, flags: int) -> bool:
        """Read once; False where there is nothing to read now."""
        try:
            size = self._sock.recv_into(self._buffer, 0, flags)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:
            size = 0
        if not size:
            self.ended = True
            return False
        self._decoder.receive_data(bytes(self._buffer[:size]))
        with self._lock:
            while (frame := self._decoder.next_frame()) is not None:
                self._take(frame)
        return True

    def _take(self, frame: frames.Frame) -> None:
        if isinstance(frame, Tasks):
            self.tasks.append(frame)
            self._held.update(frame.ids)
        elif isinstance(frame, Cancels):
            # Some may have been answered while the frame was on its way.
            self.cancelled.update(self._held.intersection(frame.ids))
        elif isinstance(frame, Credits):
            for task_id, size in zip(frame.ids, frame.sizes, strict=True):
                if task_id in self._outstanding:
                    self._outstanding[task_id] -= size
        elif isinstance(frame, frames.Freed) and self.memory is not None:
            self.memory.freed(frame.blocks)
        else:
            raise frames.FrameError(f"a worker is sent tasks, not {type(frame).__name__}")

    # -- sending -----------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Say that the worker can be given tasks."""
        self._send(frames.encode_ready())

    def failed(self, text: str) -> None:
        """Say why the worker could not start."""
        self._send(frames.encode_failed(text))

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
            encoded = frames.encode_results(results)
            self._send(encoded if self.memory is None else self.memory.report() + encoded)

    def report(self) -> None:
        """Say which parts of shared memory, kept beyond their tasks, are needed no more; an answer says it as well."""
        if self.memory is not None and self.memory.has_news:
            with self._lock:
                self._send(self.memory.report())

    def answer_one(self, task_id: int, answer: tuple[int, bytes], seconds: float = 0.0) -> None:
        """Send the answer of one task: its status and its payload."""
        self.answer(Results([task_id], [answer[0]], [answer[1]], seconds))

    def emit(self, ids: Sequence[int], payloads: Sequence[bytes]) -> None:
        """Send pieces of streams."""
        with self._lock:
            for task_id, payload in zip(ids, payloads, strict=True):
                self._outstanding[task_id] = self._outstanding.get(task_id, 0) + len(payload)
            self._send(frames.encode_chunks(Chunks(ids, payloads)))

    def outstanding(self, task_id: int) -> int:
        """Return how many bytes of a stream are on their way to its client."""
        return self._outstanding.get(task_id, 0)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True
