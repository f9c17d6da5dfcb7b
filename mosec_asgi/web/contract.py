"""The parts that are the same in the OpenAPI documents of all services: errors, headers, the service's own paths."""

from __future__ import annotations

from http import HTTPStatus

from mosec_asgi.errors import (
    BAD_TIMEOUT,
    INTERNAL_ERROR_TEXT,
    KEY_IS_FOR_OTHERS,
    NO_DATA,
    NO_KEY,
    TIMED_OUT,
    WRONG_KEY,
    DecodingError,
    Failure,
    ValidationError,
    describe,
    too_large,
)
from mosec_asgi.schema import JSON
from mosec_asgi.web import compression
from mosec_asgi.web.responses import reason

DESCRIPTION = (
    "A model route takes POST. An error is answered by its status and a line of text that says what is wrong. "
    "A request may carry its own `x-request-id`; it comes back with the response and stands in the service's log. "
    "The header `x-request-timeout` says how long its client will wait for the answer."
)
MODEL_TAG = "inference"
SERVICE_TAG = "service"
TAGS = [
    {"name": MODEL_TAG, "description": "The models."},
    {"name": SERVICE_TAG, "description": "The state of the service, for probes and for Prometheus."},
]
TEXT: JSON = {"type": "string"}
# What stands in the item of a path beside its other parts.
METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
# Where a service has API keys.
SECURITY_SCHEMES: JSON = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key as `authorization: Bearer <key>`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key as `x-api-key`."},
}


def _key_response(description: str, *failures: Failure) -> JSON:
    examples = {str(number): {"value": failure.text} for number, failure in enumerate(failures, 1)}
    return {"description": description, "content": {"text/plain": {"schema": TEXT, "examples": examples}}}


KEY_RESPONSES: JSON = {
    "401": _key_response("There is no API key, or one that the service does not have.", NO_KEY, WRONG_KEY),
    "403": _key_response("The API key is for other paths.", KEY_IS_FOR_OTHERS),
}


def _errors(max_request_size: int, *, compressed: bool) -> dict[int, tuple[str, list[str]]]:
    """Return the errors of a model route by status: the description, and examples of the text."""
    return {
        HTTPStatus.BAD_REQUEST: (
            "The body is empty or cannot be decoded, the model refuses it, or a header has an invalid value.",
            [
                NO_DATA.text,
                describe(DecodingError("the body is not JSON: unexpected character: line 1 column 1")).text,
                BAD_TIMEOUT.text,
            ],
        ),
        HTTPStatus.REQUEST_TIMEOUT: ("There was no result within the timeout.", [TIMED_OUT.text]),
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
            f"The body, unpacked where it came compressed, is larger than {max_request_size} bytes.",
            [too_large(max_request_size).text],
        ),
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (
            "The body has a `content-encoding` that the service does not read.",
            [compression.unknown("br", enabled=compressed).text],
        ),
        HTTPStatus.UNPROCESSABLE_ENTITY: (
            "The body was decoded, but its values are not acceptable.",
            [describe(ValidationError("the text is longer than 1000 characters")).text],
        ),
        HTTPStatus.TOO_MANY_REQUESTS: (
            "The service is at its capacity, or would be too late with this one; `retry-after` says when to come back.",
            [
                "too many requests: the service is at its capacity",
                "too many requests: this one would not be done in time",
            ],
        ),
        HTTPStatus.INTERNAL_SERVER_ERROR: ("The model failed.", [INTERNAL_ERROR_TEXT]),
        HTTPStatus.SERVICE_UNAVAILABLE: (
            "The service is shutting down, or a stage has no worker.",
            ["the service is shutting down", "the model is not available: its workers do not start"],
        ),
    }


