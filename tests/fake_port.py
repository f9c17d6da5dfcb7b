"""The server's end of a worker's pipe, for tests of what runs inside a worker process.

The worker runs on the test's own thread, as it does in its process: its timer needs the main thread. Its `Port` and
the pipe are real. A `ServerEnd` stands at the other end, with a thread of its own. It holds every frame against what
the real server would accept, notes it, gives streams credit, and ends the stream when all that it sent is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from mosec_asgi.batching.flow import Flow
from mosec_asgi.inside.loading import Runner, load, runner_for
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import KernelTimer
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.messages import EGRESS, INGRESS, Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.pool.process.port import SocketPort
from mosec_asgi.worker import Worker

BOTH = INGRESS | EGRESS
# Seconds; far above what anything here needs, so that only a hang reaches it.
PATIENCE = 20.0
BUFFER = 256 * 1024


def worker_of(forward: Callable[[Any], Any], base: type[Worker] = Worker, **members: Any) -> type[Worker]:
    """Return a worker class around a function, with further attributes and methods."""
    return type("Made", (base,), {"forward": lambda self, data: forward(data), **members})


def tasks(*payloads: bytes, flags: int = BOTH, first: int = 1) -> Tasks:
    """Return tasks numbered from `first`, with the request ids r1, r2, ..."""
    ids = range(first, first + len(payloads))
    return Tasks(ids, [flags] * len(ids), [f"r{number}" for number in ids], payloads)


def json_tasks(*values: Any, first: int = 1) -> Tasks:
    """Return tasks with these inputs."""
    return tasks(*(json.dumps(value).encode() for value in values), first=first)


def ok(value: Any) -> tuple[int, bytes]:
    """Return the answer that says `value`."""
    return 200, json.dumps(value, separators=(",", ":")).encode()


# The answers to a task whose worker has a bug, to one whose client has left, and to one whose stream has ended well.
INTERNAL = (500, b"inference internal error")
LEFT = (499, b"")
ENDED = (200, b"")
TOO_SLOW = (408, b"mosec timeout error: the client does not read its stream")


def data(*texts: str) -> list[bytes]:
    """Return texts of one line as events of a stream."""
    return [f"data: {text}\n\n".encode() for text in texts]


def until(condition: Callable[[], object], what: str = "what was waited for has not happened") -> None:
    """Wait until `condition` holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.0005)


class Panic(BaseException):
    """As a library raises it that is not written in Python."""


# What a generator of a stream may raise beside an `Exception`.
UNUSUAL = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Panic)


