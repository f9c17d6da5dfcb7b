"""Msgpack towards the client, decoded into the type that `forward` is annotated with."""

from __future__ import annotations

import functools
from typing import Any

from mosec_asgi import formats
from mosec_asgi.annotations import forward_input_type
from mosec_asgi.errors import DecodingError, EncodingError, ValidationError
from mosec_asgi.mixin.library import NeedsLibrary, load
from mosec_asgi.worker import Worker


class TypedMsgPackMixin(NeedsLibrary, Worker):
    """Read msgpack into what `forward`'s annotation says, and write msgpack; by msgspec.

    `def forward(self, data: Request)`, or with batching `data: list[Request]`, where `Request` is a `msgspec.Struct` or
    any other type that msgspec knows.
    """

    _library = "msgspec"
    _formats_take_time = True
    req_mime_type = "application/msgpack"
    resp_mime_type = "application/msgpack"

    def deserialize(self, data: bytes) -> Any:
        """Decode the body of a request, and check it.

        Args:
            data: the body.

        Raises:
            DecodingError: the body is not msgpack, or is nested too deeply.
            ValidationError: it is not what `forward` is annotated with; the text says where.
        """
        msgspec = load("msgspec")
        decoder, bounded = _decoder(type(self), self._max_batch_size > 1)
        try:
            if not bounded and len(data) > formats.MAX_DEPTH:
                # Before, so that the two are not in memory at the same time.
                formats.check_depth(msgspec.msgpack.decode(data))
            value = decoder.decode(data)
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from error
        except RecursionError as error:
            raise formats.too_deep() from error
        # The others are for text that is not UTF-8, and for what cannot be in a set or be a key.
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise DecodingError(f"the body is not msgpack: {error}") from error
        return value

    def _checked(self, item: Any) -> Any:
        """Return what `infer` was given as the annotation has it: an object of that type as it is, or data, checked."""
        msgspec = load("msgspec")
        try:
            return msgspec.convert(item, forward_input_type(type(self), self._max_batch_size > 1))
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from error

    def serialize(self, data: Any) -> bytes:
        """Encode the body of a response; numpy arrays leave as arrays, numpy scalars as numbers.

        Args:
            data: what `forward` returned for the request.

        Raises:
            EncodingError: a value cannot be encoded as msgpack; the text names its type.
        """
        try:
            encoded: bytes = _encoder().encode(data)
        except (load("msgspec").EncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise EncodingError(f"the result cannot be encoded as msgpack: {error}") from error
        return encoded


@functools.cache
def _encoder() -> Any:
    return load("msgspec").msgpack.Encoder(enc_hook=formats.plain)


@functools.cache
def _decoder(worker: type[Worker], batched: bool) -> tuple[Any, bool]:
    """Return the decoder of a worker's items, and whether their type bounds how deep they nest."""
    msgspec = load("msgspec")
    annotation = forward_input_type(worker, batched)
    return msgspec.msgpack.Decoder(annotation), _bounded(msgspec.inspect.type_info(annotation), frozenset())


def _bounded(node: Any, above: frozenset[int]) -> bool:
    """Whether a type, as msgspec describes it, bounds how deep its values nest: it holds neither itself nor anything.

    Args:
        node: the type, or what stands in its description.
        above: the ids of the types that it lies in.
    """
    if isinstance(node, tuple):
        return all(_bounded(part, above) for part in node)
    inspect = load("msgspec").inspect
    if not isinstance(node, (inspect.Type, inspect.Field)):
        return True
    if isinstance(node, (inspect.AnyType, inspect.CustomType)) or id(node) in above:
        return False
    parts = (getattr(node, name) for name in node.__struct_fields__)
    return all(_bounded(part, above | {id(node)}) for part in parts)
