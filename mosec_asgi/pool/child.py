"""Inside the worker process: receive, decode, forward, encode, reply.

The process runs one thread and one loop: read a frame of tasks, run them, write a frame of results. The pipe does the
queueing: while `forward` runs, the next frame already lies in it. Its end asks the worker to stop, whether the server
closed it or died, so no worker outlives its server.

An item that fails to decode or encode fails alone. If `forward` raises on a batch, parts of it are run again
(`isolation`), and only the culprits get the error. The interrupt and terminate signals are ignored: ctrl-c reaches the
whole process group, and it is the server that decides when its workers stop.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import EncodingError, Failure, MosecError, MosecTimeoutError, ServerError, describe
from mosec_asgi.ipc import frames
from mosec_asgi.pool import isolation
from mosec_asgi.worker import Worker

READ_SIZE = 1 << 18
# Replies of single items are gathered while the model is quick, and go out at once when it is slow.
GATHER_SECONDS = 0.0005
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    # One that nobody else uses.
    _SERVER_DIED = signal.SIGRTMAX - 1

logger = log.internal_logger(__name__)

Reply = Callable[[frames.Results], None]
# In the place of a result that no run of `forward` has given yet.
_UNDECIDED: Any = object()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What crosses into the worker process.

    Attributes:
        worker: the class; crosses by name, so a spawned process must be able to import it.
        stage: the stage's name.
        worker_id: the worker's number in its stage, from 1.
        max_batch_size: the most items a batch.
        timeout: seconds that one call of `forward` may take.
        isolation_calls: the most calls of `forward` to find the culprits of a failed batch; None for the default.
        log_level: the least level to log.
        log_text: coloured text instead of JSON lines.
    """

    worker: type[Worker]
    stage: str
    worker_id: int
    max_batch_size: int
    timeout: float
    isolation_calls: int | None = None
    log_level: str = "info"
    log_text: bool = False


def main(spec: WorkerSpec, sock: socket.socket) -> None:
    """Run a worker until its pipe ends. The target of the worker process.

    A worker that cannot start sends its traceback through the pipe and exits with status 1.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_the_server()
    log.configure(spec.log_level, text=spec.log_text)
    try:
        worker = load(spec)
    except Exception:
        _send(sock, frames.encode_failed(traceback.format_exc()))
        sys.exit(1)
    try:
        warm_up(worker, spec)
        if _send(sock, frames.encode_ready()):
            _serve(sock, Executor(worker, spec))
    finally:
        _close(worker)


def _end_with_the_server() -> None:
    """Have the kernel send a signal when the server dies, which ends this process in good order (Linux).

    The end of the pipe says so too, but a worker that is loading, or at work, does not read it for a long time.
    """
    if sys.platform == "linux":
        import ctypes

        signal.signal(_SERVER_DIED, _server_died)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SERVER_DIED, 0, 0, 0)
        server = multiprocessing.parent_process()
        if server is not None and server.pid != os.getppid():
            # It has died before it could be asked for.
            sys.exit(1)


def _server_died(*_: object) -> None:
    # No `Exception`: it passes through a `forward` that catches those, and leads to `Worker.close`.
    raise SystemExit(1)


def _close(worker: Worker) -> None:
    if sys.platform == "linux":
        # The end of the pipe was read first; the signal must not interrupt what is under way already.
        signal.signal(_SERVER_DIED, signal.SIG_IGN)
    worker.close()


def load(spec: WorkerSpec) -> Worker:
    """Make the worker, with its number, stage and batch size known before its `__init__` runs."""
    worker = spec.worker.__new__(spec.worker)
    worker._worker_id = spec.worker_id
    worker._stage = spec.stage
    worker._max_batch_size = spec.max_batch_size
    worker.__init__()  # type: ignore[misc]  # __new__ and __init__ apart, to set the numbers between them
    return worker


def warm_up(worker: Worker, spec: WorkerSpec) -> None:
    """Run the worker's examples; a failure is logged and the worker serves all the same, as in mosec."""
    examples = _examples(worker)
    try:
        for place, example in enumerate(examples, 1):
            worker.forward(as_input(example, spec.max_batch_size))
            logger.debug("warmed up with example %d of %d", place, len(examples))
    except Exception:
        logger.exception(
            "warm-up failed: `example` and `multi_examples` must be what `forward` takes%s",
            ", a list of items" if spec.max_batch_size > 1 else "",
            extra={"stage": spec.stage, "worker": spec.worker_id},
        )


def _examples(worker: Worker) -> list[Any]:
    if len(worker.multi_examples):
        return list(worker.multi_examples)
    return [] if worker.example is None else [worker.example]


def as_input(example: Any, max_batch_size: int) -> Any:
    """Return an example as what `forward` takes: with batching, a list is a batch and anything else a batch of one."""
    return example if max_batch_size == 1 or isinstance(example, list) else [example]


