"""Msgpack towards the client."""

from __future__ import annotations

import functools
from typing import Any

from mosec_asgi import formats
from mosec_asgi.errors import DecodingError, EncodingError
from mosec_asgi.mixin.library import NeedsLibrary, load

# Older ones reserve memory for as many items as an array declares, in each of a thousand nested ones: a body of 10 MB
# could ask for 80 GB.
_LEAST_VERSION = (1, 2, 4)
# Arrays that the library takes inside of each other.
_LIBRARY_DEPTH = 1024
# Arrays to put around a body: with them the library refuses what is nested deeper than `formats.MAX_DEPTH`.
_AROUND = b"\x91" * (_LIBRARY_DEPTH - formats.MAX_DEPTH)
# Bytes of a body above which that costs less than to look into each of its values: 30 µs, and a copy.
_LARGE = 1 << 14


class MsgpackMixin(NeedsLibrary):
    """Read and write msgpack: `class Inference(MsgpackMixin, Worker)`.

    Arrays arrive as tuples. A map's keys must be text or bytes. Numpy arrays leave as arrays, numpy scalars as numbers.
    """

    _library = "msgpack"
    req_mime_type: str = "application/msgpack"
    resp_mime_type: str = "application/msgpack"

    def serialize(self, data: Any) -> bytes:
        """Encode the body of a response.

        Args:
            data: what `forward` returned for the request.

        Raises:
            EncodingError: a value cannot be encoded as msgpack; the text names its type.
        """
        try:
            encoded: bytes = _msgpack().packb(data, default=_plain)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise EncodingError(f"the result cannot be encoded as msgpack: {error}") from error
        return encoded

    def deserialize(self, data: bytes) -> Any:
        """Decode the body of a request.

        Args:
            data: the body.

        Raises:
            DecodingError: the body is not msgpack, or is nested too deeply.
        """
        msgpack = _msgpack()
        if len(data) > _LARGE:
            return _unpack_large(data)
        try:
            value = msgpack.unpackb(data, use_list=False)
        # Nothing but the bytes can be its cause.
        except Exception as error:
            raise _refusal(error) from error
        if len(data) > formats.MAX_DEPTH:
            formats.check_depth(value)
        return value


@functools.cache
def _msgpack() -> Any:
    msgpack = load("msgpack")
    if msgpack.version < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise ImportError(
            f"msgpack {'.'.join(map(str, msgpack.version))} lets a small body take all memory; "
            f"install {least} or later: pip install 'mosec-asgi[msgpack]'"
        )
    return msgpack


def _plain(value: Any) -> Any:
    """Return what the library does not know as something that it knows."""
    if isinstance(value, int):
        raise OverflowError("an integer needs more than 64 bits")
    return formats.plain(value)


def _unpack_large(data: bytes) -> Any:
    try:
        value = _msgpack().unpackb(_AROUND + data, use_list=False)
    except Exception as error:
        raise _refusal(error) from error
    for _ in _AROUND:
        value = value[0]
    return value


def _refusal(error: Exception) -> DecodingError:
    """Return what the client is told; the library says nothing of some faults, and of one more than concerns them."""
    if type(error).__name__ == "StackError":
        return formats.too_deep()
    reason = str(error).removesuffix(" when strict_map_key=True") or "a value has an unknown format"
    return DecodingError(f"the body is not msgpack: {reason}")
