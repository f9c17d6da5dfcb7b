"""What `forward` takes and returns, read from its annotations.

Typed formats decode by it, and the OpenAPI document describes it. With batching `forward` takes a list of items, and
one body holds one item: `list[T]` is unwrapped to `T`.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Union

from mosec_asgi.errors import DefinitionError

_UNIONS = (Union, types.UnionType)
_BATCHES = (
    list,
    tuple,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Collection,
    collections.abc.Iterable,
)


def forward_input_type(worker: type[Any], batched: bool) -> Any:
    """Return the type of one item that a worker's `forward` takes.

    Args:
        worker: the class.
        batched: `forward` takes lists of items.

    Returns:
        the annotation of `forward`'s argument, unwrapped from its list with batching; `Any` where there is none.

    Raises:
        DefinitionError: the annotation names what cannot be found, or is no list with batching.
    """
    name = _argument(worker)
    annotation = Any if name is None else _annotation(worker, name)
    return _item(worker, annotation, f"annotate its argument as `{name}: {{}}`") if batched else annotation


def forward_return_type(worker: type[Any], batched: bool) -> Any:
    """Return the type of one result of a worker's `forward`.

    Args:
        worker: the class.
        batched: `forward` returns lists of results.

    Returns:
        the annotation of what `forward` returns, unwrapped from its list with batching and without the exceptions that
        may stand in a result's place; `Any` where there is none.

    Raises:
        DefinitionError: the annotation names what cannot be found, or is no list with batching.
    """
    annotation = _annotation(worker, "return")
    if batched:
        annotation = _item(worker, annotation, "annotate what it returns as `-> {}`")
    return _without_exceptions(annotation)


def single_item_annotation(worker: type[Any]) -> tuple[str, str]:
    """Return the argument of a worker's `forward` and its annotation, where that is one item for sure, and no batch.

    Returns:
        the argument's name and its annotation as text; both empty where the annotation says nothing, cannot be read, or
        may be that of a batch.
    """
    try:
        name = _argument(worker)
        annotation = Any if name is None else _annotation(worker, name)
    # A `forward` that is no plain function may have no signature.
    except (DefinitionError, TypeError, ValueError):
        return "", ""
    return (name, inspect.formatannotation(annotation)) if name and _is_one_item(annotation) else ("", "")


def _is_one_item(annotation: Any) -> bool:
    """Whether no list fits an annotation: text, a number, a mapping, a model, a dataclass, or a union of those."""
    while typing.get_origin(annotation) is Annotated or hasattr(annotation, "__value__"):
        annotation = getattr(annotation, "__value__", None) or annotation.__origin__
    origin = typing.get_origin(annotation)
    if origin in _UNIONS:
        return all(map(_is_one_item, typing.get_args(annotation)))
    kind = origin or annotation
    if kind is types.NoneType or typing.is_typeddict(kind):
        return True
    if not isinstance(kind, type):
        return False
    if issubclass(kind, (str, bytes, bytearray, int, float, complex, collections.abc.Mapping)):
        return True
    described = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__struct_fields__")
    # A root model of pydantic may be a list.
    return described or (hasattr(kind, "model_fields") and not getattr(kind, "__pydantic_root_model__", False))


def _forward(worker: type[Any]) -> tuple[type[Any], Any]:
    """Return the class that defines a worker's `forward`, and it as it stands there."""
    owner = next(base for base in worker.__mro__ if "forward" in vars(base))
    return owner, vars(owner)["forward"]


def _function(member: Any) -> Callable[..., Any]:
    """Return the function inside of a method's decorators."""
    function: Callable[..., Any] = inspect.unwrap(getattr(member, "__func__", member))
    return function


def _argument(worker: type[Any]) -> str | None:
    """Return the name of the argument of `forward` that takes the data; None if it has no name of its own."""
    _, member = _forward(worker)
    names = [
        parameter.name
        for parameter in inspect.signature(_function(member)).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    place = 0 if isinstance(member, staticmethod) else 1
    return names[place] if len(names) > place else None


def _annotation(worker: type[Any], name: str) -> Any:
    """Return one annotation of `forward`, whatever the others are; a string is evaluated where it stands."""
    owner, member = _forward(worker)
    function = _function(member)
    try:
        written = inspect.get_annotations(function).get(name, Any)
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__={name: written}),
            getattr(function, "__globals__", {}),
            dict(vars(owner)),
            include_extras=True,
        )[name]
    # The annotation is the user's expression: it may raise anything.
    except Exception as error:
        raise DefinitionError(
            f"the annotations of {owner.__qualname__}.forward cannot be read: {error}; the types that they name must "
            f"be defined or imported in the module {owner.__module__} itself, and not under TYPE_CHECKING"
        ) from error


def _item(worker: type[Any], annotation: Any, remedy: str) -> Any:
    """Return the type of an item of a batch."""
    # `type Batch = list[T]` and `Annotated[list[T], ...]` are lists all the same.
    while typing.get_origin(annotation) is Annotated or hasattr(annotation, "__value__"):
        annotation = getattr(annotation, "__value__", None) or annotation.__origin__
    if annotation in (Any, object, list, tuple, typing.List, typing.Tuple):  # noqa: UP006 - as users write them
        return Any
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in _BATCHES and (len(arguments) == 1 or arguments[1:] == (...,)):
        return arguments[0]
    written = inspect.formatannotation(annotation)
    raise DefinitionError(
        f"{worker.__qualname__}.forward has max_batch_size > 1, so that it takes and returns lists, but one is "
        f"annotated as `{written}`; {remedy.format(f'list[{written}]')}"
    )


def _without_exceptions(annotation: Any) -> Any:
    """Return a union without its exceptions: they are answered as errors and are no results."""
    if typing.get_origin(annotation) not in _UNIONS:
        return annotation
    kinds = [
        kind for kind in typing.get_args(annotation) if not (isinstance(kind, type) and issubclass(kind, BaseException))
    ]
    return functools.reduce(operator.or_, kinds) if kinds else Any


def with_extended_typed_dicts(annotation: Any) -> Any:
    """Return an annotation with each `typing.TypedDict` as one of typing_extensions: pydantic wants it before 3.12."""
    import typing_extensions  # pydantic needs it as well

    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        make: Any = typing_extensions.TypedDict
        needed, other = typing_extensions.Required, typing_extensions.NotRequired
        fields = {}
        # With what `Annotated` says, such as bounds.
        for name, hint in typing.get_type_hints(annotation, include_extras=True).items():
            kind = typing.get_origin(hint)
            if kind in (needed, other):
                (hint,) = typing.get_args(hint)
            else:
                kind = needed if name in annotation.__required_keys__ else other
            fields[name] = kind[with_extended_typed_dicts(hint)]
        twin = make(annotation.__name__, fields)
        twin.__doc__ = annotation.__doc__
        return twin
    if typing.get_origin(annotation) is Annotated:
        inner, *metadata = typing.get_args(annotation)
        return Annotated[(with_extended_typed_dicts(inner), *metadata)]
    arguments = tuple(map(with_extended_typed_dicts, typing.get_args(annotation)))
    if not arguments or arguments == typing.get_args(annotation):
        return annotation
    if isinstance(annotation, types.UnionType):
        return functools.reduce(operator.or_, arguments)
    return annotation.copy_with(arguments) if hasattr(annotation, "copy_with") else annotation.__origin__[arguments]
