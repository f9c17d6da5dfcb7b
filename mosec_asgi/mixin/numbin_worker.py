"""Numpy arrays between stages, in numbin's format."""

from __future__ import annotations

from typing import Any

from mosec_asgi.errors import DecodingError, EncodingError
from mosec_asgi.mixin.library import NeedsLibrary, load


class NumBinIPCMixin(NeedsLibrary):
    """Pass numpy arrays, and nothing else, to the next stage: `class Inference(NumBinIPCMixin, Worker)`.

    Both stages need it. It holds arrays of numbers whose axes are no longer than 65,535; a numpy scalar arrives as an
    array without axes.
    """

    _library = "numbin"

    def serialize_ipc(self, data: Any) -> bytes:
        """Encode an array for the next stage.

        Args:
            data: what `forward` returned for the request.

        Raises:
            EncodingError: it is no array, or one that numbin cannot hold.
        """
        numbin = load("numbin")
        try:
            # Numbin writes the bytes as they lie and reads them as little-endian.
            if data.dtype.newbyteorder("<") != data.dtype:
                data = data.astype(data.dtype.newbyteorder("<"))
            encoded: bytes = numbin.dumps(data)
        # It checks nothing: what it cannot hold fails in many ways.
        except Exception as error:
            raise EncodingError(
                f"numbin holds numpy arrays of numbers with axes of up to 65535, not {_described(data)}"
            ) from error
        return encoded

    def deserialize_ipc(self, data: bytes) -> Any:
        """Decode an array from the stage before; it may be written to.

        Args:
            data: what that stage's `serialize_ipc` returned.

        Raises:
            DecodingError: it is no array in numbin's format.
        """
        numbin = load("numbin")
        try:
            return numbin.loads(bytearray(data))
        except Exception as error:
            raise DecodingError(
                f"the stage before has sent no array in numbin's format ({error}); it needs NumBinIPCMixin as well"
            ) from error


def _described(data: Any) -> str:
    """Say what a value is without its contents."""
    kind = type(data).__name__
    return f"{kind} of {data.dtype} and shape {data.shape}" if hasattr(data, "dtype") else kind
