"""Decodes an item for `forward`, encodes its result, and decides what a client is told of a fault.

Large payloads lie in memory that the worker shares with the server, where there is such memory.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
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
    too_slow,
)
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.pickler import PROTOCOL, Lost, Pickler, Store, load
from mosec_asgi.inside.returned import UNFINISHED, check_finished
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import NoTimer, Timer
from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.messages import EGRESS, EXAMPLE, INGRESS, LOST, OBJECT_IN, OBJECT_OUT, REPLY, packed_failure
from mosec_asgi.ration import Ration, later_in_thread
from mosec_asgi.reply import Reply, packed_head
from mosec_asgi.worker import Worker, several_examples

logger = log.internal_logger(__name__)

# The status and the payload of an answer.
Answer = tuple[int, bytes]
# Types of results that are no ordinary ones.
_SPECIAL = UNFINISHED | {Reply}
# What `pickle` raises where an object cannot be pickled, and what an object's own way to be pickled raises.
NOT_PICKLED = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
# For a task that nobody waits for.
LEFT: Answer = (CANCELLED, b"")


class Labelled(bytes):
    """A payload, and what its next stage asks to know of what is in it; the port sends both.

    Attributes:
        label: the cost and the key.
    """

    label: tuple[int, str]


class Left(BaseException):
    """Stands in place of a result for which nobody waits. The user's code never raises it, and it is not logged."""


_NOBODY = Failure(CANCELLED, "")
_LOST = Failure(LOST, "")


