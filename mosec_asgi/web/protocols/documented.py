"""What the protocols' parts of an OpenAPI document are made of, whichever protocol it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JSON = dict[str, Any]
TAG = "inference"
TEXT: JSON = {"type": "string"}
# What is answered whatever was asked, by the status.
ERRORS = {
    "408": "There was no answer within the timeout.",
    "413": "The body is larger than the service accepts.",
    "415": "The body has a `content-encoding` that the service does not read.",
    "429": "The service is at its capacity, or would be too late with this one; `retry-after` says when to come back.",
    "500": "The model failed.",
    "503": "The service is shutting down, or a stage has no worker.",
}
TIMEOUT: JSON = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "How long the client will wait for the answer, in milliseconds.",
    "schema": {"type": "integer", "minimum": 1},
}


def answered(content: JSON) -> JSON:
    """Return the response 200 with its content, by the types of it."""
    headers = {"x-request-id": {"description": "What the service's log calls the request.", "schema": TEXT}}
    return {"description": "The answer.", "headers": headers, "content": content}


def errors(told: Mapping[str, str], statuses: Sequence[str], content: JSON) -> JSON:
    """Return the responses of errors.

    Args:
        told: what each says, by its status.
        statuses: which of them there are.
        content: of each, in JSON.
    """
    retry = {"retry-after": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
    return {
        status: {
            "description": told[status],
            **({"headers": retry} if status in ("429", "503") else {}),
            "content": {"application/json": content},
        }
        for status in statuses
    }


def events(told: str) -> JSON:
    """Return the content of a stream of events, whose data are as `told`."""
    event = {"type": "object", "properties": {"data": TEXT}, "required": ["data"], "description": told}
    return {"text/event-stream": {"schema": event}}


def of(properties: JSON, *optional: str) -> JSON:
    """Return the schema of an object whose properties are required, but for those that are `optional`."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }
