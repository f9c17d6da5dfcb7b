"""A value that a JSON Schema allows, for a request to try; the schema's own examples first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BY_TYPE = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "null": None}
# Schemas within each other; a deeper one, such as one that refers to itself, has no sample.
_DEEPEST = 8


def sample(media: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[Any] | None:
    """Return a value for a request's body, in a tuple; None where none is known.

    Args:
        media: the media type object of an OpenAPI document.
        document: the document, to whose components it may refer.
    """
    if "example" in media:
        return (media["example"],)
    for example in media.get("examples", {}).values():
        return (example["value"],)
    return _of_schema(media.get("schema", {}), document, 0)


def _of_schema(schema: Any, document: Mapping[str, Any], depth: int) -> tuple[Any] | None:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        return _of_schema(_referred(schema["$ref"], document), document, depth + 1)
    for name in ("default", "const"):
        if name in schema:
            return (schema[name],)
    for name in ("examples", "enum"):
        if schema.get(name):
            return (schema[name][0],)
    for name in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(name, ()):
            if (found := _of_schema(option, document, depth + 1)) is not None:
                return found
    return _of_type(schema, document, depth)


def _of_type(schema: Mapping[str, Any], document: Mapping[str, Any], depth: int) -> tuple[Any] | None:
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        return _of_object(schema, document, depth)
    if kind == "array":
        items = _of_schema(schema.get("items", {}), document, depth + 1)
        return ([items[0]] * max(1, schema.get("minItems", 1)),) if items is not None else None
    if kind in ("integer", "number"):
        return (schema.get("minimum", schema.get("maximum", _BY_TYPE[kind])),)
    if kind == "string" and any(name in schema for name in ("pattern", "format", "minLength")):
        # Whether a text fits would be a guess.
        return None
    return (_BY_TYPE[kind],) if isinstance(kind, str) and kind in _BY_TYPE else None


def _of_object(schema: Mapping[str, Any], document: Mapping[str, Any], depth: int) -> tuple[Any] | None:
    value = {}
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        found = _of_schema(properties.get(name), document, depth + 1)
        if found is None:
            return None
        value[name] = found[0]
    return (value,)


def _referred(reference: str, document: Mapping[str, Any]) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found