class Codec:
    """Decodes and encodes by the worker's own methods, chosen by a task's place in its pipeline."""

    def __init__(
        self,
        worker: Worker,
        spec: WorkerSpec,
        memory: Mapped | None = None,
        timer: Timer | NoTimer | None = None,
        beat: Callable[[], None] | None = None,
        store: Store | None = None,
    ) -> None:
        """Bind the codec to a worker.

        Args:
            worker: whose methods encode and decode.
            spec: how it is run.
            memory: what it shares with the server.
            timer: bounds the time of the formats that the user has written.
            beat: called before and after each of them, which is a step of its own.
            store: in place of such memory, where the worker may run on another machine.
        """
        self._worker = worker
        self._timer = timer or NoTimer()
        self._beat = beat or _nothing
        self._ration = Ration(logger, later_in_thread)
        self._spec = spec
        self._labels = spec.labels
        self._memory = memory
        self._store = store
        self._serialize = self._bounded("serialize")
        self._deserialize_bounded = self._bounded("deserialize")
        self._serialize_ipc = self._bounded("serialize_ipc")
        self._deserialize_ipc = self._bounded("deserialize_ipc")
        # A request without a body, such as GET, has none to decode; only workers that take the request are given those.
        self._deserialize = self._or_none if worker.takes_request else self._deserialize_bounded
        default = default_ipc(worker)
        # Of results for calls of objects, which the server reads.
        self._objects = Pickler(memory) if memory is not None else None
        # The user's own may change what they are given in place, as in mosec. Ours do not, and need no copy.
        self._changes = _is_users(worker.deserialize)
        self._changes_ipc = _is_users(worker.deserialize_ipc)
        # Between stages, buffers apart from the rest only where both sides take the default way.
        self._pickler = (store or self._objects) if default and spec.buffers_apart else None

    def decode(self, flags: int, payload: bytes, *, again: bool = False) -> Any:
        """Return the input of `forward`; raises what the worker's `deserialize` raises.

        Args:
            flags: where the task stands in its pipeline.
            payload: the encoded input.
            again: it was decoded before, and `forward` may have changed what came of it.
        """
        if flags & frames.SHARED:
            if self._store is not None:
                return self._store.load(payload)
            contents = reference.unpack(payload)
            if self._memory is None:
                raise frames.FrameError("a task lies in shared memory, and this worker has none")
            if contents.kind is not reference.BYTES:
                if flags & OBJECT_IN:
                    return self._item(contents, again=again)
                return load(contents, self._memory, again=again)
            if flags & INGRESS and self._changes:
                with self._memory.lend(contents.spans[0]) as lent:
                    own: Any = bytearray(lent)
                return self._deserialize(own)
            payload = self._memory.read(contents.spans[0])
        if flags & INGRESS:
            # A `bytearray` is one copy: 2 µs for 100 kB.
            body: Any = bytearray(payload) if self._changes else payload
            return self._deserialize(body)
        if flags & OBJECT_IN:
            return self._item(payload)
        if flags & EXAMPLE:
            example = examples(self._worker)[0]
            # An example of a worker with batching is a batch, but a dry run has one task for it.
            return example[0] if self._spec.max_batch_size > 1 and isinstance(example, (list, tuple)) else example
        data: Any = bytearray(payload) if self._changes_ipc else payload
        return self._deserialize_ipc(data)

    def _or_none(self, payload: bytes) -> Any:
        return self._deserialize_bounded(payload) if payload else None

    def _item(self, pickled: bytes | reference.Contents, *, again: bool = False) -> Any:
        """Return the object that `infer` was given, as the worker's format checks it."""
        try:
            if isinstance(pickled, bytes):
                item = pickle.loads(pickled)
            else:
                assert self._memory is not None
                item = load(pickled, self._memory, again=again)
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
            payload = self._serialize(result)
        elif flags & OBJECT_OUT:
            return self._pickled(result)
        elif self._labels is not None:
            # On the item itself, before it is encoded.
            label = self._labels.of(result)
            code, data = self._passed_on(result)
            labelled = Labelled(data)
            labelled.label = label
            return code, labelled
        else:
            return self._passed_on(result)
        # The usual case.
        return (200, payload) if type(payload) is bytes and len(payload) < LARGE else self._answer_of(payload)

    def _passed_on(self, result: Any) -> Answer:
        """Return a result for the next stage as an answer."""
        try:
            if self._pickler is not None:
                return self._pickler.dump(result)
            payload = self._serialize_ipc(result)
        except NOT_PICKLED as error:
            if not default_ipc(self._worker):
                raise
            raise EncodingError(
                f"what {self._spec.stage} returned cannot be pickled for {' and '.join(self._spec.next_stages)}: "
                f"{error}; return plain data, or override serialize_ipc and the next stage's deserialize_ipc"
            ) from error
        return self._answer_of(payload)

    def _answer_of(self, payload: Any) -> Answer:
        """Return an encoded result as an answer, in shared memory where it is large."""
        if type(payload) is not bytes and type(payload) is not bytearray:
            payload = _as_bytes(payload)
        if len(payload) >= LARGE and self._memory is not None and (span := self._memory.put(payload)) is not None:
            return frames.IN_MEMORY, reference.pack(reference.BYTES, [span])
        return 200, bytes(payload)

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
        return REPLY, head + _as_bytes(self._serialize(reply.value))

    def _bounded(self, name: str) -> Callable[[Any], Any]:
        """Return a method of the worker; if the user has written it, one that is interrupted by `MosecTimeoutError`.

        Ours end by themselves, since what they read is bounded, and pay nothing for this.
        """
        method: Callable[[Any], Any] = getattr(self._worker, name)
        if not (_is_users(method) or self._worker._formats_take_time):
            return method
        timer, beat, seconds = self._timer, self._beat, self._spec.timeout
        interrupted = too_slow(seconds).args

        def bounded(value: Any) -> Any:
            beat()
            try:
                with timer:
                    return method(value)
            except MosecTimeoutError as error:
                if error.args == interrupted:
                    raise too_slow(seconds, f"`{name}`") from error
                raise
            finally:
                beat()

        return bounded

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
        """Return the answer for the result of an item, which may be an exception."""
        try:
            if not isinstance(result, (BaseException, Failure)):
                return self.encode(flags, result)
        except Ending:
            raise
        except BaseException as error:
            result = error
        return on_the_wire(result) if isinstance(result, Failure) else self.failure(result, [request_id])

    def failure(self, error: BaseException, request_ids: Sequence[str]) -> Answer:
        """Log a fault, and return the answer that reports it."""
        return on_the_wire(self.told(error, request_ids))

    def told(self, error: BaseException, request_ids: Sequence[str]) -> Failure:
        """Log a fault once, with its request ids, and return what the clients are told."""
        if type(error) is Left:
            return _NOBODY
        if type(error) is Lost:
            return _LOST
        try:
            failure = describe(error)
            # Where the client is told less than the exception's text, the log shows the text.
            ours = isinstance(error, (MosecError, MosecTimeoutError))
            hint = batch_hint(error) if self._spec.max_batch_size > 1 else ""
            text = failure.text if ours else f"{type(error).__name__}: {error}{hint}"
        except Ending:
            raise
        except BaseException as fault:
            # The exception's text and status may be the user's code as well, and raise.
            failure = Failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR_TEXT)
            text = f"{type(error).__name__}, which cannot be told: {type(fault).__name__}"
        self._log(failure.code, text, error, request_ids)
        return failure

    def _log(self, code: int, text: str, error: BaseException, request_ids: Sequence[str]) -> None:
        """Log a fault, as far as its kind has a ration: a client can cause it as often as it likes."""
        if code < 500:
            self._ration.log(logging.INFO, "%s", text, extra=self.extra(request_ids))
        elif code != HTTPStatus.INTERNAL_SERVER_ERROR:
            self.warn("%s", text, error=error, request_ids=request_ids, traced=False)
        else:
            self.warn("%s", text, error=error, request_ids=request_ids, level=logging.ERROR)

    def warn(
        self,
        form: str,
        *args: object,
        error: BaseException,
        request_ids: Sequence[str] = (),
        level: int = logging.WARNING,
        traced: bool = True,
    ) -> None:
        """Log what the user's code has raised, as far as its kind has a ration.

        Args:
            form: with `args` what the line says.
            args: see above.
            error: what was raised.
            request_ids: of the requests that have failed by it.
            level: of the line.
            traced: whether its traceback is of use.
        """
        extra, requests = self.extra(request_ids), max(1, len(request_ids))
        try:
            self._ration.fault(level, form, *args, error=error, extra=extra, requests=requests, traced=traced)
        except Ending:
            raise
        except BaseException as fault:
            # The exception may have a `__str__` of its own, which ends nobody's worker.
            form = f"{form}, without its traceback: %s"
            self._ration.log(level, form, *args, type(fault).__name__, extra=extra)

    def say(self, level: int, form: str, *args: object, request_ids: Sequence[str] = ()) -> None:
        """Log a line that requests cause, unless there were too many of its kind."""
        self._ration.log(level, form, *args, extra=self.extra(request_ids))

    def close(self) -> None:
        """Say what was left out of the log."""
        self._ration.say_all()

    def told_of_all(self, results: list[Any], request_ids: Sequence[str]) -> list[Any]:
        """Return `results` with failures for exceptions; a fault that has failed several requests is logged once."""
        told: dict[int, Failure] = {}
        for place, fault in enumerate(results):
            if isinstance(fault, BaseException):
                if id(fault) not in told:
                    concerned = [request_ids[p] for p, result in enumerate(results) if result is fault]
                    told[id(fault)] = self.told(fault, concerned)
                results[place] = told[id(fault)]
        return results

    def extra(self, request_ids: Sequence[str]) -> dict[str, object]:
        """Return the fields of a log line of this worker."""
        return {"stage": self._spec.stage, "worker": self._spec.worker_id, "request_id": " ".join(request_ids)}


