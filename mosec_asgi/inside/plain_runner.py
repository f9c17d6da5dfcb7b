"""Runs tasks on a worker whose `forward` returns its results: one by one, or a batch at a time (`batch`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mosec_asgi.inside.batch import END, BatchAlgorithm, Close, Forward, Next, Steps, Unit, Wanted
from mosec_asgi.inside.codec import LEFT, Answer, Codec
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.isolation import Raised
from mosec_asgi.inside.port import Port, inputs
from mosec_asgi.inside.returned import check_finished
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.stopwatch import Watched
from mosec_asgi.inside.timer import NoTimer, Timer
from mosec_asgi.messages import Results, Tasks, tuple_new
from mosec_asgi.request import Request
from mosec_asgi.worker import Worker

# Seconds: answers to single items are gathered for so long. A quick model sends several at once, a slow one does not
# wait.
GATHER_SECONDS = 0.0005
# Seconds between two signs of life of a worker that waits for a client to read.
BEAT_SECONDS = 0.1
NO_TASKS = Tasks((), (), (), ())


class PlainRunner:
    """Runs the tasks that come through a port, in order, until it ends."""

    def __init__(self, worker: Worker, spec: WorkerSpec, port: Port, timer: Timer | NoTimer) -> None:
        """Bind a worker to its port.

        Args:
            worker: what to run.
            spec: how.
            port: where tasks come from and results go.
            timer: bounds the time of `forward`.
        """
        # Of any kind: what its `forward` takes and returns depends on that, and on the stage.
        self._worker: Any = worker
        self._port = port
        self._timer = timer
        self._batches = spec.max_batch_size > 1
        # Stands around a call of `forward`.
        self._around: Timer | NoTimer | Watched = timer
        self._watched: Watched | None = None
        if spec.traces:
            port.measure()
            self._watched = Watched(timer, port, self._inside)
        self._codec = Codec(worker, spec, port.memory, timer, port.progress.beat, port.store)
        self._algorithm = BatchAlgorithm(spec, self._codec, port, time.perf_counter)
        # The unit that runs now.
        self._unit = Unit(NO_TASKS, ())
        worker._has_left = self._has_left
        worker._request_at = self._request_at

    def _inside(self) -> Sequence[int]:
        return self._unit.inside

    def trace_ids(self) -> list[str]:
        """Return the ids of the traces of those requests that are traced."""
        return self._unit.trace_ids_inside()

    def request_ids(self) -> list[str]:
        """Return the ids of the requests that `forward` has now."""
        return self._unit.request_ids_inside()

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example; raises what it raises."""
        check_finished(self._worker.forward(example))

    def close(self) -> None:
        """Let the worker release what it took."""
        self._codec.close()
        self._worker.close()

    def serve(self) -> None:
        """Run what comes until the port ends."""
        while (tasks := self._port.next_tasks()) is not None:
            self.run(tasks)
            # Log lines name these tasks no more, but `is_cancelled` may still ask for them.
            self._unit.tasks = NO_TASKS
            self._timer.check()
            self._worker._answered(inputs(tasks))

    def run(self, tasks: Tasks) -> None:
        """Run tasks and send their answers, in one message or several, each task exactly once."""
        if self._batches:
            unit = self._unit = Unit(tasks, range(len(tasks.ids)))
            self._port.progress.begin(len(tasks.ids))
            self._drive(self._algorithm.run(unit))
        else:
            self._run_each(tasks)

    # -- one by one --------------------------------------------------------------------------------------------------
    # Does the same as `BatchAlgorithm` with a unit of one task, without its generators and lists, which would add 6 µs
    # to the 10 µs of a small task.

    def _run_each(self, tasks: Tasks) -> None:
        """Run tasks one by one; results go out together while the worker is quick and at once when it is slow."""
        # One object for all units.
        self._unit.tasks = tasks
        if self._watched is not None:
            self._around = self._watched if self._watched.wanted else self._timer
        clock = time.perf_counter
        begin = self._port.progress.begin
        ids = tasks.ids
        last = len(ids) - 1
        answers: list[Answer] = []
        done = 0
        began = clock()
        for place in range(last + 1):
            begin()
            answers.append(self._run_one(tasks, place))
            now = clock()
            if now - began > GATHER_SECONDS or place == last:
                codes, payloads = zip(*answers, strict=True)
                self._port.answer(tuple_new(Results, (ids[done : place + 1], codes, payloads, now - began, (), ())))
                if place < last:
                    # The worker is so slow that clients may have left meanwhile.
                    self._port.poll()
                done, answers, began = place + 1, [], clock()

    def _run_one(self, tasks: Tasks, place: int) -> Answer:
        task_id = tasks.ids[place]
        if task_id in self._port.cancelled:
            return LEFT
        flags = tasks.flags[place]
        self._unit.inside = (task_id,)
        try:
            data = self._codec.decode(flags, tasks.payloads[place])  # type: ignore[arg-type]  # see `port.inputs`
            with self._around:
                result = self._worker.forward(data)
            return self._codec.encode(flags, result)
        except Ending:
            raise
        except BaseException as error:
            return self._codec.failure(error, tasks.request_ids[place : place + 1])

    # -- step by step ------------------------------------------------------------------------------------------------

    def _drive(self, steps: Steps) -> None:
        """Run an algorithm's steps to its end."""
        came, send, do = None, steps.send, self._do
        try:
            while True:
                came = do(send(came))
        except StopIteration:
            return

    def _do(self, wanted: Wanted) -> Any:
        try:
            if isinstance(wanted, Next):
                with self._timer:
                    return next(wanted.events, END)
            if isinstance(wanted, Forward):
                with self._timer:
                    return self._worker.forward(wanted.data)
            if isinstance(wanted, Close):
                with self._timer:
                    return wanted.events.close()
            self._port.wait(BEAT_SECONDS)
            self._port.progress.beat()
        except Ending:
            raise
        except BaseException as error:
            return Raised(error)

    def _request_at(self, index: int) -> Request:
        return self._unit.request(index) if self._unit.tasks.ids else Request()

    def _has_left(self, index: int) -> bool:
        paused = self._timer.pause()
        self._port.poll()
        inside = self._unit.inside
        left = 0 <= index < len(inside) and self._port.has_left(inside[index])
        if paused:
            self._timer.resume()
        return left
