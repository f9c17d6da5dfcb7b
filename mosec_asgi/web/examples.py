"""Examples of a request, for the OpenAPI document: from `example` and `multi_examples` of a route's first worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from mosec_asgi import log
from mosec_asgi.schema import JSON
from mosec_asgi.worker import Worker, several_examples

# Bytes of JSON; a larger example, such as an image as numbers, would make the document unreadable.
LARGEST = 10_000
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

logger = log.internal_logger(__name__)


def request_examples(worker: type[Worker], *, batched: bool, is_text: bool) -> JSON:
    """Return the `example` or the `examples` of a request's body; nothing where a worker has none that fits.

    Args:
        worker: the first of a route. What its `__init__` sets is not seen, because that runs only in its processes.
        batched: an example that is a list or a tuple is a batch; its first input is shown.
        is_text: the body is not a notation of a value, so an example is text, or bytes that are text.
    """
    try:
        values = list(_values(worker, batched=batched, is_text=is_text))
    # The examples are the user's objects: no exception of theirs may harm the service.
    except Exception as error:
        logger.debug("the example of %s cannot be shown in the OpenAPI document: %s", worker.__name__, error)
        return {}
    if len(values) == 1:
        return {"example": values[0]}
    if values:
        return {"examples": {f"example_{place}": {"value": value} for place, value in enumerate(values, 1)}}
    return {}


def _values(worker: type[Worker], *, batched: bool, is_text: bool) -> Iterator[Any]:
    given = several_examples(worker)
    if not given and worker.example is not None:
        given = [worker.example]
    for example in given:
        value = example[0] if batched and isinstance(example, (list, tuple)) else example
        if is_text:
            value = value if isinstance(value, str) else bytes(value).decode()
        encoded = orjson.dumps(value, default=_plain, option=_OPTIONS)
        if len(encoded) <= LARGEST:
            yield orjson.loads(encoded)


def _plain(value: Any) -> Any:
    """Return a pydantic model or a msgspec struct as plain Python; neither library must be installed."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "__struct_fields__"):
        import msgspec

        return msgspec.to_builtins(value)
    raise TypeError(f"a value of type {type(value).__qualname__}")
