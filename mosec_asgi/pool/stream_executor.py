"""Runs tasks on a worker whose `forward` streams: by `send_stream_event`, or as a generator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import Failure, MosecTimeoutError
from mosec_asgi.ipc import frames
from mosec_asgi.pool import isolation
from mosec_asgi.pool.codec import LEFT, on_the_wire
from mosec_asgi.pool.executor import Executor, decode_batch, is_final
from mosec_asgi.pool.outlet import ENDED, Outlet
from mosec_asgi.pool.port import Port
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.pool.timer import KernelTimer
from mosec_asgi.returned import check_sent, events_of
from mosec_asgi.streaming import SSEWorker
from mosec_asgi.worker import Worker

# Seconds between two signs of life of a worker that waits for a client to read.
BEAT_SECONDS = 0.1

logger = log.internal_logger(__name__)


class StreamExecutor(Executor):
    """Runs the tasks that come through a port as streams."""

    def __init__(self, worker: Worker, spec: WorkerSpec, port: Port, kernel: KernelTimer | None = None) -> None:
        super().__init__(worker, spec, port, kernel)
        self._outlet = Outlet(worker, spec, self._codec, port)
        self._batches = spec.max_batch_size > 1
        self._rehearsing = False
        # Threads that push into one stream wait for its client one behind the other.
        self._pushing = threading.Lock()
        if isinstance(worker, SSEWorker):
            worker._send_event = self._push

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example, whose events nobody receives."""
        self._rehearsing = True
        try:
            for _ in events_of(self._worker.forward(example), batched=self._batches) or ():
                pass
        finally:
            self._rehearsing = False

    def run(self, tasks: frames.Tasks) -> None:
        """Run tasks and send their events and answers."""
        if self._batches:
            self._port.progress.begin(len(tasks.ids))
            answers, items, places = decode_batch(self._codec, tasks, self._port, range(len(tasks.ids)))
            for place, answer in answers.items():
                self._port.answer_one(tasks.ids[place], answer)
            if items:
                self._stream(tasks, items, places)
        else:
            for place, task_id in enumerate(tasks.ids):
                self._port.progress.begin()
                if task_id in self._port.cancelled:
                    self._port.answer_one(task_id, LEFT)
                else:
                    self._stream_one(tasks, place)

    def _stream_one(self, tasks: frames.Tasks, place: int) -> None:
        try:
            item = self._codec.decode(tasks.flags[place], tasks.payloads[place])
        except (Exception, MosecTimeoutError) as error:
            self._port.answer_one(tasks.ids[place], self._codec.failure(error, tasks.request_ids[place : place + 1]))
        else:
            self._stream(tasks, [item], [place])

    def _stream(self, tasks: frames.Tasks, items: list[Any], places: list[int]) -> None:
        """Run items to the ends of their streams; parts of a batch again if it fails before any of its events."""
        ids = [tasks.ids[place] for place in places]
        request_ids = [tasks.request_ids[place] for place in places]
        for task_id, request_id in zip(ids, request_ids, strict=True):
            self._outlet.open(task_id, request_id)
        results = self._forward(items, ids, request_ids)
        self._inside = ()
        for task_id, result in zip(ids, results, strict=True):
            self._outlet.end(task_id, on_the_wire(result) if isinstance(result, Failure) else ENDED)
        self._outlet.forget(ids)

    def _call(self, items: list[Any], *, whole: bool) -> isolation.Outcome:
        ended: isolation.Outcome = [None] * len(items)
        # A stream that has ended meanwhile, for want of its client, is not run again.
        live = [place for place, task_id in enumerate(self._inside) if self._outlet.is_open(task_id)]
        self._inside = [self._inside[place] for place in live]
        items = [items[place] for place in live]
        if not items:
            return ended
        self._port.progress.beat()
        try:
            with self._timer:
                result = self._worker.forward(items if self._batches else items[0])
            events = events_of(result, batched=self._batches)
            if events is not None:
                self._drain(events)
            elif not self._outlet.has_ended_or_begun(self._inside):
                check_sent(result, type(self._worker))
        except (Exception, MosecTimeoutError) as error:
            if not self._outlet.has_begun(self._inside):
                return isolation.Raised(error, final=is_final(error, whole=whole))
            self._outlet.fail(self._inside, error)
        return ended

    def _drain(self, events: Iterator[Any]) -> None:
        """Send what a generator yields, until it ends or nobody is left to send it to."""
        try:
            while any(map(self._outlet.is_open, self._inside)):
                try:
                    with self._timer:
                        event = next(events)
                except StopIteration:
                    return
                self._outlet.put_yielded(event, self._inside, batched=self._batches)
                self._outlet.flush()
                self._port.progress.beat()
                self._port.poll()
                self._outlet.drop_left(self._inside)
                self._wait_for_room()
        finally:
            self._close(events)

    def _wait_for_room(self) -> None:
        """Let an only stream wait for its client; in a batch nobody waits, and a full stream ends."""
        if len(self._inside) > 1:
            return
        for task_id in self._inside:
            while self._outlet.is_open(task_id) and not self._outlet.has_room(task_id) and not self._port.ended:
                self._port.wait(BEAT_SECONDS)
                self._port.progress.beat()
                self._outlet.drop_left(self._inside)

    def _push(self, event: Any, index: int) -> None:
        """Send an event from within `forward`: `SSEWorker.send_stream_event`."""
        if self._rehearsing:
            return
        paused = self._timer.pause()
        with self._pushing:
            self._port.poll()
            self._outlet.drop_left(self._inside)
            self._wait_for_room()
            self._outlet.put_at(index, event, self._inside)
            self._outlet.flush()
        self._port.progress.beat()
        self._timer.restart()
        if paused:
            self._timer.resume()

    def _close(self, events: Iterator[Any]) -> None:
        close = getattr(events, "close", None)
        if close is None:
            return
        try:
            with self._timer:
                close()
        except (Exception, MosecTimeoutError) as error:
            logger.warning("closing a stream of forward failed: %r", error, exc_info=error, extra=self._codec.extra(()))
