"""A value that a schema allows, for the curl line of the banner."""

from __future__ import annotations

from typing import Any

import pytest

from mosec_asgi.cli.sample import sample

DOCUMENT = {
    "components": {
        "schemas": {
            "Text": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            "Loop": {
                "type": "object",
                "properties": {"next": {"$ref": "#/components/schemas/Loop"}},
                "required": ["next"],
            },
        }
    }
}


@pytest.mark.parametrize(
    ("media", "value"),
    [
        ({"example": None, "schema": {"type": "integer"}}, None),
        ({"examples": {"one": {"value": 5}, "two": {"value": 6}}}, 5),
        ({"schema": {"$ref": "#/components/schemas/Text"}}, {"text": "text"}),
        ({"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Text"}}}, [{"text": "text"}]),
        ({"schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2}}, [True, True]),
        ({"schema": {"type": "integer", "minimum": 7}}, 7),
        ({"schema": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}}, None),
        ({"schema": {"enum": ["small", "large"]}}, "small"),
        ({"schema": {"type": "object", "properties": {"size": {"default": 3}}, "required": ["size"]}}, {"size": 3}),
        ({"schema": {"type": "object", "properties": {"size": {"type": "integer"}}}}, {}),
    ],
)
def test_a_value_is_found(media: dict[str, Any], value: Any) -> None:
    assert sample(media, DOCUMENT) == (value,)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"type": "string", "pattern": "^a$"},
        {"$ref": "#/components/schemas/Loop"},
        {"$ref": "#/components/schemas/Missing"},
        {"type": "object", "properties": {"x": {}}, "required": ["x"]},
    ],
)
def test_nothing_is_guessed(schema: Any) -> None:
    assert sample({"schema": schema}, DOCUMENT) is None
