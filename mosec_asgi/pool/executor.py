"""Runs tasks on a worker whose `forward` returns its results: one by one, or a batch at a time.

An item that fails to decode or encode fails alone. If `forward` raises on a batch, parts of it are run again
(`isolation`), and only the culprits get the error. A task whose client has left before it is begun is not run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from mosec_asgi.errors import MosecTimeoutError, WrongShape
from mosec_asgi.ipc import frames
from mosec_asgi.pool import isolation
from mosec_asgi.pool.codec import LEFT, Answer, Codec
from mosec_asgi.pool.port import Port
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.pool.timer import KernelTimer, Timer
from mosec_asgi.returned import check_finished
from mosec_asgi.worker import Worker

# Replies of single items are gathered while the model is quick, and go out at once when it is slow.
GATHER_SECONDS = 0.0005
NO_TASKS = frames.Tasks((), (), (), ())


class Executor:
    """Runs the tasks that come through a port, in order, until it ends."""

    def __init__(self, worker: Worker, spec: WorkerSpec, port: Port, kernel: KernelTimer | None = None) -> None:
        """Bind a worker to its port.

        Args:
            worker: what to run.
            spec: how.
            port: where tasks come from and results go.
            kernel: ends the process when `forward` hangs and nobody else can.
        """
        self._worker = worker
        self._spec = spec
        self._port = port
        self._codec = Codec(worker, spec, port.memory)
        self._timer = Timer(spec.timeout, kernel)
        # The frame that is run, and the tasks that `forward` has now, in the order in which it has them.
        self._frame: frames.Tasks = NO_TASKS
        self._inside: Sequence[int] = ()
        worker._has_left = self._has_left

    def request_ids(self) -> list[str]:
        """Return the ids of the requests that `forward` has now."""
        # Once: another thread of the worker may ask.
        frame = self._frame
        names = dict(zip(frame.ids, frame.request_ids, strict=True))
        return [names[task_id] for task_id in self._inside if task_id in names]

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example; raises what it raises."""
        check_finished(self._worker.forward(example))

    def close(self) -> None:
        """Let the worker release what it took."""
        self._worker.close()

    def serve(self) -> None:
        """Run what comes until the port ends."""
        while (tasks := self._port.next_tasks()) is not None:
            self._frame = tasks
            self.run(tasks)
            self._frame = NO_TASKS
            self._timer.check()
            self._worker._answered(tasks.payloads)

    def run(self, tasks: frames.Tasks) -> None:
        """Run tasks and send their results, in one frame or several, each task exactly once."""
        if self._spec.max_batch_size > 1:
            self._port.answer(self._run_batch(tasks))
        else:
            self._run_each(tasks)

    def _run_each(self, tasks: frames.Tasks) -> None:
        """Run tasks one by one; results go out together while the worker is quick and at once when it is slow."""
        clock = time.perf_counter
        begin = self._port.progress.begin
        last = len(tasks.ids) - 1
        answers: list[Answer] = []
        done = 0
        began = clock()
        for place in range(last + 1):
            begin()
            answers.append(self._run_one(tasks, place))
            now = clock()
            if now - began > GATHER_SECONDS or place == last:
                codes, payloads = zip(*answers, strict=True)
                self._port.answer(frames.Results(tasks.ids[done : place + 1], codes, payloads, now - began))
                if place < last:
                    # Slow enough that clients may have left meanwhile.
                    self._port.poll()
                done, answers, began = place + 1, [], clock()

    def _run_one(self, tasks: frames.Tasks, place: int) -> Answer:
        if tasks.ids[place] in self._port.cancelled:
            return LEFT
        flags = tasks.flags[place]
        self._inside = (tasks.ids[place],)
        try:
            data = self._codec.decode(flags, tasks.payloads[place])
            with self._timer:
                result = self._worker.forward(data)
            return self._codec.encode(flags, result)
        except (Exception, MosecTimeoutError) as error:
            return self._codec.failure(error, tasks.request_ids[place : place + 1])

    def _run_batch(self, tasks: frames.Tasks) -> frames.Results:
        began = time.perf_counter()
        self._port.progress.begin(len(tasks.ids))
        answers, items, places = decode_batch(self._codec, tasks, self._port, range(len(tasks.ids)))
        if items:
            ids, flags, request_ids = _columns(tasks, places)
            results = self._forward(items, ids, request_ids)
            beat, answer = self._port.progress.beat, self._codec.answer
            for place, flag, result, request_id in zip(places, flags, results, request_ids, strict=True):
                beat()
                answers[place] = answer(flag, result, request_id)
        codes, payloads = zip(*[answers[place] for place in range(len(tasks.ids))], strict=True)
        return frames.Results(tasks.ids, codes, payloads, time.perf_counter() - began)

    def _forward(self, items: list[Any], ids: Sequence[int], request_ids: Sequence[str]) -> list[Any]:
        """Return a result for each item; one that failed has its `Failure`."""
        steps = isolation.resolve(len(items), self._spec.isolation_calls)
        part = next(steps)
        failed = False
        while True:
            self._inside = [ids[place] for place in part]
            outcome = self._call([items[place] for place in part], whole=len(part) == len(items))
            failed = failed or isinstance(outcome, isolation.Raised)
            try:
                part = steps.send(outcome)
            except StopIteration as done:
                results: list[Any] = done.value
                return self._codec.told_of_all(results, request_ids) if failed else results

    def _call(self, items: list[Any], *, whole: bool) -> isolation.Outcome:
        self._port.progress.beat()
        try:
            with self._timer:
                return checked(self._worker.forward(items), len(items))
        except (Exception, MosecTimeoutError) as error:
            return isolation.Raised(error, final=is_final(error, whole=whole))

    def _has_left(self, index: int) -> bool:
        paused = self._timer.pause()
        self._port.poll()
        left = 0 <= index < len(self._inside) and self._port.has_left(self._inside[index])
        if paused:
            self._timer.resume()
        return left


