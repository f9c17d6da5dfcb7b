"""What goes into `forward` and comes out of it, as JSON Schema: by pydantic or msgspec, whichever knows the type.

Both are optional and load only here, when the OpenAPI document is made. Each describes models, dataclasses, TypedDicts,
unions and what Python has built in; pydantic models are pydantic's alone, and msgspec structs are msgspec's. A type
that one of them knows in part is asked of the other before the unknown part becomes `{}`, which means any value.
"""

from __future__ import annotations

import enum
import inspect
import types
from dataclasses import dataclass, field
from typing import Any

from mosec_asgi import log
from mosec_asgi.annotations import forward_input_type, forward_return_type, with_extended_typed_dicts

# Where an OpenAPI document keeps its schemas, under the name that mosec has for it.
MOSEC_REF_TEMPLATE = "#/components/schemas/{name}"

JSON = dict[str, Any]

logger = log.internal_logger(__name__)


class ParseTarget(enum.Enum):
    """Which side of `forward` a schema describes."""

    INPUT = "INPUT"
    RETURN = "RETURN"


class SchemaError(Exception):
    """A type has no JSON Schema; the text says why."""


class MissingLibraryError(SchemaError):
    """Neither pydantic nor msgspec is installed."""


@dataclass(slots=True)
class _Description:
    schema: JSON = field(default_factory=dict)
    components: dict[str, JSON] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def forward_json_schema(
    worker: type[Any], target: ParseTarget, ref_template: str, *, batched: bool
) -> tuple[JSON, dict[str, JSON]]:
    """Describe one side of a worker's `forward` by its annotation.

    Args:
        worker: a class of workers.
        target: which side.
        ref_template: where a schema refers to another one; `{name}` stands for that one's name.
        batched: `forward` takes and returns lists, of which one item is described.

    Returns:
        the schema, and those that it refers to by name. `{}`, any value, where there is no annotation.

    Raises:
        SchemaError: the annotation has no JSON Schema.
    """
    read = forward_input_type if target is ParseTarget.INPUT else forward_return_type
    annotation = read(worker, batched)
    if annotation is Any:
        return {}, {}
    found = _describe(annotation, target, ref_template)
    if found.unknown:
        logger.warning(
            "the %s of %s.forward holds %s, which has no JSON Schema; the OpenAPI document says `any value` there",
            target.value.lower(),
            worker.__name__,
            " and ".join(dict.fromkeys(found.unknown)),
        )
    return found.schema, found.components


def _describe(annotation: Any, target: ParseTarget, ref_template: str) -> _Description:
    found: list[_Description] = []
    errors: list[str] = []
    installed = False
    for ask in (_ask_pydantic, _ask_msgspec):
        try:
            found.append(ask(annotation, target, ref_template))
        except ImportError:
            continue
        # Types bring their own schema code; whatever that raises must not harm the service.
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        installed = True
        if found and not found[-1].unknown:
            return found[-1]
    if found:
        return found[0]
    if not installed:
        raise MissingLibraryError("neither pydantic nor msgspec is installed")
    raise SchemaError("; ".join(errors))


def _ask_pydantic(annotation: Any, target: ParseTarget, ref_template: str) -> _Description:
    import pydantic
    from pydantic.json_schema import GenerateJsonSchema

    found = _Description()

    class Generator(GenerateJsonSchema):
        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JSON:
            kind = schema.get("cls")
            found.unknown.append(_name(kind) if isinstance(kind, type) else error_info)
            return {}

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    # A tuple around it: a model that stands alone would neither take a configuration nor become a named component.
    around_it: Any = types.GenericAlias(tuple, (with_extended_typed_dicts(annotation),))
    adapter = pydantic.TypeAdapter[Any](around_it, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
    described = adapter.json_schema(
        ref_template=ref_template.replace("{name}", "{model}"),
        mode="validation" if target is ParseTarget.INPUT else "serialization",
        schema_generator=Generator,
    )
    found.schema = described["prefixItems"][0]
    found.components = described.get("$defs", {})
    return found


def _ask_msgspec(annotation: Any, target: ParseTarget, ref_template: str) -> _Description:
    import msgspec

    found = _Description()

    def describe_other(kind: Any) -> JSON:
        found.unknown.append(_name(kind))
        return {}

    (found.schema,), found.components = msgspec.json.schema_components(
        [annotation], schema_hook=describe_other, ref_template=ref_template
    )
    for component in found.components.values():
        if "description" in component:
            # A docstring. Before 0.23 msgspec leaves its indentation in; a document must not depend on that.
            component["description"] = inspect.cleandoc(component["description"])
    return found


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)
