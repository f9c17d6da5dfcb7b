"""Pydantic's check of a large body, which ends at the first wrong item of a list and not at the last.

Pydantic collects every error before it tells of one: a body of 8 MB may hold two million wrong items, of which the
errors took 450 MB, and 1,700 MB as dictionaries. Its lists, sets, tuples and dictionaries can be told to stop at their
first error (`pydantic.FailFast`), each by its annotation. Here all that an annotation holds are told so, in a copy of
what pydantic has made of it; of what is right the result is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mosec_asgi.mixin.library import load

# What has items of the client's number, as pydantic's schemas name it.
_OF_MANY = frozenset(("list", "set", "frozenset", "tuple", "deque", "dict", "ordered-dict", "frozendict", "typed-dict"))
# Parts of a schema that are values, of whatever form, and not schemas.
_VALUES = frozenset(("default", "metadata", "config", "serialization", "expected", "members", "context"))


def fail_fast(adapter: Any) -> Any:
    """Return a validator of what a `pydantic.TypeAdapter` takes that stops at the first error of a list."""
    validator = load("pydantic_core").SchemaValidator
    schema = _stopping(adapter.core_schema)
    try:
        # Else models within others are checked as they were built.
        return validator(schema, None, _use_prebuilt=False)
    except TypeError:
        # An older version: there only what lies in no model stops early.
        return validator(schema)


def _stopping(node: Any) -> Any:
    """Return a part of a schema with the wish to stop wherever it has a place."""
    if isinstance(node, Mapping):
        # Of the fields of a model one may be named "type", or "default".
        kind = node.get("type")
        is_schema = isinstance(kind, str)
        parts = {name: part if is_schema and name in _VALUES else _stopping(part) for name, part in node.items()}
        if is_schema and kind in _OF_MANY:
            parts["fail_fast"] = True
        return parts
    # Not what a member of an enumeration may be.
    if type(node) in (list, tuple):
        return type(node)(map(_stopping, node))
    return node
