"""`POST /v2/models/{model}/infer`: tensors in JSON, or as bytes behind it, and the same for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from mosec_asgi.web.protocols.open_inference import described
from mosec_asgi.web.protocols.open_inference.inference import Model
from mosec_asgi.web.protocols.open_inference.reading import Wanted, read_infer
from mosec_asgi.web.protocols.open_inference.service import Asked, ModelEndpoint
from mosec_asgi.web.protocols.open_inference.tensors import Bounds, NamedArray
from mosec_asgi.web.protocols.seam import JSON, Ask
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request

_RAW = (b"content-type", b"application/octet-stream")


class Infer(ModelEndpoint):
    """Tensors in, tensors out."""

    action = "infer"

    def read(self, model: Model, request: Request) -> Ask:
        """Return a call for each row."""
        wanted = read_infer(request.headers, request.body, self.common.bounds)
        items = model.items(wanted.request)
        return Ask(model.route, items, Asked(model, wanted), wanted.timeout)

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the outputs, of all rows in their order."""
        model, wanted = ask.context
        outputs = model.outputs_of(wanted.request, self.wholes(model, results))
        return infer_response(model, wanted, outputs, self.common.bounds)

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint, for each model whose name stands in the path."""
        return described.infer(self)


def infer_response(model: Model, wanted: Wanted, outputs: Sequence[NamedArray], bounds: Bounds) -> Response:
    """Return the answer with these outputs: those in JSON, and behind it those that are wanted as bytes.

    Raises:
        ClientError: an output that is wanted as JSON cannot be encoded so.
    """
    told, behind = [], []
    for output in outputs:
        fields: dict[str, Any] = {"name": output.name, "datatype": output.datatype.name, "shape": output.shape}
        if wanted.as_bytes(output.name):
            raw = output.raw()
            behind.append(raw)
            fields["parameters"] = {"binary_data_size": len(raw)}
        else:
            fields["data"] = output.values(bounds)
        told.append(fields)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": told}
    if wanted.request.id:
        answer["id"] = wanted.request.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not behind:
        return Response(HTTPStatus.OK, (JSON,), head)
    length = (b"inference-header-content-length", b"%d" % len(head))
    return Response(HTTPStatus.OK, (_RAW, length), b"".join([head, *behind]))
