"""What a user subclasses: `Worker`, a model behind `forward`, and `SSEWorker`, one whose results are streams."""

from __future__ import annotations

import abc
import contextlib
import inspect
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from mosec_asgi import formats
from mosec_asgi.events import EVENT_STREAM, FINISHED, Event
from mosec_asgi.hints import Forward, In, Out, StreamingForward, Typed
from mosec_asgi.request import Request
from mosec_asgi.schema import MOSEC_REF_TEMPLATE, ParseTarget, forward_json_schema

# Held while `multi_examples` is read: workers in threads of one process share the class, which may hold a generator.
_reading = threading.Lock()


class Worker(Typed[In, Out], abc.ABC):
    """A model, or any step of work, that runs in a process of its own as one stage of a pipeline.

    A request passes `deserialize` -> `forward` -> `serialize` when the pipeline has one stage. With several, the first
    stage calls `deserialize`, the last one `serialize`, and between two stages data passes `serialize_ipc` and
    `deserialize_ipc`. The default format towards the client is JSON.

    Load models in `__init__`: it runs once in each worker process, and may read `worker_id`, `stage` and
    `max_batch_size`. A value that `__init__` or the class assigns to one of these is overwritten before the first
    request, as in mosec. Raise the errors of `mosec_asgi` to answer a request with a client's or a server's error.

    `class Upper(Worker[str, str])` tells type checkers the type of an item and of its result. With batching the two
    types are the same, and `forward` takes and returns lists of them. The types are optional; leave them out with a
    mixin that reads the annotations of `forward`, such as `PydanticMixin`.

    Attributes:
        example: an input of `forward` (for a stage with batching, a list or a tuple of inputs: one batch) that is run
            before the worker is ready, so that the first request does not pay for lazy allocation.
        multi_examples: an iterable of such inputs, which are run one after the other in place of `example`.
        req_mime_type: the content type that `deserialize` reads.
        resp_mime_type: the content type that `serialize` writes.
        takes_request: the worker may call `self.request(index)` to read the request behind an item. It is off by
            default, because it costs time for each request.
    """

    example: Any = None
    multi_examples: Iterable[Any] = ()
    req_mime_type: str = "application/json"
    resp_mime_type: str = "application/json"
    takes_request: bool = False

    _worker_id: int = 0
    _stage: str = ""
    _max_batch_size: int = 1
    # What the user's code has assigned to `max_batch_size`; formats and batches still use `_max_batch_size`.
    _assigned_batch_size: int | None = None
    # The service's setting `strict_json`.
    _strict_json: bool = False
    # Set by mixins whose formats call the user's code, or wait for another service: their time is bounded, too.
    _formats_take_time: bool = False
    # What to tell a user who appends a worker of this class.
    _advice: str = ""
    _has_left: Callable[[int], bool] | None = None
    # Returns the request of an item, while a server runs the worker.
    _request_at: Callable[[int], Request] | None = None

    @property
    def worker_id(self) -> int:
        """The number of this worker among the `num` of its stage, from 1."""
        return self._worker_id

    @worker_id.setter
    def worker_id(self, value: int) -> None:
        """Change what this worker reads; the service keeps its own number."""
        self._worker_id = value

    @property
    def stage(self) -> str:
        """The stage's name: the class and its place, like `Inference_2`."""
        return self._stage

    @stage.setter
    def stage(self, value: str) -> None:
        """Change what this worker reads; the service keeps its own name."""
        self._stage = value

    @property
    def max_batch_size(self) -> int:
        """The most items that `forward` receives at once. Assigning a value here does not change the batches."""
        return self._max_batch_size if self._assigned_batch_size is None else self._assigned_batch_size

    @max_batch_size.setter
    def max_batch_size(self, value: int) -> None:
        """Change what this worker reads; the size of its batches stays as it is."""
        self._assigned_batch_size = value

    def is_cancelled(self, index: int = 0) -> bool:
        """Return whether the client of an item has left, so that a long `forward` can stop early.

        Args:
            index: the item's place in the batch, from 0.
        """
        return self._has_left is not None and self._has_left(index)

    def request(self, index: int = 0) -> Request:
        """Return the request behind an item; for a class with `takes_request = True`.

        For use in `forward`, and, without `index`, in `deserialize` and `serialize`, which have one item, and in
        `admit` of a `ContinuousWorker`. The request is empty during the warm-up, and where no server runs the worker,
        as in a unit test.

        Args:
            index: the item's place in the batch, from 0.

        Raises:
            RuntimeError: the class does not say `takes_request`, or no request is at hand here.
            IndexError: the batch has no such item.
        """
        if not self.takes_request:
            name = type(self).__name__
            raise RuntimeError(f"{name}.request() needs `takes_request = True` in the class {name}")
        return Request() if self._request_at is None else self._request_at(index)

    if TYPE_CHECKING:
        forward: Forward[In, Out]
    else:

        @abc.abstractmethod
        def forward(self, data: Any) -> Any:
            """Run the model on an item, or on a batch of items.

            Args:
                data: one decoded item; with `max_batch_size` > 1, a list of 1 to `max_batch_size` items.

            Returns:
                the result; with `max_batch_size` > 1, a sequence with one result per item, in the same order. Put an
                exception at an item's place to answer that item alone with the error.

            Raises:
                MosecError: to answer the request, or the whole batch, with that error.
            """

    def deserialize(self, data: bytes) -> Any:
        """Decode the body of a request. Default: JSON, as Python's `json` reads it; see the setting `strict_json`.

        Args:
            data: the body, never empty; an override is given a `bytearray`, which it may change.

        Raises:
            DecodingError: the body is not JSON, or is nested too deeply.
        """
        return formats.loads_json(data, strict=self._strict_json)

    def serialize(self, data: Any) -> bytes:
        """Encode the body of a response. Default: JSON, numpy arrays and scalars included, NaN as null.

        Args:
            data: what `forward` returned for the request.

        Raises:
            EncodingError: a value cannot be encoded as JSON; the text names its type.
        """
        try:
            return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:
            return formats.dumps_rare(data)

    def serialize_ipc(self, data: Any) -> bytes:
        """Encode a result for the next stage. Default: pickle.

        Args:
            data: what `forward` returned for the request.
        """
        return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)

    def deserialize_ipc(self, data: bytes) -> Any:
        """Decode an item from the stage before. Default: pickle.

        Args:
            data: what that stage's `serialize_ipc` returned.
        """
        return pickle.loads(data)

    @classmethod
    def get_forward_json_schema(
        cls, target: ParseTarget, ref_template: str = MOSEC_REF_TEMPLATE
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Describe one item that `forward` takes or returns, for the OpenAPI document. Default: its annotation.

        Override it if the body that clients send or get differs from what the annotation says.

        Args:
            target: what to describe, `ParseTarget.INPUT` or `ParseTarget.RETURN`.
            ref_template: how a schema refers to a named one: `{"$ref": ref_template.format(name="Item")}`.

        Returns:
            the JSON Schema, and the named schemas that it refers to. `{}` means any value.

        Raises:
            SchemaError: the annotation has no JSON Schema; the document then says `{}`, and a warning why.
        """
        return forward_json_schema(cls, target, ref_template, batched=cls._max_batch_size > 1)

    def after_fork(self) -> None:
        """Set up what the forked workers must not share. Called once in each worker of a stage with `preload`.

        With `preload`, `__init__` runs in another process, with a `worker_id` of 0, and the workers are forked from
        it. Do here what depends on `worker_id`, start threads, open connections, and seed random numbers.
        """

    def _checked(self, item: Any) -> Any:
        """Return an item of an `infer` as `forward` takes it; a format with a schema overrides this to check it."""
        return item

    def _answered(self, payloads: Sequence[bytes]) -> None:
        """Called once tasks with these encoded inputs are answered: no other worker will read the inputs again."""

    def close(self) -> None:
        """Release what `__init__` has opened. Called once before the worker exits, unless it crashes or is killed."""


class SSEWorker(Worker, Typed[In, Out]):
    """A worker whose results are streams: events that go to the client as they are made.

    There are two ways to write `forward`:

    - It calls `send_stream_event` for each event and returns, as in mosec; what it returns is ignored.
    - It is a generator, plain or asynchronous, or returns one. Without batching it yields events. With batching it
      yields `(index, event)`, or a list with an event or None for each item; it may also return a list with a generator
      for each item. An exception in an event's place ends that item's stream with the error, and `SSEWorker.FINISHED`
      ends it without one, while the other streams of the batch go on.

    It streams if it is the last stage of its route. At an earlier stage it returns its results as a `Worker` does, and
    the events that it passes to `send_stream_event` go to the client, as in mosec.

    An event is text, bytes or an `Event`. With another `resp_mime_type` than `text/event-stream` the client gets the
    bare bytes as they come. `class Count(SSEWorker[int, str])` tells type checkers the type of an item and of an event.

    When a client leaves, `is_cancelled(index)` turns true, and a generator that has no other client left is closed, so
    that its `finally` runs. A client that reads slowly delays no other client: if its item is alone in `forward`, the
    generator waits for it; if not, its stream ends with an error once `stream_buffer` bytes (a setting) wait for it.
    """

    FINISHED: Final = FINISHED

    resp_mime_type = EVENT_STREAM

    if TYPE_CHECKING:
        forward: StreamingForward[In, Out]

    _send_event: Callable[[Any, int], None] | None = None

    def send_stream_event(self, text: str | bytes | Event, index: int = 0) -> None:
        """Send an event to a client; for use in `forward`, from any thread.

        Args:
            text: the event.
            index: the item's place in the batch, from 0.

        Raises:
            RuntimeError: `forward` is not running in a served worker.
        """
        if self._send_event is None:
            raise RuntimeError(
                "events can be sent only while `forward` runs in a worker of a server; where it is asynchronous, "
                "only in the last stage of a route"
            )
        self._send_event(text, index)


def set_identity(worker: Worker, worker_id: int, stage: str, max_batch_size: int, *, made: bool) -> None:
    """Set the number, the stage and the batch size of a worker: before its `__init__`, and again after it.

    Before, because `__init__` may read them; after, because it may have overwritten them.

    Args:
        worker: an instance.
        worker_id: its number in its stage.
        stage: the stage's name.
        max_batch_size: the most items that its `forward` receives at once.
        made: whether its `__init__` has run.
    """
    worker._assigned_batch_size = None
    for name, value in (("worker_id", worker_id), ("stage", stage), ("max_batch_size", max_batch_size)):
        setattr(worker, f"_{name}", value)
        # The user's class may have an attribute of that name, which mosec sets, too; or a property, which is set after
        # `__init__` alone, if it can be.
        own = inspect.getattr_static(type(worker), name)
        if own is not vars(Worker)[name] and (made or not hasattr(own, "__set__")):
            with contextlib.suppress(AttributeError):
                setattr(worker, name, value)


def several_examples(worker: Worker | type[Worker]) -> list[Any]:
    """Return `multi_examples` as a list; a generator is read once in each process, and its items are kept."""
    with _reading:
        given = worker.multi_examples
        if isinstance(given, Iterator):
            kind = worker if isinstance(worker, type) else type(worker)
            owner: Any = next(each for each in (worker, *kind.__mro__) if "multi_examples" in vars(each))
            given = list(given)
            owner.multi_examples = given
    return [] if given is None else list(given)
