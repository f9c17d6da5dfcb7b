"""JSON towards the client, checked by pydantic against what `forward` is annotated with."""

from __future__ import annotations

import functools
import json
from typing import Any

from mosec_asgi import formats
from mosec_asgi.annotations import forward_input_type, forward_return_type, with_extended_typed_dicts
from mosec_asgi.errors import DecodingError, EncodingError, ValidationError
from mosec_asgi.mixin.fail_fast import fail_fast
from mosec_asgi.mixin.library import NeedsLibrary, load
from mosec_asgi.worker import Worker

# Errors of one request that are told; a body of many wrong items would be answered by a longer one.
_TOLD = 100
# Errors up to which they are looked at: pydantic makes a dictionary of each, of 840 bytes, whichever are wanted.
_LOOKED_AT = 50_000
# Bytes of a body from which on its check ends early: it may hold an error in every second byte.
_LARGE = 32 * 1024


class PydanticMixin(NeedsLibrary, Worker):
    """Read and write JSON by `forward`'s annotations: models, dataclasses, TypedDicts, unions, and plain types.

    `def forward(self, data: Request) -> Answer`, or with batching `def forward(self, data: list[Request]) ->
    list[Answer]`. Names in JSON are the models' aliases, as in their schemas. A result is checked as well: one that
    does not fit its annotation, and that pydantic cannot make fit, is an error of the server. Without an annotation any
    JSON goes in, and all that pydantic can write goes out. `server.infer` takes the model, or plain data, which is
    checked like a body; what it returns is what `forward` has returned.
    """

    _library = "pydantic"
    _formats_take_time = True
    req_mime_type = "application/json"
    resp_mime_type = "application/json"

    def deserialize(self, data: bytes) -> Any:
        """Decode the body of a request, and check it.

        Args:
            data: the body.

        Raises:
            DecodingError: the body is not JSON, or is nested too deeply.
            ValidationError: it is not what `forward` is annotated with; the text is a JSON list with type, place and
                message of each error, of a body above 32 KiB of the first in each list.
        """
        strict = self._strict_json
        # Pydantic takes some more for JSON than is.
        if (strict and (b"NaN" in data or b"Infinity" in data)) or formats.may_nest_deeply(data):
            formats.loads_json(data, strict=strict)
        kind = _input_fail_fast if len(data) > _LARGE else input_adapter
        checked = kind(type(self), self._max_batch_size > 1)
        try:
            return checked.validate_json(data)
        except load("pydantic").ValidationError as error:
            if strict or not _is_no_json(error) or (text := formats.to_utf8(data)) is None:
                raise _refusal(error, data) from error
        try:
            return checked.validate_json(text)
        except load("pydantic").ValidationError as error:
            raise _refusal(error, text) from error

    def _checked(self, item: Any) -> Any:
        """Return the model of what `infer` was given: a model as it is, or plain data that is checked."""
        try:
            return input_adapter(type(self), self._max_batch_size > 1).validate_python(item)
        except load("pydantic").ValidationError as error:
            raise ValidationError(told(error)) from error

    def serialize(self, data: Any) -> bytes:
        """Encode the body of a response.

        Args:
            data: what `forward` returned for the request.

        Raises:
            EncodingError: it is not what `forward` is annotated with, or cannot be encoded as JSON.
        """
        adapter = _output(type(self), self._max_batch_size > 1)
        error_of_validation = load("pydantic").ValidationError
        error_of_encoding = load("pydantic_core").PydanticSerializationError
        try:
            return _dump(adapter, adapter.validate_python(data))
        except (error_of_validation, error_of_encoding):
            pass
        try:
            return _dump(adapter, _without_numpy(adapter, data))
        except error_of_validation as error:
            raise EncodingError(f"the result does not fit forward's annotation: {told(error)}") from error
        except error_of_encoding as error:
            if "Error calling function" in str(error):
                # A serializer of the worker's own has failed; what it says is not for the client.
                raise
            reason = str(error).removeprefix("Error serializing to JSON: ")
            raise EncodingError(f"the result cannot be encoded as JSON: {reason}") from error


def _dump(adapter: Any, data: Any) -> bytes:
    encoded: bytes = adapter.dump_json(data, by_alias=True, warnings="error", fallback=formats.plain)
    return encoded


def _without_numpy(adapter: Any, data: Any) -> Any:
    """Return a result as its annotation has it, where it needs more than pydantic does: numpy arrays as lists."""
    return adapter.validate_json(
        load("pydantic_core").to_json(data, by_alias=True, inf_nan_mode="constants", fallback=formats.plain)
    )


def _is_no_json(error: Any) -> bool:
    """Whether a body was refused as a whole, before any of it was checked."""
    # Asked of one only: of many it would make a dictionary each.
    if error.error_count() != 1:
        return False
    (only,) = error.errors(include_url=False, include_input=False)
    return bool(only["type"] == "json_invalid" and not only["loc"])


def _refusal(error: Any, data: bytes) -> DecodingError | ValidationError:
    if _is_no_json(error):
        return formats.not_json(data, error.errors(include_url=False, include_input=False)[0]["ctx"]["error"])
    return ValidationError(told(error, large=len(data) > _LARGE))


def told(error: Any, *, large: bool = False) -> str:
    """Return pydantic's errors as JSON, without the values, which the client knows and which may be large.

    Args:
        error: pydantic's.
        large: the check has stopped at the first error of each list.
    """
    count = error.error_count()
    if count <= _TOLD and not large:
        text: str = error.json(include_url=False, include_input=False, include_context=False)
        return text
    errors: list[Any] = []
    if count <= _LOOKED_AT:
        errors += error.errors(include_url=False, include_input=False, include_context=False)[:_TOLD]
    more = []
    if count > len(errors):
        more.append(f"and {count - len(errors)} errors more" if errors else f"{count} errors, too many to tell")
    if large:
        more.append(f"of a body of more than {_LARGE} bytes only the first error in each list is told")
    errors.append({"type": "more", "loc": (), "msg": "; ".join(more)})
    return json.dumps(errors, separators=(",", ":"), ensure_ascii=False)


@functools.cache
def input_adapter(worker: type[Worker], batched: bool) -> Any:
    """Return pydantic's adapter of one item that a worker's `forward` takes."""
    return load("pydantic").TypeAdapter(with_extended_typed_dicts(forward_input_type(worker, batched)))


@functools.cache
def _input_fail_fast(worker: type[Worker], batched: bool) -> Any:
    return fail_fast(input_adapter(worker, batched))


@functools.cache
def _output(worker: type[Worker], batched: bool) -> Any:
    return load("pydantic").TypeAdapter(with_extended_typed_dicts(forward_return_type(worker, batched)))