_RETRY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_NAMES = {
    status: reason(status).replace(" ", "")
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}
ERROR_RESPONSES = {str(int(status)): {"$ref": f"#/components/responses/{name}"} for status, name in _NAMES.items()}
# The errors that can be answered in place of a stream of events; all later errors are events in the stream.
REFUSALS = {status: ERROR_RESPONSES[status] for status in ("400", "408", "413", "415", "429", "503")}
# Readers of OpenAPI before 3.2 take the schema of an event stream for that of each of its events.
EVENT: JSON = {
    "type": "object",
    "properties": {
        "data": TEXT,
        "event": TEXT,
        "id": TEXT,
        "retry": {"type": "integer", "minimum": 0},
    },
}
PARAMETERS = [
    {"$ref": "#/components/parameters/RequestId"},
    {"$ref": "#/components/parameters/RequestTimeout"},
]
REQUEST_ID_HEADER = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}


def components(max_request_size: int, *, compressed: bool) -> JSON:
    """Return the components that all routes refer to, other than schemas.

    Args:
        max_request_size: bytes of a request's body.
        compressed: a request's body may be compressed.
    """
    errors = _errors(max_request_size, compressed=compressed)
    return {
        "responses": {name: _error_response(status, *errors[status]) for status, name in _NAMES.items()},
        "parameters": {
            "RequestId": {
                "name": "x-request-id",
                "in": "header",
                "description": "What the logs shall call this request: up to 128 printable ASCII characters. "
                "The service makes an id where there is none, or none that it can use.",
                "schema": TEXT,
            },
            "RequestTimeout": {
                "name": "x-request-timeout",
                "in": "header",
                "description": "Milliseconds that the client will wait: for the answer, or for the first chunk of a "
                "stream. Then the request is dropped, wherever it is, and answered 408. It can only shorten the "
                "service's own timeout.",
                "schema": {"type": "integer", "minimum": 1},
            },
        },
        "headers": {
            "RequestId": {"description": "What the logs call this request.", "schema": TEXT},
            "RetryAfter": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer", "minimum": 0},
            },
        },
    }


def _error_response(status: int, description: str, examples: list[str]) -> JSON:
    shown: JSON = {"example": examples[0]}
    if len(examples) > 1:
        shown = {"examples": {f"text_{place}": {"value": text} for place, text in enumerate(examples, 1)}}
    retry = {"retry-after": {"$ref": "#/components/headers/RetryAfter"}} if status in _RETRY else {}
    return {
        "description": description,
        "headers": {**REQUEST_ID_HEADER, **retry},
        "content": {"text/plain": {"schema": TEXT, **shown}},
    }


def _probe(operation_id: str, summary: str, description: str, content: JSON, more: JSON | None = None) -> JSON:
    return {
        "get": {
            "tags": [SERVICE_TAG],
            "summary": summary,
            "operationId": operation_id,
            "responses": {"200": {"description": description, "content": content}, **(more or {})},
        }
    }


def _state(*statuses: str) -> JSON:
    return {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "status": {"type": "string", "enum": list(statuses)},
                    "stages": {
                        "type": "object",
                        "description": "What keeps a stage from being ready, by the stage's name.",
                        "additionalProperties": TEXT,
                    },
                },
                "required": ["status", "stages"],
            }
        }
    }


_NOT_READY = {
    "503": {
        "description": "A stage has no worker, its models are being loaded, or the service is shutting down.",
        "content": _state("not ready", "loading", "shutting down"),
    }
}
SERVICE_PATHS = {
    "/": _probe("root", "Is the service there?", "It is.", {"text/plain": {"schema": TEXT}}),
    "/livez": _probe("livez", "Does the service's event loop turn?", "It does.", {"text/plain": {"schema": TEXT}}),
    "/readyz": _probe(
        "readyz",
        "Can every stage be given work?",
        "Every stage has a worker.",
        _state("ready"),
        _NOT_READY,
    ),
    "/metrics": _probe(
        "metrics",
        "What is counted and measured",
        "Prometheus text, or OpenMetrics where the `accept` header asks for it.",
        {"text/plain": {"schema": TEXT}, "application/openmetrics-text": {"schema": TEXT}},
    ),
}
