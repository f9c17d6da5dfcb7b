"""`POST /v1/embeddings`: texts, or lists of tokens, each of which becomes a vector."""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mosec_asgi.errors import ServerError
from mosec_asgi.web.protocols.openai import described
from mosec_asgi.web.protocols.openai.errors import Refused
from mosec_asgi.web.protocols.openai.fields import checked, choice, inputs, refuse_others, required, text, whole
from mosec_asgi.web.protocols.openai.service import Common, ModelEndpoint, parts_of
from mosec_asgi.web.protocols.seam import MAX_CALLS, Ask, json_response
from mosec_asgi.web.responses import Response

_CHECKS = {"encoding_format": choice("float", "base64"), "dimensions": whole(1), "user": text}
_FIELDS = ("model", "input", *_CHECKS)
_INPUTS = inputs(MAX_CALLS)


class _Wanted(NamedTuple):
    model: str
    as_base64: bool
    dimensions: int | None


class Embeddings(ModelEndpoint):
    """Vectors of texts."""

    name = "/embeddings"
    param = "input"

    def __init__(self, common: Common, models: Mapping[str, str], shortens: Collection[str]) -> None:
        """Bind to models; `shortens` names those whose vectors may be cut short."""
        super().__init__(common, models)
        self._shortens = frozenset(shortens)

    def read(self, name: str, route: str, fields: dict[str, Any]) -> Ask:
        """Return a call for each text."""
        items = required(fields, "input", _INPUTS)
        if len(fields) > 2:
            refuse_others(fields, _FIELDS)
            checked(fields, _CHECKS)
        return Ask(route, items, _Wanted(name, fields.get("encoding_format") == "base64", fields.get("dimensions")))

    def write(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the vectors, in the order of the texts."""
        wanted: _Wanted = ask.context
        data, total = [], 0
        for place, result in enumerate(results):
            vector, tokens = parts_of(result, "embedding")
            total += tokens
            _check_vector(vector)
            if wanted.dimensions is not None and wanted.dimensions != len(vector):
                vector = self._shortened(vector, wanted)
            shown = _as_base64(vector) if wanted.as_base64 else vector
            data.append({"object": "embedding", "index": place, "embedding": shown})
        usage = {"prompt_tokens": total, "total_tokens": total}
        return json_response({"object": "list", "data": data, "model": wanted.model, "usage": usage})

    def _shortened(self, vector: Any, wanted: _Wanted) -> list[float]:
        """Return the beginning of a vector, of length 1: for models that were trained so (Kusupati et al., 2022)."""
        length, dimensions = len(vector), wanted.dimensions or 0
        if wanted.model not in self._shortens or dimensions > length:
            why = "" if dimensions > length else ", and it was not trained to shorten them"
            raise Refused(f"dimensions: the vectors of {wanted.model!r} have {length} numbers{why}", "dimensions")
        numbers = [float(value) for value in vector[:dimensions]]
        norm = math.sqrt(sum(value * value for value in numbers)) or 1.0
        return [value / norm for value in numbers]

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint."""
        example = {"model": next(iter(self.models)), "input": ["How are batches made?", "From all that wait."]}
        return described.post(
            "openai.embeddings", "A vector of each text", "EmbeddingsRequest", "Embeddings", example, self.common.keyed
        )


def _check_vector(vector: Any) -> None:
    """Refuse what is no vector; raises `ServerError`."""
    if isinstance(vector, (list, tuple)):
        if vector and not isinstance(vector[0], (list, tuple, str)):
            _check_numbers(vector)
            return
    elif getattr(vector, "ndim", None) == 1 and len(vector):
        _check_numbers(vector)
        return
    shape = getattr(vector, "shape", None)
    what = type(vector).__name__ if shape is None else f"an array of shape {tuple(shape)}"
    raise ServerError(
        f"an embedder returned {what}; return a vector for each text, or a dictionary of `embedding` and "
        "`prompt_tokens`"
    )


def _check_numbers(vector: Any) -> None:
    """Refuse what is no number, and NaN and infinity, which JSON does not have; raises `ServerError`."""
    try:
        if isinstance(vector, (list, tuple)):
            # The quick way: neither gets lost in a sum. One of finite numbers may still be too large.
            right = math.isfinite(sum(vector)) or all(map(math.isfinite, vector))
        elif vector.dtype.kind in "fiub":
            # NaN is the largest and the smallest.
            right = math.isfinite(vector.max()) and math.isfinite(vector.min())
        else:
            raise TypeError(vector.dtype)
        if right:
            return
        what = "NaN or infinity"
    except (AttributeError, TypeError, ValueError, OverflowError):
        what = "something that is no number; return a list of numbers or a numpy array of them"
    raise ServerError(f"an embedder returned a vector that holds {what}")


def _as_base64(vector: Any) -> str:
    """Return the numbers' bytes: single precision, little endian."""
    if hasattr(vector, "astype"):
        raw: bytes = vector.astype("<f4").tobytes()
    else:
        numbers = array.array("f", vector)
        if sys.byteorder == "big":
            numbers.byteswap()
        raw = numbers.tobytes()
    return base64.b64encode(raw).decode()
