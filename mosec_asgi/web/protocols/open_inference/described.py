"""The protocol's endpoints in the OpenAPI document of a service: operations, and the schemas that they name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mosec_asgi.web.protocols.documented import ERRORS, JSON, TAG, TEXT, TIMEOUT, answered, errors, events, of
from mosec_asgi.web.protocols.open_inference.description import NAMES, Tensor
from mosec_asgi.web.protocols.open_inference.tensors import MAX_RANK

if TYPE_CHECKING:
    from mosec_asgi.web.protocols.open_inference.inference import Model
    from mosec_asgi.web.protocols.open_inference.service import Common, ModelEndpoint

_NAME = "open_inference"
# Values of an example.
_MOST_SHOWN = 64
_ERRORS = {
    "400": "The request cannot be read, its tensors are not such as they are declared or as the model takes them, or "
    "the model refuses them.",
    "404": "There is no such model, or no such version of it.",
    **ERRORS,
}
_HEADER_LENGTH: JSON = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of the JSON at the beginning of the body, where tensors follow as bytes.",
    "schema": {"type": "integer", "minimum": 1},
}


def get(
    operation: str, summary: str, schema: str, parameters: Sequence[JSON] = (), *, unready: bool = False
) -> dict[str, Any]:
    """Return the path item of an endpoint by GET.

    Args:
        operation: the name of the operation.
        summary: what it tells.
        schema: the name of that of its answer.
        parameters: of its path.
        unready: the answer may come with the status 503.
    """
    answers = {"200": _answer(_named(schema))}
    if unready:
        answers["503"] = {"description": "It is not.", "content": {"application/json": _named(schema)}}
    return {
        "get": {
            "tags": [TAG],
            "summary": summary,
            "operationId": f"{_NAME}.{operation}",
            **({"parameters": list(parameters)} if parameters else {}),
            "responses": {**answers, **_errors(["404"] if parameters else [])},
        }
    }


def index() -> dict[str, Any]:
    """Return the path item of the index of models."""
    return {
        "post": {
            "tags": [TAG],
            "summary": "All models, and whether they can answer",
            "operationId": f"{_NAME}.index",
            "responses": {"200": _answer(_named("RepositoryIndex")), **_errors(["413", "415"])},
        }
    }


def of_path(common: Common, *, versioned: bool) -> list[JSON]:
    """Return the parameters of a path that names a model, and its version as well where it is `versioned`."""
    parts = {"model": list(common.routes)}
    if versioned:
        parts["version"] = sorted(set(common.versions.values()))
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": known}}
        for name, known in parts.items()
    ]


def infer(endpoint: ModelEndpoint) -> dict[str, Any]:
    """Return the path item of `infer`."""
    model = _model_of(endpoint)
    example = None if model is None else _infer_example(model)
    content: JSON = {
        "application/json": {**_named("InferRequest"), **({} if example is None else {"example": example})},
        "application/octet-stream": {"schema": {"description": "JSON, and behind it the tensors' bytes."}},
    }
    answer = {
        "application/json": _named("InferResponse"),
        "application/octet-stream": {"schema": {"description": "JSON, and behind it the outputs that are bytes."}},
    }
    return _post(endpoint, "Rows of tensors through a model", content, answer, [_HEADER_LENGTH])


def generate(endpoint: ModelEndpoint, *, streamed: bool) -> dict[str, Any]:
    """Return the path item of `generate`, or of `generate_stream`."""
    model = _model_of(endpoint)
    fields = {} if model is None else {name: _row(tensor) for name, tensor in model.inputs.tensors.items()}
    schema: JSON = {
        "type": "object",
        "properties": {"id": _or_null(TEXT), "parameters": _ref("Parameters"), **fields},
        **({"required": list(fields), "additionalProperties": False} if fields else {}),
    }
    answer: JSON = {"application/json": _named("Generated")}
    if streamed:
        told = "Events whose data are `Generated` objects, or an `Error` at last."
        answer = events(told)
    summary = f"One row through a model, {'as a stream of rows' if streamed else 'as plain fields'}"
    return _post(endpoint, summary, {"application/json": {"schema": schema}}, answer)


def schemas_of(common: Common) -> Mapping[str, Any]:
    """Return the schemas that the endpoints name."""
    return {f"{_NAME}.{name}": schema for name, schema in _schemas(common).items()}


def _model_of(endpoint: ModelEndpoint) -> Model | None:
    """Return the model that an endpoint asks; None where that stands in the path, or its workers are not known yet."""
    return None if endpoint.name is None else endpoint.common.models.get(endpoint.name)


def _post(
    endpoint: ModelEndpoint, summary: str, content: JSON, answer: JSON, headers: Sequence[JSON] = ()
) -> dict[str, Any]:
    if endpoint.name is None and not endpoint.versioned:
        # For models that are not there; those that are have paths of their own.
        return {}
    name = f"{_NAME}.{endpoint.action}" + (f".{endpoint.name}" if endpoint.name else "_version")
    path = of_path(endpoint.common, versioned=True) if endpoint.name is None else []
    model = _model_of(endpoint)
    told = "In the form of the open inference protocol; see docs/protocols.md."
    if model is not None and model.inputs.tensors:
        told += f" Inputs: {_told(model.inputs.tensors)}."
    if model is not None and model.outputs.tensors:
        told += f" Outputs: {_told(model.outputs.tensors)}."
    return {
        "post": {
            "tags": [TAG],
            "summary": summary,
            "description": told,
            "operationId": name,
            "parameters": [*path, *headers, TIMEOUT],
            "requestBody": {"required": True, "content": content},
            "responses": {"200": answered(answer), **_errors(list(_ERRORS))},
        }
    }


def _told(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"`{each.name}` ({each.datatype}, {list(each.shape)})" for each in tensors.values())


def _infer_example(model: Model) -> JSON | None:
    """Return a request of one row; None where it would be long, or nothing is known of the inputs."""
    inputs = []
    for tensor in model.inputs.tensors.values():
        shape = [max(size, 1) if size else 0 for size in tensor.shape]
        count = math.prod(shape)
        if count > _MOST_SHOWN:
            return None
        value = {"BYTES": "text", "BOOL": True}.get(tensor.datatype, 1)
        inputs.append({"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": [value] * count})
    return {"inputs": inputs} if inputs else None


def _row(tensor: Tensor) -> JSON:
    """Return the schema of a row of an input."""
    kinds = {"BYTES": "string", "BOOL": "boolean", "FP16": "number", "FP32": "number", "FP64": "number"}
    value: JSON = {"type": kinds.get(tensor.datatype, "number" if tensor.datatype == "BF16" else "integer")}
    schema = value
    for size in reversed(tensor.shape[1:]):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    # Where a row may have one value, the value itself will do.
    return {"anyOf": [schema, value]} if schema is not value and {-1, 1}.issuperset(tensor.shape) else schema


def _ref(name: str) -> JSON:
    return {"$ref": f"#/components/schemas/{_NAME}.{name}"}


def _named(name: str) -> JSON:
    return {"schema": _ref(name)}


def _answer(schema: JSON) -> JSON:
    return answered({"application/json": schema})


def _errors(statuses: Sequence[str]) -> JSON:
    return errors(_ERRORS, statuses, _named("Error"))


def _or_null(schema: JSON) -> JSON:
    return {**schema, "type": [schema["type"], "null"]}


def _list(items: JSON) -> JSON:
    return {"type": "array", "items": items}


def _schemas(common: Common) -> JSON:
    most = common.bounds
    datatype: JSON = {"enum": list(NAMES)}
    shape = _list({"type": "integer"})
    tensor = of({"name": TEXT, "datatype": datatype, "shape": shape})
    configured = of({"name": TEXT, "data_type": TEXT, "dims": shape})
    data: JSON = {"description": "The values in row-major order: a flat list, or one nested as the shape is."}
    size: JSON = {"type": "integer", "minimum": 0, "description": "Bytes of the tensor behind the JSON."}
    given = of(
        {
            "name": {"type": "string", "minLength": 1},
            "datatype": datatype,
            "shape": {
                **_list({"type": "integer", "minimum": 0}),
                "minItems": 1,
                "maxItems": MAX_RANK,
                "description": f"The first dimension is that of the rows: 1 to {most.rows}.",
            },
            "parameters": {"type": ["object", "null"], "properties": {"binary_data_size": _or_null(size)}},
            "data": {**data, "type": ["array", "null"]},
        },
        "parameters",
        "data",
    )
    wanted = of(
        {
            "name": {"type": "string", "minLength": 1},
            "parameters": {"type": ["object", "null"], "properties": {"binary_data": {"type": ["boolean", "null"]}}},
        },
        "parameters",
    )
    return {
        "Error": of({"error": TEXT}),
        "ServerMetadata": of({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)}),
        "Live": of({"live": {"const": True}}),
        "Ready": of({"ready": {"type": "boolean"}}),
        "ModelReady": of({"name": TEXT, "ready": {"type": "boolean"}}),
        "ModelMetadata": of(
            {
                "name": TEXT,
                "versions": _list(TEXT),
                "platform": TEXT,
                "inputs": _list(tensor),
                "outputs": _list(tensor),
            }
        ),
        "ModelConfig": of(
            {
                "name": TEXT,
                "platform": TEXT,
                "backend": TEXT,
                "max_batch_size": {"type": "integer"},
                "input": _list(configured),
                "output": _list(configured),
                "model_transaction_policy": of({"decoupled": {"type": "boolean"}}),
            }
        ),
        "RepositoryIndex": _list(
            of({"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT})
        ),
        "Parameters": {
            "type": ["object", "null"],
            "properties": {
                "binary_data_output": {"type": "boolean"},
                "timeout": {"type": ["integer", "null"], "minimum": 0, "description": "In microseconds."},
            },
            "additionalProperties": {"type": ["string", "number", "boolean"]},
            "description": "What the protocol does not read itself is given to the worker.",
        },
        "InferRequest": of(
            {
                "id": _or_null(TEXT),
                "parameters": _ref("Parameters"),
                "inputs": {**_list(given), "minItems": 1, "maxItems": most.tensors},
                "outputs": {"type": ["array", "null"], "items": wanted, "maxItems": most.tensors},
            },
            "id",
            "parameters",
            "outputs",
        ),
        "InferResponse": of(
            {
                "model_name": TEXT,
                "model_version": TEXT,
                "id": TEXT,
                "outputs": _list(
                    of(
                        {
                            "name": TEXT,
                            "datatype": datatype,
                            "shape": shape,
                            "parameters": {"type": "object", "properties": {"binary_data_size": size}},
                            "data": {**data, "type": "array"},
                        },
                        "parameters",
                        "data",
                    )
                ),
            },
            "id",
        ),
        "Generated": {
            **of({"model_name": TEXT, "model_version": TEXT, "id": TEXT}, "id"),
            "description": "The outputs are fields beside these.",
        },
    }
