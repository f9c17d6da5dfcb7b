"""`Worker[In, Out]` is for type checkers: where a program runs, it changes nothing."""

from __future__ import annotations

import inspect
import pickle
import typing
from collections.abc import Iterator
from typing import Generic, TypeVar

import pytest

from mosec_asgi import ContinuousWorker, Runtime, SSEWorker, Worker
from mosec_asgi.errors import DefinitionError
from mosec_asgi.mixin import MsgpackMixin

T = TypeVar("T")


class Upper(Worker[str, str]):
    def forward(self, data: str) -> str:
        return data.upper()


class Echo(Worker[T, T]):
    def forward(self, data: T) -> T:
        return data


class Before(Generic[T], Worker):
    """As users could write before a worker had parameters."""

    def forward(self, data: T) -> T:
        return data


class Packed(MsgpackMixin, SSEWorker[str, bytes]):
    def forward(self, data: str) -> Iterator[bytes]:
        yield data.encode()


@pytest.mark.parametrize("kind", [Worker, SSEWorker, ContinuousWorker, Echo])
def test_a_class_with_its_types_is_that_class(kind: type[Worker]) -> None:
    assert typing.get_origin(kind[str, str]) is kind
    assert kind[str, str].__args__ == (str, str)


@pytest.mark.parametrize("kind", [Worker, SSEWorker, ContinuousWorker, Upper, Echo, Packed])
def test_no_generic_is_among_its_bases(kind: type[Worker]) -> None:
    assert Generic not in kind.__mro__


@pytest.mark.parametrize("kind", [Upper, Echo, Echo[str], Before, Before[str], Packed])
def test_a_worker_with_types_can_be_pickled_made_and_appended(kind: type[Worker]) -> None:
    known = typing.get_origin(kind) or kind
    assert pickle.loads(pickle.dumps(known)) is known
    assert Runtime(kind).worker is known
    assert isinstance(kind(), known)


def test_a_worker_with_types_has_to_define_forward() -> None:
    class Empty(Worker[str, str]):
        pass

    assert inspect.isabstract(Empty)
    with pytest.raises(DefinitionError, match="does not define forward"):
        Runtime(Empty)


def test_what_is_no_worker_is_refused_with_types_as_well() -> None:
    with pytest.raises(DefinitionError, match="is no worker"):
        Runtime(list[str])
