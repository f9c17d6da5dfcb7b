"""Sends the events of a worker's streams: each in its form, only where its client has room, and each stream's end once.

Streams are known by their tasks' numbers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import MosecError, WrongShape
from mosec_asgi.inside.codec import LEFT, Answer, Codec, check_event
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.port import Port
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import OBJECT_OUT
from mosec_asgi.streaming import FINISHED, encoder_for, response_type
from mosec_asgi.worker import Worker

logger = log.internal_logger(__name__)

# What an answer says when a stream has ended well.
ENDED: Answer = (200, b"")


class ClientTooSlow(MosecError):
    """The client of one stream of a batch has not read its events, and the others do not wait for it."""

    code = HTTPStatus.REQUEST_TIMEOUT
    msg = "mosec timeout error"


class Outlet:
    """The open streams of a worker."""

    def __init__(self, worker: Worker, spec: WorkerSpec, codec: Codec, port: Port) -> None:
        """Begin with no streams.

        Args:
            worker: whose streams they are.
            spec: says how much of a stream may be on its way.
            codec: tells of faults.
            port: where events and answers go.
        """
        self._encode = encoder_for(spec.event_type or response_type(type(worker)))
        self._limit = spec.stream_buffer
        self._codec = codec
        self._port = port
        # The open streams: the request's id, when they were opened, and what gives their events their form.
        self._open: dict[int, tuple[str, float, Callable[[Any], bytes]]] = {}
        # Until their call of `forward` is over: those that have sent an event, and those that it has ended itself.
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        # The events that `flush` sends.
        self._ids: list[int] = []
        self._chunks: list[bytes] = []
        # Events may be pushed from several threads.
        self._lock = threading.RLock()

    def open(self, task_id: int, request_id: str, flags: int = 0) -> None:
        """Open the stream of a task."""
        encode = self._codec.pickled_event if flags & OBJECT_OUT else self._encode
        self._open[task_id] = (request_id, time.perf_counter(), encode)

    def is_open(self, task_id: int) -> bool:
        """Whether a stream has been opened and has not ended."""
        return task_id in self._open

    def has_begun(self, task_ids: Iterable[int]) -> bool:
        """Whether one of these streams has sent an event."""
        return not self._begun.isdisjoint(task_ids)

    def has_ended_or_begun(self, task_ids: Iterable[int]) -> bool:
        """Whether one of these streams has sent an event, or has ended without any."""
        return self.has_begun(task_ids) or not all(map(self.is_open, task_ids))

    def has_room(self, task_id: int) -> bool:
        """Whether a stream may send."""
        return self._port.outstanding(task_id) < self._limit

    def put_yielded(self, event: Any, inside: Sequence[int], *, batched: bool) -> None:
        """Take in what a generator has yielded for the tasks `inside`; see `SSEWorker`.

        Raises:
            WrongShape: it is not clear which items the event is for.
        """
        if not batched:
            self.put(inside[0], event)
        elif isinstance(event, tuple) and len(event) == 2 and isinstance(event[0], int):
            self.put_at(event[0], event[1], inside)
        elif isinstance(event, list):
            if len(event) != len(inside):
                raise WrongShape(f"forward yielded a list of {len(event)} events for {len(inside)} items")
            for task_id, one in zip(inside, event, strict=True):
                if one is not None:
                    self.put(task_id, one)
        else:
            raise WrongShape(
                "with batching, forward yields (index, event) or a list with one event or None for each item, "
                f"not {type(event).__name__}"
            )

    def put_at(self, index: int, event: Any, inside: Sequence[int]) -> None:
        """Take in an event for the item `index` of the tasks `inside`; it is dropped if there is no such item."""
        if 0 <= index < len(inside):
            self.put(inside[index], event)
        else:
            text = "an event for item %d of a batch of %d was dropped"
            self._codec.say(logging.ERROR, text, index, len(inside))

    def push(self, event: Any, index: int, inside: Sequence[int]) -> None:
        """Send an event for the item `index` of the tasks `inside`: `SSEWorker.send_stream_event`."""
        self.put_at(index, event, inside)
        self.flush()

    def put(self, task_id: int, event: Any) -> None:
        """Take in an event of a stream, `FINISHED`, or the exception that ends it; sent by `flush`.

        An invalid event, or one for which there is no room, ends its stream with an error. Events of a stream whose
        client has left are dropped.
        """
        with self._lock:
            if task_id not in self._open:
                if task_id in self._finished:
                    self._codec.say(logging.ERROR, "an event after the end of its stream was dropped")
            elif event is FINISHED:
                self.end(task_id, ENDED)
                self._finished.add(task_id)
            elif isinstance(event, BaseException):
                self.fail([task_id], event)
            else:
                self._put(task_id, event)

    def _put(self, task_id: int, event: Any) -> None:
        try:
            chunk = self._open[task_id][2](event)
        except Ending:
            raise
        except BaseException as error:
            self.fail([task_id], _explained(event, error))
            return
        if task_id in self._ids:
            # The second event of one step: the room is known once the first has been sent.
            self.flush()
        if not self.has_room(task_id):
            self.fail([task_id], ClientTooSlow("the client does not read its stream"))
            return
        self._begun.add(task_id)
        if chunk:
            self._ids.append(task_id)
            self._chunks.append(chunk)

    def forget(self, task_ids: Iterable[int]) -> None:
        """Expect no late events of these streams any more."""
        self._begun.difference_update(task_ids)
        self._finished.difference_update(task_ids)

    def flush(self) -> None:
        """Send the events that were put in since the last time, as one frame."""
        with self._lock:
            if self._ids:
                self._port.emit(self._ids, self._chunks)
                self._ids, self._chunks = [], []

    def fail(self, task_ids: Iterable[int], error: BaseException) -> None:
        """End those of the streams that are open with an error, which is logged once."""
        with self._lock:
            concerned = [task_id for task_id in task_ids if task_id in self._open]
            if concerned:
                answer = self._codec.failure(error, [self._open[task_id][0] for task_id in concerned])
                for task_id in concerned:
                    self.end(task_id, answer)

    def end(self, task_id: int, answer: Answer) -> None:
        """End a stream, if it is open: its events, then its answer."""
        with self._lock:
            if task_id in self._open:
                self.flush()
                _, opened, _ = self._open.pop(task_id)
                self._port.answer_one(task_id, answer, time.perf_counter() - opened)

    def abandon(self, task_ids: Iterable[int]) -> None:
        """Say nothing more of these streams, whose worker is ending; the server decides what becomes of them."""
        with self._lock:
            for task_id in task_ids:
                self._open.pop(task_id, None)

    def drop_left(self, task_ids: Iterable[int]) -> list[int]:
        """End those of the streams whose clients have left; return them."""
        if not self._port.cancelled:
            return []
        with self._lock:
            left = [task_id for task_id in task_ids if task_id in self._port.cancelled and task_id in self._open]
            for task_id in left:
                self.end(task_id, LEFT)
        return left


class PassingOutlet(Outlet):
    """The same before the last stage, whose results are passed on: a stream goes on there, and is not ended here."""

    def __init__(self, worker: Worker, spec: WorkerSpec, codec: Codec, port: Port) -> None:
        """Begin with no streams; see `Outlet`."""
        super().__init__(worker, spec, codec, port)
        self._verdicts: dict[int, Answer] = {}

    def put(self, task_id: int, event: Any) -> None:
        """Take in an event of a stream; see `Outlet.put`."""
        if event is FINISHED:
            event = WrongShape("a stream cannot be ended before the last stage")
        super().put(task_id, event)

    def end(self, task_id: int, answer: Answer) -> None:
        """Keep the answer of a stream that cannot go on in the place of its result."""
        with self._lock:
            if self._open.pop(task_id, None) is not None:
                self._verdicts[task_id] = answer

    def pass_on(self, task_ids: Iterable[int]) -> dict[int, Answer]:
        """Send no more events of these streams; return the answers of those that cannot go on."""
        with self._lock:
            self.flush()
            for task_id in task_ids:
                self._open.pop(task_id, None)
            self.forget(task_ids)
            verdicts, self._verdicts = self._verdicts, {}
        return verdicts


def _explained(event: Any, error: BaseException) -> BaseException:
    """Return what is wrong with an event that has no form."""
    try:
        check_event(event)
    except MosecError as better:
        return better
    return error
