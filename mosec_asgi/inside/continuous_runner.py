"""Runs a `ContinuousWorker`: requests join and leave its batch between two steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import ServerError
from mosec_asgi.inside.codec import LEFT, Answer, Codec, shown
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.outlet import Outlet
from mosec_asgi.inside.port import Port, inputs
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import NoTimer, Timer
from mosec_asgi.messages import Tasks
from mosec_asgi.request import Request, unpacked
from mosec_asgi.streaming import ContinuousWorker

# An idle worker waits for this part of a step's time at most, for requests that come together.
JOIN_SHARE = 0.1
MOST_JOIN_SECONDS = 0.005

logger = log.internal_logger(__name__)


class ContinuousRunner:
    """Runs the tasks that come through a port, each in a slot of the running batch, until it ends."""

    def __init__(self, worker: ContinuousWorker, spec: WorkerSpec, port: Port, timer: Timer | NoTimer) -> None:
        """Bind a worker to its port.

        Args:
            worker: what to run.
            spec: how; `max_batch_size` is the number of slots.
            port: where tasks come from and events go.
            timer: bounds the time of each call of `admit`, `step` and `evict`.
        """
        self._worker = worker
        self._port = port
        self._slots = spec.max_batch_size
        if spec.traces:
            port.measure()
        self._codec = Codec(worker, spec, port.memory, timer, port.progress.beat, port.store)
        self._outlet = Outlet(worker, spec, self._codec, port)
        self._timer = timer
        # The tasks by their slots, the slots by their tasks, and the messages in which the tasks came.
        self._tasks: dict[Hashable, int] = {}
        self._slot_of: dict[int, Hashable] = {}
        self._payloads: dict[int, bytes] = {}
        # The requests' ids, for the logs: of the tasks that have slots, and of the task that joins or leaves now.
        self._names: dict[int, str] = {}
        self._at: Sequence[str] = ()
        # Of the traced ones among them, the ids of their traces by the requests' ids.
        self._traces: dict[str, str] = {}
        # What is known of the request that is decoded and admitted just now; None while there is none.
        self._request: bytes | None = None
        self._rehearsing = False
        worker._request_at = self._request_at
        # Seconds that the last step took; a guess before the first.
        self._step_seconds = 0.01

    def request_ids(self) -> Sequence[str]:
        """Return the id of the request that `admit` or `evict` has now; in `step`, the ids of all that run."""
        return self._at or list(self._names.values())

    def trace_ids(self) -> list[str]:
        """Return the ids of the traces of those requests that are traced."""
        return [self._traces[name] for name in self.request_ids() if name in self._traces]

    def rehearse(self, example: Any) -> None:
        """Run one request to its end, whose events nobody receives."""
        self._rehearsing = True
        try:
            for _ in self._worker.forward(example):
                pass
        finally:
            self._rehearsing = False

    def close(self) -> None:
        """Let the worker release what it took."""
        self._codec.close()
        self._worker.close()

    def serve(self) -> None:
        """Run what comes until the port ends."""
        while True:
            if self.busy:
                self._port.poll()
            elif self._port.wait_for_tasks():
                self._wait_for_others()
            if self._port.ended:
                break
            self.turn()
        # Nobody waits for the tasks that still run.
        self._evict(list(self._tasks))

    def _wait_for_others(self) -> None:
        """Wait so that requests which come together with the first one join its first step, not the second."""
        until = time.perf_counter() + min(MOST_JOIN_SECONDS, self._step_seconds * JOIN_SHARE)
        while (left := until - time.perf_counter()) > 0 and not self._port.ended:
            self._port.wait(left)

    @property
    def busy(self) -> bool:
        """Whether a slot is taken."""
        return bool(self._tasks)

    def turn(self) -> None:
        """Let requests leave and join, then do one step."""
        for task_id in self._outlet.drop_left(list(self._slot_of)):
            self._evict([self._slot_of[task_id]])
        self._admit_waiting()
        if self._tasks:
            self._step()
        self._timer.check()

    def _admit_waiting(self) -> None:
        """Let waiting tasks join, in order, while there are slots."""
        waiting = self._port.tasks
        while waiting and len(self._tasks) < self._slots:
            tasks = waiting[0]
            room = self._slots - len(self._tasks)
            for place in range(min(room, len(tasks.ids))):
                self._admit(tasks, place)
            if room < len(tasks.ids):
                waiting[0] = Tasks(
                    tasks.ids[room:],
                    tasks.flags[room:],
                    tasks.request_ids[room:],
                    tasks.payloads[room:],
                    tasks.requests[room:],
                )
            else:
                waiting.popleft()

    def _admit(self, tasks: Tasks, place: int) -> None:
        task_id, request_ids = tasks.ids[place], tasks.request_ids[place : place + 1]
        self._port.progress.begin()
        if task_id in self._port.cancelled:
            self._answer(tasks, place, LEFT)
            return
        self._at = request_ids
        if (watch := self._port.stopwatch) is not None and task_id in watch.wanted:
            watch.begin((task_id,))
            self._traces[request_ids[0]] = unpacked(tasks.requests[place]).trace_id
        self._request = tasks.requests[place] if tasks.requests else None
        try:
            item = self._codec.decode(tasks.flags[place], inputs(tasks)[place])
            with self._timer:
                slot = self._worker.admit(item)
            if slot in self._tasks:
                raise ServerError(f"admit returned the slot {slot!r}, which another request has")
        except Ending:
            raise
        except BaseException as error:
            self._answer(tasks, place, self._codec.failure(error, request_ids))
            self._traces.pop(request_ids[0], None)
            return
        finally:
            self._at = ()
            self._request = None
        self._names[task_id] = request_ids[0]
        self._outlet.open(task_id, request_ids[0], tasks.flags[place])
        self._tasks[slot] = task_id
        self._slot_of[task_id] = slot
        self._payloads[task_id] = inputs(tasks)[place]

    def _request_at(self, index: int) -> Request:
        if self._rehearsing:
            return Request()
        if self._request is None:
            raise RuntimeError("a ContinuousWorker can ask for a request in `admit` only; keep there what `step` needs")
        if index:
            raise IndexError(f"there is no request {index}: `admit` has one, 0")
        return unpacked(self._request)

    def _answer(self, tasks: Tasks, place: int, answer: Answer) -> None:
        """Answer a task that has no slot."""
        self._port.answer_one(tasks.ids[place], answer)
        self._worker._answered(inputs(tasks)[place : place + 1])

    def _step(self) -> None:
        """Do one step, send its events, and free the slots whose streams have ended."""
        self._port.progress.beat()
        began = time.perf_counter()
        try:
            with self._timer:
                events = list(self._worker.step())
            self._step_seconds = time.perf_counter() - began
            for slot, event in events:
                self._take(slot, event)
        except Ending:
            raise
        except BaseException as error:
            self._outlet.fail(list(self._slot_of), error)
        self._outlet.flush()
        self._evict([slot for slot, task_id in self._tasks.items() if not self._outlet.is_open(task_id)])

    def _take(self, slot: Hashable, event: Any) -> None:
        task_id = self._tasks.get(slot)
        if task_id is None:
            self._codec.say(logging.ERROR, "step gave an event for the slot %s, which nobody has", repr(slot))
        else:
            self._outlet.put(task_id, event)

    def _evict(self, slots: list[Hashable]) -> None:
        """Free slots."""
        for slot in slots:
            task_id = self._tasks.pop(slot)
            del self._slot_of[task_id]
            self._outlet.forget([task_id])
            self._at = (self._names.pop(task_id),)
            self._worker._answered([self._payloads.pop(task_id)])
            try:
                with self._timer:
                    self._worker.evict(slot)
            except Ending:
                raise
            except BaseException as error:
                self._codec.warn("evict failed: %s", shown(error), error=error)
            finally:
                self._traces.pop(self._at[0], None)
                self._at = ()
