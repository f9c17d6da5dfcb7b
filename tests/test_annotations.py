from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, List, Optional, Tuple, Union  # noqa: UP035 - as users write them

import pytest

from mosec_asgi import ValidationError, Worker
from mosec_asgi.annotations import forward_input_type, forward_return_type
from mosec_asgi.errors import DefinitionError

if TYPE_CHECKING:
    from fractions import Fraction

# Methods of workers; the annotations of this module are strings.


def no_annotation(self, data):  # type: ignore[no-untyped-def]
    ...


def plain(self: Any, data: int) -> str: ...


def lists(self: Any, data: list[int]) -> list[str]: ...


def typing_lists(self: Any, data: List[int]) -> List[str]: ...  # noqa: UP006


def sequences(self: Any, data: Sequence[int]) -> Sequence[str]: ...


def tuples(self: Any, data: tuple[int, ...]) -> Tuple[str, ...]: ...  # noqa: UP006


def annotated(self: Any, data: Annotated[list[Annotated[int, "positive"]], "few"]) -> Annotated[str, "short"]: ...


def bare(self: Any, data: list) -> List: ...  # noqa: UP006


def with_exceptions(self: Any, data: list[int]) -> list[int | str | ValidationError]: ...


def old_unions(self: Any, data: Optional[int]) -> Union[int, Exception, None]: ...  # noqa: UP007, UP045


def quoted(self: Any, data: "list[Item]") -> "Item": ...  # noqa: UP037


def another_name(self: Any, item: int, more: str = "") -> None: ...


def only_more(self: Any, *data: int) -> Any: ...


def lost(self: Any, data: list[Fraction]) -> int: ...


class Item: ...


def worker_of(forward: Any) -> type[Worker]:
    return type("Named", (Worker,), {"forward": forward})


@pytest.mark.parametrize(
    ("forward", "batched", "takes", "returns"),
    [
        (no_annotation, False, Any, Any),
        (no_annotation, True, Any, Any),
        (plain, False, int, str),
        (lists, False, list[int], list[str]),
        (lists, True, int, str),
        (typing_lists, True, int, str),
        (sequences, True, int, str),
        (tuples, True, int, str),
        (bare, True, Any, Any),
        (with_exceptions, True, int, int | str),
        (old_unions, False, Optional[int], Optional[int]),  # noqa: UP045
        (quoted, False, list[Item], Item),
        (another_name, False, int, type(None)),
        (only_more, False, Any, Any),
        (staticmethod(lambda data: data), False, Any, Any),
    ],
)
def test_what_forward_takes_and_returns(forward: Callable[..., Any], batched: bool, takes: Any, returns: Any) -> None:
    worker = worker_of(forward)
    assert forward_input_type(worker, batched) == takes
    assert forward_return_type(worker, batched) == returns


def test_what_is_said_of_an_item_is_kept_and_what_is_said_of_its_batch_is_not() -> None:
    worker = worker_of(annotated)
    assert forward_input_type(worker, True) == Annotated[int, "positive"]
    assert forward_input_type(worker, False) == Annotated[list[Annotated[int, "positive"]], "few"]
    assert forward_return_type(worker, False) == Annotated[str, "short"]


def test_an_inherited_forward_counts_and_one_that_is_overridden_does_not() -> None:
    class Base(Worker):
        def forward(self, data: int) -> str: ...

    class Same(Base): ...

    class Other(Base):
        def forward(self, data: Any) -> bytes: ...

    assert (forward_input_type(Same, False), forward_return_type(Same, False)) == (int, str)
    assert (forward_input_type(Other, False), forward_return_type(Other, False)) == (Any, bytes)


def test_a_type_inside_of_the_class_is_found() -> None:
    class Outer(Worker):
        class Inner: ...

        def forward(self, data: Inner) -> list[Inner]: ...

    assert forward_input_type(Outer, False) is Outer.Inner
    assert forward_return_type(Outer, True) is Outer.Inner


def test_a_decorated_forward_is_seen_through() -> None:
    import functools

    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        def around(*arguments: Any) -> Any:
            return function(*arguments)

        return around

    assert forward_input_type(worker_of(decorated(plain)), False) is int


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type statements came with Python 3.12")
def test_a_type_statement_is_a_list_all_the_same() -> None:
    space: dict[str, Any] = {}
    exec("type Batch = list[int]\ndef forward(self, data: Batch) -> Batch: ...", space)
    assert forward_input_type(worker_of(space["forward"]), True) is int
    assert forward_return_type(worker_of(space["forward"]), True) is int


@pytest.mark.parametrize("annotation", [int, dict[str, int], Item, tuple[int, str], Optional[list[int]], str], ids=str)  # noqa: UP045
def test_with_batching_anything_but_a_list_is_told_with_what_to_write(annotation: Any) -> None:
    def forward(self: Any, items: Any) -> Any: ...

    forward.__annotations__ = {"items": annotation, "return": annotation}
    with pytest.raises(DefinitionError, match=r"^Named.forward .* annotate its argument as `items: list\["):
        forward_input_type(worker_of(forward), True)
    with pytest.raises(DefinitionError, match=r"^Named.forward .* annotate what it returns as `-> list\["):
        forward_return_type(worker_of(forward), True)


def test_a_type_that_cannot_be_found_is_told_and_harms_no_other() -> None:
    worker = worker_of(lost)
    with pytest.raises(
        DefinitionError, match=r"Named.forward cannot be read: name 'Fraction' is not defined; .*TYPE_CHECKING"
    ):
        forward_input_type(worker, True)
    assert forward_return_type(worker, False) is int
