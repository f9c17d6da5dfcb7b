"""Bytes to what `forward` takes, what it returns to bytes, one item at a time; and what a client is told of a fault.

Large payloads lie in memory that the worker shares with the server, where there is such memory.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import (
    CANCELLED,
    INTERNAL_ERROR_TEXT,
    DecodingError,
    EncodingError,
    Failure,
    MosecError,
    MosecTimeoutError,
    ServerError,
    batch_hint,
    describe,
)
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.pickler import PROTOCOL, Pickler, load
from mosec_asgi.inside.returned import UNFINISHED, check_finished
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.messages import EGRESS, EXAMPLE, INGRESS, OBJECT_IN, OBJECT_OUT, REPLY
from mosec_asgi.reply import Reply, packed_head
from mosec_asgi.worker import Worker

# The target of what is told here, in the logs.
logger = log.internal_logger(__name__)

# The status and the payload of an answer.
Answer = tuple[int, bytes]
# Types of results that are no ordinary ones.
_SPECIAL = UNFINISHED | {Reply}
# What `pickle` raises where an object cannot be pickled, and what an object's own way to be pickled raises.
NOT_PICKLED = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
# For a task that nobody waits for.
LEFT: Answer = (CANCELLED, b"")


class Left(BaseException):
    """In the place of a result: nobody waits for it. Never raised by the user's code, and no fault to tell of."""


_NOBODY = Failure(CANCELLED, "")