def decode_batch(
    codec: Codec, tasks: frames.Tasks, port: Port, places: Iterable[int]
) -> tuple[dict[int, Answer], list[Any], list[int]]:
    """Decode the tasks at `places` of a frame.

    Returns:
        the answers of those that cannot or need not be run, by place; the items of the others, and their places.
    """
    answers: dict[int, Answer] = {}
    items: list[Any] = []
    decoded: list[int] = []
    beat, decode, cancelled = port.progress.beat, codec.decode, port.cancelled
    for place in places:
        if cancelled and tasks.ids[place] in cancelled:
            answers[place] = LEFT
            continue
        beat()
        try:
            items.append(decode(tasks.flags[place], tasks.payloads[place]))
            decoded.append(place)
        except (Exception, MosecTimeoutError) as error:
            answers[place] = codec.failure(error, tasks.request_ids[place : place + 1])
    return answers, items, decoded


def _columns(tasks: frames.Tasks, places: list[int]) -> tuple[Sequence[int], Sequence[int], Sequence[str]]:
    """Return the numbers, flags and request ids of the tasks at `places` of a frame."""
    if len(places) == len(tasks.ids):
        return tasks.ids, tasks.flags, tasks.request_ids
    pick = [(tasks.ids[place], tasks.flags[place], tasks.request_ids[place]) for place in places]
    ids, flags, request_ids = zip(*pick, strict=True)
    return ids, flags, request_ids


def is_final(error: BaseException, *, whole: bool) -> bool:
    """Whether running parts of a batch again, after `error` on a part or on the whole, is of no use."""
    # It would spend the time once more, or meet the same fault of the worker.
    return isinstance(error, MosecTimeoutError) or (whole and isinstance(error, WrongShape))


def checked(results: Any, size: int) -> Sequence[Any]:
    """Return what `forward` made of a batch; raise where it is no sequence or not of the batch's length."""
    check_finished(results)
    # By what it can do rather than by what it is: a numpy array or a tensor is no `Sequence`.
    sized = hasattr(results, "__len__") and hasattr(results, "__getitem__")
    if not sized or isinstance(results, (str, bytes, dict)):
        raise WrongShape(
            f"forward must return a sequence with one result for each of the {size} items of the batch, "
            f"not {type(results).__name__}"
        )
    if len(results) != size:
        raise WrongShape(f"forward returned {len(results)} results for a batch of {size} items")
    return results if isinstance(results, (list, tuple)) else list(results)