def _send(sock: socket.socket, data: bytes) -> bool:
    """Send all of `data`; False when the server is gone."""
    try:
        sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _serve(sock: socket.socket, executor: Executor) -> None:
    """Run what comes until the pipe ends."""
    decoder = frames.Decoder()
    gone = False

    def reply(results: frames.Results) -> None:
        nonlocal gone
        gone = not _send(sock, frames.encode_results(results)) or gone
        executor.answered()

    while not gone:
        try:
            data = sock.recv(READ_SIZE)
        except ConnectionResetError:
            return
        if not data:
            return
        decoder.receive_data(data)
        while not gone and (frame := decoder.next_frame()) is not None:
            if not isinstance(frame, frames.Tasks):
                raise frames.FrameError(f"a worker is sent tasks, not {type(frame).__name__}")
            executor.run(frame, reply)


class Executor:
    """Runs tasks on a worker, in the worker process or, for tests, in any other."""

    def __init__(self, worker: Worker, spec: WorkerSpec) -> None:
        self._worker = worker
        self._spec = spec
        self._timer = Timer(spec.timeout)

    def answered(self) -> None:
        """Tell the worker that all tasks that it has decoded so far are answered."""
        self._worker._answered()

    def run(self, tasks: frames.Tasks, reply: Reply) -> None:
        """Run `tasks` and hand over their results, in one call or several, each task exactly once."""
        if self._spec.max_batch_size > 1:
            reply(self._run_batch(tasks))
        else:
            self._run_each(tasks, reply)

    def _run_each(self, tasks: frames.Tasks, reply: Reply) -> None:
        """Run tasks one by one; results go out together while the worker is quick and at once when it is slow."""
        clock = time.perf_counter
        codes: list[int] = []
        payloads: list[bytes] = []
        done = 0
        began = clock()
        for place, task_id in enumerate(tasks.ids):
            code, payload = self._run_one(tasks, place)
            codes.append(code)
            payloads.append(payload)
            now = clock()
            if now - began > GATHER_SECONDS or task_id == tasks.ids[-1]:
                reply(frames.Results(tasks.ids[done : place + 1], codes, payloads, now - began))
                done, codes, payloads, began = place + 1, [], [], clock()

    def _run_one(self, tasks: frames.Tasks, place: int) -> tuple[int, bytes]:
        worker = self._worker
        flags = tasks.flags[place]
        try:
            data = self._decode(flags, tasks.payloads[place])
            with self._timer:
                result = worker.forward(data)
            return 200, self._encode(flags, result)
        except (Exception, MosecTimeoutError) as error:
            return self._failure(error, tasks.request_ids[place : place + 1])

    def _run_batch(self, tasks: frames.Tasks) -> frames.Results:
        began = time.perf_counter()
        answers: list[tuple[int, bytes] | None] = [None] * len(tasks.ids)
        items: list[Any] = []
        places: list[int] = []
        for place, (flags, payload) in enumerate(zip(tasks.flags, tasks.payloads, strict=True)):
            try:
                data = self._decode(flags, payload)
            except Exception as error:
                answers[place] = self._failure(error, tasks.request_ids[place : place + 1])
                continue
            items.append(data)
            places.append(place)
        for place, result in zip(places, self._forward(items, [tasks.request_ids[p] for p in places]), strict=True):
            answers[place] = self._answer(tasks, place, result)
        codes, payloads = zip(*[answer for answer in answers if answer is not None], strict=True)
        return frames.Results(tasks.ids, codes, payloads, time.perf_counter() - began)

    def _forward(self, items: list[Any], request_ids: Sequence[str]) -> Sequence[Any]:
        """Return a result for each item; one that failed has its exception, or its `Failure` once that is logged."""
        if not items:
            return ()
        try:
            with self._timer:
                return self._checked(self._worker.forward(items), len(items))
        except (MosecTimeoutError, _WrongShape) as error:
            # Running parts again would spend the time once more, or meet the same fault of the worker.
            return [self._told(error, request_ids)] * len(items)
        except Exception as error:
            return self._isolated(items, request_ids, error)

    def _isolated(self, items: list[Any], request_ids: Sequence[str], error: Exception) -> list[Any]:
        """Find the culprits of a failed batch by running parts of it again."""
        results: list[Any] = [_UNDECIDED] * len(items)
        errors: list[BaseException] = [error] * len(items)
        search = isolation.search(len(items), self._spec.isolation_calls)
        try:
            part = next(search)
            while True:
                part = search.send(self._run_part(part, items, results, errors))
        except StopIteration:
            pass
        except MosecTimeoutError as late:
            # No more time is spent; what no run has answered by now fails with what kept it.
            errors = [late] * len(items)
        culprits = [place for place, result in enumerate(results) if result is _UNDECIDED]
        # Each fault is told once, with all the requests that it failed.
        told: dict[int, Failure] = {}
        for place in culprits:
            fault = errors[place]
            if id(fault) not in told:
                told[id(fault)] = self._told(fault, [request_ids[p] for p in culprits if errors[p] is fault])
            results[place] = told[id(fault)]
        return results

    def _run_part(self, part: list[int], items: list[Any], results: list[Any], errors: list[BaseException]) -> bool:
        try:
            with self._timer:
                outcome = self._checked(self._worker.forward([items[place] for place in part]), len(part))
        except Exception as error:
            for place in part:
                errors[place] = error
            return False
        for place, result in zip(part, outcome, strict=True):
            results[place] = result
        return True

    @staticmethod
    def _checked(results: Any, size: int) -> Sequence[Any]:
        """Return what `forward` made of a batch; raise where it is no sequence or not of the batch's length."""
        # By what it can do rather than by what it is: a numpy array or a tensor is no `Sequence`.
        sized = hasattr(results, "__len__") and hasattr(results, "__getitem__")
        if not sized or isinstance(results, (str, bytes, dict)):
            raise _WrongShape(
                f"forward must return a sequence with one result for each of the {size} items of the batch, "
                f"not {type(results).__name__}"
            )
        if len(results) != size:
            raise _WrongShape(f"forward returned {len(results)} results for a batch of {size} items")
        return results if isinstance(results, (list, tuple)) else list(results)

    def _decode(self, flags: int, payload: bytes) -> Any:
        if flags & frames.INGRESS:
            return self._worker.deserialize(payload)
        if flags & frames.EXAMPLE:
            example = _examples(self._worker)[0]
            # An example of a worker with batching is a batch; a dry run has one task to show for it.
            return example[0] if self._spec.max_batch_size > 1 and isinstance(example, list) else example
        return self._worker.deserialize_ipc(payload)

    def _encode(self, flags: int, result: Any) -> bytes:
        payload = self._worker.serialize(result) if flags & frames.EGRESS else self._worker.serialize_ipc(result)
        return payload if type(payload) is bytes else _as_bytes(payload)

    def _answer(self, tasks: frames.Tasks, place: int, result: Any) -> tuple[int, bytes]:
        if isinstance(result, Failure):
            return _on_the_wire(result)
        if isinstance(result, BaseException):
            return self._failure(result, tasks.request_ids[place : place + 1])
        try:
            return 200, self._encode(tasks.flags[place], result)
        except Exception as error:
            return self._failure(error, tasks.request_ids[place : place + 1])

    def _failure(self, error: BaseException, request_ids: Sequence[str]) -> tuple[int, bytes]:
        return _on_the_wire(self._told(error, request_ids))

    def _told(self, error: BaseException, request_ids: Sequence[str]) -> Failure:
        """Log a fault once, with its request ids, and return what the clients are told."""
        failure = describe(error)
        extra = {
            "stage": self._spec.stage,
            "worker": self._spec.worker_id,
            "request_id": " ".join(request_ids),
        }
        if isinstance(error, (MosecError, MosecTimeoutError)):
            logger.log(logging.INFO if failure.code < 500 else logging.WARNING, "%s", failure.text, extra=extra)
        else:
            logger.warning("%s: %s", type(error).__name__, error, exc_info=error, extra=extra)
        return failure