def check_event(event: Any) -> None:
    """Refuse what cannot be an event; raises `ServerError`."""
    if type(event) is Reply:
        raise ServerError(
            "a Reply was given as an event of a stream, whose status and headers are sent before: send its value, or "
            "raise an error before the first event"
        )


def default_ipc(worker: Worker) -> bool:
    """Whether a worker pickles its results for the next stage as all do."""
    return type(worker).serialize_ipc is Worker.serialize_ipc


def examples(worker: Worker) -> list[Any]:
    """Return the worker's examples."""
    # None is an example as well, as in mosec.
    if several := several_examples(worker):
        return several
    return [] if worker.example is None else [worker.example]


def as_input(example: Any, *, batched: bool) -> Any:
    """Return an example as an input of `forward`: with batching, a list or a tuple is a batch, all else an item."""
    return [example] if batched and not isinstance(example, (list, tuple)) else example


def on_the_wire(failure: Failure) -> Answer:
    """Return a failure as an answer."""
    return failure.code, packed_failure(failure)


def shown(error: BaseException) -> str:
    """Return the `repr` of an exception, which may be the user's code."""
    try:
        return repr(error)
    except Ending:
        raise
    except BaseException:
        return type(error).__name__


def _nothing() -> None:
    """Do nothing about a step."""


def _is_users(method: Any) -> bool:
    """Whether a method of a worker is not one of this package."""
    return str(getattr(method, "__module__", "")).partition(".")[0] != __name__.partition(".")[0]


def _as_bytes(payload: Any) -> bytes:
    """Return the result of a serializer as bytes; refuse what cannot be converted."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise EncodingError(f"a serializer must return bytes, not {type(payload).__name__}")