class ServerEnd:
    """The server's end of a pipe, whose other end is `port`.

    Attributes:
        port: the worker's end.
        buffer: the bytes of a stream that may be on their way.
        frames: all that the worker has said.
        answers: the status and payload for each task, in the order in which they came.
        events: the pieces of each stream.
        on_event: called with a task's number and each piece of its stream, on the server's thread.
        on_answer: called with a task's number once it is answered, on the server's thread.
    """

    def __init__(
        self,
        *,
        buffer: int = BUFFER,
        reads: bool = True,
        on_event: Callable[[int, bytes], None] | None = None,
        on_answer: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            buffer: see above.
            reads: clients take what comes at once; else when `take` is called.
            on_event: see above.
            on_answer: see above.
        """
        self._sock, self._theirs = socket.socketpair()
        self._page = ProgressPage()
        self.port = SocketPort(self._theirs, self._page)
        self.frames: list[frames.Frame] = []
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.events: dict[int, list[bytes]] = {}
        self.on_event = on_event
        self.on_answer = on_answer
        self.buffer = buffer
        self._reads = reads
        self._flows: dict[int, Flow] = {}
        self._sent = 0
        self._cancelled: set[int] = set()
        self._faults: list[BaseException] = []
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> ServerEnd:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._theirs.close()
        self._thread.join()
        self._sock.close()
        self.progress = self._page.read()
        self._page.close()
        if kind is None and self._faults:
            raise self._faults[0]

    # -- what it says ------------------------------------------------------------------------------------------------

    def send(self, *work: Tasks) -> None:
        """Send tasks."""
        for each in work:
            self._sent += len(each.ids)
            self._flows |= {task_id: Flow(self.buffer) for task_id in each.ids}
            self.events |= {task_id: [] for task_id in each.ids}
        self.write(b"".join(map(frames.encode_tasks, work)))

    def cancel(self, *ids: int) -> None:
        """Say that the clients of these tasks have left."""
        self._cancelled.update(ids)
        self.write(frames.encode_cancels(Cancels(ids)))

    def take(self, task_id: int, size: int) -> None:
        """Have a client take this much of its stream."""
        report = self._flows[task_id].taken(size)
        if report:
            self.write(frames.encode_credits(Credits([task_id], [report])))

    def take_all(self, task_id: int) -> None:
        """Have a client take all that has come of its stream and was not taken, and read on."""
        self._reads = True
        self.take(task_id, sum(map(len, self.events[task_id])))

    def end(self) -> None:
        """End the stream: no more tasks come."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._sock.sendall(data)

    # -- what it hears -----------------------------------------------------------------------------------------------

    @property
    def results(self) -> list[Results]:
        """The frames of results."""
        return [frame for frame in self.frames if isinstance(frame, Results)]

    def texts(self, task_id: int) -> str:
        """Return what a stream has said so far."""
        return b"".join(self.events[task_id]).decode()

    def begun(self) -> Progress:
        """Return how far the worker has come."""
        return self._page.read()

    def _listen(self) -> None:
        decoder = frames.Decoder()
        self._sock.settimeout(PATIENCE)
        try:
            while chunk := self._sock.recv(1 << 18):
                decoder.receive_data(chunk)
                while (frame := decoder.next_frame()) is not None:
                    self._hear(frame)
            assert not decoder.pending, "the worker has torn a frame"
        except BaseException as error:
            self._faults.append(error)
            # The real server would kill it; here the worker must come to an end by itself.
            self.end()
            with contextlib.suppress(OSError):
                while self._sock.recv(1 << 18):
                    pass

    def _hear(self, frame: frames.Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Chunks):
            for task_id, payload in zip(frame.ids, frame.payloads, strict=True):
                self._hear_event(task_id, payload)
        elif isinstance(frame, Results):
            for task_id, code, payload in zip(frame.ids, frame.codes, frame.payloads, strict=True):
                assert task_id in self._flows, f"task {task_id} was answered and never sent"
                assert task_id not in self.answers, f"task {task_id} was answered twice"
                self.answers[task_id] = code, payload
                if self.on_answer is not None:
                    self.on_answer(task_id)
            if len(self.answers) == self._sent:
                self.end()
        else:
            assert isinstance(frame, (frames.Ready, frames.Failed)), f"no worker says {frame}"

    def _hear_event(self, task_id: int, payload: bytes) -> None:
        assert task_id not in self.answers, f"an event of task {task_id} came after its answer"
        assert payload, "an empty event"
        flow = self._flows[task_id]
        assert flow.came(len(payload), 0.0), f"more of the stream of task {task_id} than there was room for"
        self.events[task_id].append(payload)
        if self._reads:
            self.take(task_id, len(payload))
        if self.on_event is not None:
            self.on_event(task_id, payload)


def spec_of(
    worker: type[Worker],
    *,
    max_batch_size: int = 1,
    timeout: float = PATIENCE,
    isolation_calls: int | None = None,
    concurrency: int = 1,
    stream_buffer: int = BUFFER,
    next_stages: tuple[str, ...] = (),
    event_type: str = "",
) -> WorkerSpec:
    """Return what a worker is to run; it is worker 3 of stage Made_1."""
    return WorkerSpec(
        worker,
        "Made_1",
        3,
        max_batch_size,
        timeout,
        isolation_calls,
        concurrency=concurrency,
        stream_buffer=stream_buffer,
        next_stages=next_stages,
        event_type=event_type,
    )


@contextlib.contextmanager
def runner_of(
    worker: type[Worker], server: ServerEnd, kernel: KernelTimer | None = None, **options: Any
) -> Iterator[Runner]:
    """Bind a worker to a server's end for the time of a block; close it then."""
    made = spec_of(worker, stream_buffer=server.buffer, **options)
    runner = runner_for(load(made), made, server.port, kernel)
    before = signal.getsignal(signal.SIGALRM)
    try:
        yield runner
    finally:
        runner.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def served(
    worker: type[Worker], *work: Tasks, server: ServerEnd | None = None, answers: bool = True, **options: Any
) -> ServerEnd:
    """Serve tasks until the stream ends, and return the server's end of it.

    Args:
        worker: the class.
        work: to send before the worker begins to serve.
        server: where it is scripted; a plain one if None.
        answers: each task must be answered.
        options: of `spec_of`.
    """
    with server or ServerEnd() as server, runner_of(worker, server, **options) as runner:
        if work:
            server.send(*work)
        runner.serve()
        # The worker's books are closed: nothing is kept for a task that is answered.
        if answers:
            held = (server.port._held, server.port.cancelled, server.port._outstanding)
            assert held == (set(), set(), {}), "the port keeps what is done with"
            outlet = getattr(runner, "_outlet", None)
            if outlet is not None:
                kept = (outlet._open, outlet._begun, outlet._finished, outlet._ids)
                assert kept == ({}, set(), set(), []), "the outlet keeps what is done with"
    if answers:
        assert len(server.answers) == server._sent, f"only {list(server.answers)} were answered"
    return server


def run(worker: type[Worker], work: Tasks, **options: Any) -> list[tuple[int, bytes]]:
    """Return the status and payload of each task, in order; each must have exactly one."""
    answers = served(worker, work, **options).answers
    assert sorted(answers) == list(work.ids)
    return [answers[task_id] for task_id in work.ids]


def run_batch(worker: type[Worker], *values: Any, **options: Any) -> list[tuple[int, bytes]]:
    """Run inputs as one batch."""
    return run(worker, json_tasks(*values), **{"max_batch_size": 64, **options})


class Recorder:
    """A `forward` that notes what it was called with and returns it as it came."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, data: Any) -> Any:
        self.calls.append(data)
        return data


def hang(seconds: float = PATIENCE) -> None:
    """Be at work in Python, for long, where nothing interrupts it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def chunks_of(stream: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """Cut bytes at the given places."""
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > begin:
            yield stream[begin:end]
