"""What a user subclasses: `Worker`, a model behind `forward`."""

from __future__ import annotations

import abc
import json
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from mosec_asgi import formats
from mosec_asgi.errors import EncodingError
from mosec_asgi.schema import MOSEC_REF_TEMPLATE, ParseTarget, forward_json_schema


class Worker(abc.ABC):
    """A model, or any step of work, that runs in a process of its own as one stage of a pipeline.

    A request passes `deserialize` -> `forward` -> `serialize` when the pipeline has one stage. With several, the first
    stage calls `deserialize`, the last one `serialize`, and between two stages data passes `serialize_ipc` and
    `deserialize_ipc`. The default format towards the client is JSON.

    Load models in `__init__`: it runs once in each worker process, where `worker_id`, `stage` and `max_batch_size` are
    already set. Raise the errors of `mosec_asgi` to answer a request with a client's or a server's error.

    Attributes:
        example: an input of `forward` (for a stage with batching, a list of inputs: one batch) that is run before the
            worker is ready, so that the first request does not pay for lazy allocation.
        multi_examples: several such inputs, run one after the other; wins over `example`.
        req_mime_type: the content type that `deserialize` reads.
        resp_mime_type: the content type that `serialize` writes.
    """

    example: Any = None
    multi_examples: Sequence[Any] = ()
    req_mime_type: str = "application/json"
    resp_mime_type: str = "application/json"

    _worker_id: int = 0
    _stage: str = ""
    _max_batch_size: int = 1
    _has_left: Callable[[int], bool] | None = None

    @property
    def worker_id(self) -> int:
        """The number of this worker among the `num` of its stage, from 1."""
        return self._worker_id

    @property
    def stage(self) -> str:
        """The stage's name: the class and its place, like `Inference_2`."""
        return self._stage

    @property
    def max_batch_size(self) -> int:
        """The most items that `forward` receives at once."""
        return self._max_batch_size

    def is_cancelled(self, index: int = 0) -> bool:
        """Whether the client of an item has left, so that nobody waits for its result; for use in a long `forward`.

        Args:
            index: the item's place in the batch, from 0.
        """
        return self._has_left is not None and self._has_left(index)

    @abc.abstractmethod
    def forward(self, data: Any) -> Any:
        """Do the work.

        Args:
            data: one decoded item; with `max_batch_size` > 1, a list of 1 to `max_batch_size` items.

        Returns:
            the result; with `max_batch_size` > 1, a sequence with one result per item, in the same order. An exception
            at an item's place answers that item with that error.

        Raises:
            MosecError: to answer the request, or the whole batch, with that error.
        """

    def deserialize(self, data: bytes) -> Any:
        """Decode the body of a request. Default: JSON.

        Args:
            data: the body, never empty.

        Raises:
            DecodingError: the body is not JSON, or is nested too deeply.
        """
        return formats.loads_json(data)

    def serialize(self, data: Any) -> bytes:
        """Encode the body of a response. Default: JSON, numpy arrays and scalars included, NaN as null.

        Args:
            data: what `forward` returned for the request.

        Raises:
            EncodingError: a value has no form in JSON; the text names its type.
        """
        try:
            return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:
            return _dumps_rare(data)

    def serialize_ipc(self, data: Any) -> bytes:
        """Encode what goes to the next stage. Default: pickle.

        Args:
            data: what `forward` returned for the request.
        """
        return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)

    def deserialize_ipc(self, data: bytes) -> Any:
        """Decode what came from the stage before. Default: pickle.

        Args:
            data: what that stage's `serialize_ipc` returned.
        """
        return pickle.loads(data)

    @classmethod
    def get_forward_json_schema(
        cls, target: ParseTarget, ref_template: str = MOSEC_REF_TEMPLATE
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Describe one item that `forward` takes or returns, for the OpenAPI document. Default: its annotation.

        Override it where a body's schema is not that of the annotation.

        Args:
            target: what to describe, `ParseTarget.INPUT` or `ParseTarget.RETURN`.
            ref_template: how a schema refers to a named one: `{"$ref": ref_template.format(name="Item")}`.

        Returns:
            the JSON Schema, and the named ones that it refers to. `{}` stands for any value.

        Raises:
            SchemaError: the annotation has no JSON Schema; the document then says `{}`, and a warning why.
        """
        return forward_json_schema(cls, target, ref_template, batched=cls._max_batch_size > 1)

    def after_fork(self) -> None:  # noqa: B027 - a hook that most workers do not need
        """Set up what must not be shared. Called once in each worker of a stage with `preload`, after its fork.

        `__init__` has then run in another process, with a `worker_id` of 0: this is the place for what depends on that
        number, and for threads, connections, random numbers of one's own.
        """

    def _answered(self, payloads: Sequence[bytes]) -> None:  # noqa: B027
        """Called when tasks with these encoded inputs are answered, and so will not be run again elsewhere."""

    def close(self) -> None:  # noqa: B027 - a hook that most workers do not need
        """Release what `__init__` took. Called once when the worker stops in good order; the default does nothing."""


def _dumps_rare(data: Any) -> bytes:
    """Encode what orjson's quick way refuses: keys that are no text, arrays that are not contiguous, huge integers."""
    try:
        return orjson.dumps(data, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        try:
            return json.dumps(_without_nan(data), default=_plain, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodingError(f"the result has no form in JSON: {error}") from error


def _plain(value: Any) -> Any:
    """Return a numpy array or scalar that orjson cannot read as plain Python; refuse anything else by its type."""
    return _without_nan(formats.plain(value))


def _without_nan(value: Any) -> Any:
    """Return `value` with NaN and infinities as None, as orjson writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