class Codec:
    """Decodes and encodes by the worker's own methods, as a task's place in its pipeline asks for."""

    def __init__(self, worker: Worker, spec: WorkerSpec, memory: Mapped | None = None) -> None:
        self._worker = worker
        self._spec = spec
        self._memory = memory
        # A request without a body, such as GET, has none to decode; only workers that take the request are given those.
        self._deserialize = self._or_none if worker.takes_request else worker.deserialize
        default = type(worker).serialize_ipc is Worker.serialize_ipc
        # Of results for calls of objects, which the server reads.
        self._objects = Pickler(memory) if memory is not None else None
        # Between stages, buffers apart from the rest only where both sides take the default way.
        self._pickler = self._objects if default and spec.buffers_apart else None

    def decode(self, flags: int, payload: bytes) -> Any:
        """Return the input of `forward`; raises what the worker's `deserialize` raises."""
        if flags & frames.SHARED:
            contents = reference.unpack(payload)
            if self._memory is None:
                raise frames.FrameError("a task lies in shared memory, and this worker has none")
            if contents.kind is not reference.Kind.BYTES:
                if flags & OBJECT_IN:
                    return self._item(contents)
                return load(contents, self._memory)
            payload = self._memory.read(contents.spans[0])
        if flags & INGRESS:
            return self._deserialize(payload)
        if flags & OBJECT_IN:
            return self._item(payload)
        if flags & EXAMPLE:
            example = examples(self._worker)[0]
            # An example of a worker with batching is a batch; a dry run has one task to show for it.
            return example[0] if self._spec.max_batch_size > 1 and isinstance(example, (list, tuple)) else example
        return self._worker.deserialize_ipc(payload)

    def _or_none(self, payload: bytes) -> Any:
        return self._worker.deserialize(payload) if payload else None

    def _item(self, pickled: bytes | reference.Contents) -> Any:
        """Return the object that `infer` was given, as the worker's format checks it."""
        try:
            if isinstance(pickled, bytes):
                item = pickle.loads(pickled)
            else:
                assert self._memory is not None
                item = load(pickled, self._memory)
        except (Ending, frames.FrameError):
            raise
        except Exception as error:
            # Most often a class that this process cannot import.
            raise DecodingError(
                f"the item cannot be unpickled in {self._spec.stage}: {type(error).__name__}: {error}; its class must "
                "be in a module that the worker can import, as its own class is"
            ) from error
        return self._worker._checked(item)

    def encode(self, flags: int, result: Any) -> Answer:
        """Return a result as an answer; raises what the worker's `serialize` raises."""
        if type(result) in _SPECIAL:
            if type(result) is Reply:
                return self._reply(flags, result)
            check_finished(result)
        if flags & EGRESS:
            payload = self._worker.serialize(result)
        elif flags & OBJECT_OUT:
            return self._pickled(result)
        else:
            try:
                if self._pickler is not None:
                    return self._pickler.dump(result)
                payload = self._worker.serialize_ipc(result)
            except NOT_PICKLED as error:
                if type(self._worker).serialize_ipc is not Worker.serialize_ipc:
                    raise
                raise EncodingError(
                    f"what {self._spec.stage} returned cannot be pickled for {' and '.join(self._spec.next_stages)}: "
                    f"{error}; return plain data, or override serialize_ipc and the next stage's deserialize_ipc"
                ) from error
        if type(payload) is not bytes:
            payload = _as_bytes(payload)
        if len(payload) >= LARGE and self._memory is not None and (span := self._memory.put(payload)) is not None:
            return frames.IN_MEMORY, reference.pack(reference.Kind.BYTES, [span])
        return 200, payload

    def _reply(self, flags: int, reply: Reply) -> Answer:
        """Return a `Reply` as an answer."""
        if not flags & (EGRESS | OBJECT_OUT):
            raise ServerError(
                f"{self._spec.stage} returned a Reply, which only the last stage of a route can; return its value for "
                f"{' and '.join(self._spec.next_stages)}"
            )
        head = packed_head(reply)
        if flags & OBJECT_OUT:
            return self._pickled(reply)
        # Through the pipe, however large: in shared memory lie plain results.
        return REPLY, head + _as_bytes(self._worker.serialize(reply.value))

    def _pickled(self, result: Any) -> Answer:
        """Return a result for a call of objects as an answer."""
        try:
            return (200, pickle.dumps(result, PROTOCOL)) if self._objects is None else self._objects.dump(result)
        except NOT_PICKLED as error:
            raise EncodingError(
                f"what {self._spec.stage} returned cannot be pickled for `infer`: {error}; return plain data, or give "
                "the object a __reduce__"
            ) from error

    def pickled_event(self, event: Any) -> bytes:
        """Return an event of a stream for a call of objects; raises `EncodingError`."""
        check_event(event)
        try:
            return pickle.dumps(event, PROTOCOL)
        except NOT_PICKLED as error:
            raise EncodingError(
                f"an event of {self._spec.stage} cannot be pickled for `stream`: {error}; yield plain data, or give "
                "the object a __reduce__"
            ) from error

    def answer(self, flags: int, result: Any, request_id: str) -> Answer:
        """Return the answer for what `forward` made of an item, be it an exception."""
        try:
            if not isinstance(result, (BaseException, Failure)):
                return self.encode(flags, result)
        except Ending:
            raise
        except BaseException as error:
            result = error
        return on_the_wire(result) if isinstance(result, Failure) else self.failure(result, [request_id])

    def failure(self, error: BaseException, request_ids: Sequence[str]) -> Answer:
        """Log a fault, and return the answer that tells of it."""
        return on_the_wire(self.told(error, request_ids))

    def told(self, error: BaseException, request_ids: Sequence[str]) -> Failure:
        """Log a fault once, with its request ids, and return what the clients are told."""
        if type(error) is Left:
            return _NOBODY
        try:
            failure = describe(error)
            # What a client is told is no secret, and what it is not told belongs into the logs.
            ours = isinstance(error, (MosecError, MosecTimeoutError))
            hint = batch_hint(error) if self._spec.max_batch_size > 1 else ""
            text = failure.text if ours else f"{type(error).__name__}: {error}{hint}"
        except Ending:
            raise
        except BaseException as fault:
            # Its text, its status or the like are the user's code as well.
            failure = Failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR_TEXT)
            text = f"{type(error).__name__}, which cannot be told: {type(fault).__name__}"
        self._log(failure.code, text, error, self.extra(request_ids))
        return failure

    @staticmethod
    def _log(code: int, text: str, error: BaseException, extra: dict[str, object]) -> None:
        if code < 500:
            logger.info("%s", text, extra=extra)
        elif code != HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.warning("%s", text, extra=extra)
        else:
            try:
                logger.error("%s", text, exc_info=error, extra=extra)
            except Ending:
                raise
            except BaseException as fault:
                logger.error("%s, without its traceback: %s", text, type(fault).__name__, extra=extra)

    def told_of_all(self, results: list[Any], request_ids: Sequence[str]) -> list[Any]:
        """Return `results` with failures for exceptions; a fault that has failed several requests is told once."""
        told: dict[int, Failure] = {}
        for place, fault in enumerate(results):
            if isinstance(fault, BaseException):
                if id(fault) not in told:
                    concerned = [request_ids[p] for p, result in enumerate(results) if result is fault]
                    told[id(fault)] = self.told(fault, concerned)
                results[place] = told[id(fault)]
        return results

    def extra(self, request_ids: Sequence[str]) -> dict[str, object]:
        """Return what a log line of this worker says beside its message."""
        return {"stage": self._spec.stage, "worker": self._spec.worker_id, "request_id": " ".join(request_ids)}


def check_event(event: Any) -> None:
    """Refuse what cannot be an event; raises `ServerError`."""
    if type(event) is Reply:
        raise ServerError(
            "a Reply was given as an event of a stream, whose status and headers are sent before: send its value, or "
            "raise an error before the first event"
        )


def examples(worker: Worker) -> list[Any]:
    """Return the worker's examples."""
    # None as well: mosec takes it.
    if worker.multi_examples is not None and len(worker.multi_examples):
        return list(worker.multi_examples)
    return [] if worker.example is None else [worker.example]


def as_input(example: Any, *, batched: bool) -> Any:
    """Return an example as what `forward` takes: with batching, a list or a tuple is a batch, all else an item."""
    return [example] if batched and not isinstance(example, (list, tuple)) else example


def on_the_wire(failure: Failure) -> Answer:
    """Return a failure as an answer."""
    # A text may hold what is no Unicode, like the name of a file: it is shown escaped.
    return failure.code, failure.text.encode(errors="backslashreplace")


def shown(error: BaseException) -> str:
    """Return the `repr` of an exception, which may be the user's code."""
    try:
        return repr(error)
    except Ending:
        raise
    except BaseException:
        return type(error).__name__


def _as_bytes(payload: Any) -> bytes:
    """Return what a serializer returned as bytes; refuse what has none."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise EncodingError(f"a serializer must return bytes, not {type(payload).__name__}")
