"""Schemas by name, for the `components` of an OpenAPI document: no two schemas share a name.

Two routes may each have an `Item`. If both are the same, with all that they refer to, they share one component; if not,
the second is given the name of its route as well. So a component is known by its name and by all that it reaches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mosec_asgi.schema import JSON, MOSEC_REF_TEMPLATE

_PLACES = (MOSEC_REF_TEMPLATE.format(name=""), "#/$defs/")
# Keywords whose value is a mapping of names to schemas, and those whose value is data that only looks like a schema.
_NAMED = {"properties", "patternProperties", "dependentSchemas"}
_DATA = {"const", "default", "enum", "example", "examples"}


class Components:
    """The named schemas of a document.

    Attributes:
        schemas: by their final names.
    """

    def __init__(self) -> None:
        self.schemas: dict[str, JSON] = {}
        self._names: dict[tuple[str, str], str] = {}

    def add(self, schema: JSON, components: Mapping[str, JSON], owner: str) -> JSON:
        """Take in a schema with those that it refers to.

        Args:
            schema: it may hold more named schemas below `$defs`.
            components: the named schemas.
            owner: is added to a name that another schema already has.

        Returns:
            the schema, which refers to the document's components.
        """
        schema = dict(schema)
        components = {**components, **schema.pop("$defs", {})}
        names = {name: self._reserve(name, components, owner) for name in components}
        for name, final in names.items():
            self.schemas.setdefault(final, _renamed(components[name], names))
        return _renamed(schema, names)

    def _reserve(self, name: str, components: Mapping[str, JSON], owner: str) -> str:
        reach = json.dumps({each: components[each] for each in _reachable(name, components)}, sort_keys=True)
        final = self._names.get((name, reach))
        if final is None:
            final = self._names[name, reach] = self._free_name(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII), owner)
        return final

    def _free_name(self, name: str, owner: str) -> str:
        taken = set(self._names.values())
        candidate, number = name, 1
        while candidate in taken:
            candidate = f"{name}_{owner}" if number == 1 else f"{name}_{owner}_{number}"
            number += 1
        return candidate


def _reachable(name: str, components: Mapping[str, JSON]) -> list[str]:
    """Return the names of the components that `name` refers to, directly or not, itself included, in order."""
    found: set[str] = set()
    waiting = [name]

    def note(target: str) -> str:
        waiting.append(target)
        return target

    while waiting:
        current = waiting.pop()
        if current in components and current not in found:
            found.add(current)
            _map_references(components[current], note)
    return sorted(found)


def _renamed(schema: JSON, names: Mapping[str, str]) -> JSON:
    """Return `schema` with all its references changed to the components' final names."""
    renamed: JSON = _map_references(schema, lambda name: names.get(name, name))
    return renamed


def _map_references(node: Any, rename: Callable[[str], str]) -> Any:
    """Return a copy of a schema in which `rename` has named the target of each reference."""
    if isinstance(node, list):
        return [_map_references(item, rename) for item in node]
    if not isinstance(node, dict):
        return node
    return dict(_map_keywords(node, rename))


def _map_keywords(schema: JSON, rename: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in _DATA:
            yield key, value
        elif key == "$ref":
            yield key, _map_reference(value, rename)
        elif key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
            mapping = {tag: _map_reference(target, rename) for tag, target in value["mapping"].items()}
            yield key, {**value, "mapping": mapping}
        elif key in _NAMED and isinstance(value, dict):
            yield key, {name: _map_references(item, rename) for name, item in value.items()}
        else:
            yield key, _map_references(value, rename)


def _map_reference(reference: Any, rename: Callable[[str], str]) -> Any:
    for place in _PLACES:
        if isinstance(reference, str) and reference.startswith(place):
            return _PLACES[0] + rename(reference.removeprefix(place))
    return reference