def _on_the_wire(failure: Failure) -> tuple[int, bytes]:
    # A text may hold what is no Unicode, like the name of a file: it is shown escaped.
    return failure.code, failure.text.encode(errors="backslashreplace")


class _WrongShape(ServerError):
    """`forward` did not return one result per item: a fault of the worker's code, whatever the items."""


def _as_bytes(payload: Any) -> bytes:
    """Return what a serializer returned as bytes; refuse what has none."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise EncodingError(f"a serializer must return bytes, not {type(payload).__name__}")


class Timer:
    """Bounds a block's time by raising `MosecTimeoutError` in it: `with timer: ...`.

    Uses SIGALRM, which Python handles on the main thread between two bytecodes; on any other thread it does nothing,
    and a call that never returns to Python is not interrupted: the server's own deadline answers the client then.

    The alarm is not set and cleared around each block, which would be two system calls for a task of some microseconds:
    one that goes off early, for a block that has ended since, sets itself for what the present block has left.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._pending = False
        self._handles: bool | None = None

    def __enter__(self) -> None:
        if self._handles is None:
            self._handles = _handle_alarm(self._alarm)
        self._deadline = time.perf_counter() + self._seconds
        if self._handles and not self._pending:
            self._set(self._seconds)

    def __exit__(self, *_: object) -> None:
        self._deadline = None

    def _set(self, seconds: float) -> None:
        self._pending = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _alarm(self, *_: object) -> None:
        self._pending = False
        if self._deadline is None:
            return
        left = self._deadline - time.perf_counter()
        if left > 0:
            self._set(left)
            return
        self._deadline = None
        raise MosecTimeoutError(f"`forward` took longer than {self._seconds:g} s")


def _handle_alarm(handler: Callable[..., None]) -> bool:
    """Install the handler of SIGALRM; False on a thread that cannot have one."""
    try:
        signal.signal(signal.SIGALRM, handler)
    except ValueError:
        return False
    return True
