"""Teaches schemathesis, which knows JSON, to send and read msgpack; SCHEMATHESIS_HOOKS names this file."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import schemathesis

# Fields that a contract has as base64, because JSON Schema knows no bytes.
BYTES = {"image"}


@schemathesis.serializer("application/msgpack")
def pack(context: Any, value: Any) -> bytes:
    """Return a made-up body as it goes over the wire."""
    return msgspec.msgpack.encode(on_the_wire(value))


@schemathesis.deserializer("application/msgpack")
def unpack(context: Any, response: Any) -> Any:
    """Return the body of an answer, to be checked against its schema."""
    return msgspec.msgpack.decode(response.content)


def on_the_wire(value: Any, name: str = "") -> Any:
    """Return a value of JSON as msgpack can have it."""
    if isinstance(value, dict):
        return {key: on_the_wire(item, key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [on_the_wire(item) for item in value]
    if isinstance(value, str) and name in BYTES:
        try:
            return base64.b64decode(value)
        except ValueError:
            return value
    # Msgpack has no integer above 64 bits.
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value
