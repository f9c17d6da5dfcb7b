from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any

from mosec_asgi.fault_kind import MOST_CAUSES, kind_of
from mosec_asgi.formats import loads_json


def caught(function: Callable[..., Any], *args: Any) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fails(value: object, error: type[Exception] = ValueError) -> None:
    raise error(value)


def fails_elsewhere(value: object) -> None:
    raise ValueError(value)


def wraps(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except Exception as error:
        raise RuntimeError("it has failed") from error


def reads(text: str) -> None:
    json.loads(text)


def recurses(depth: int) -> None:
    if not depth:
        raise ValueError
    recurses(depth - 1)


def test_one_type_at_one_place_is_one_kind_whatever_it_says() -> None:
    assert kind_of(caught(fails, 1)) == kind_of(caught(fails, "x" * 1000))
    assert hash(kind_of(caught(fails, 1))) == hash(kind_of(caught(fails, 2)))


def test_another_type_or_another_place_is_another_kind() -> None:
    kinds = {kind_of(caught(fails, 1)), kind_of(caught(fails, 1, KeyError)), kind_of(caught(fails_elsewhere, 1))}
    assert len(kinds) == 3


def test_what_a_fault_was_raised_from_is_a_part_of_its_kind() -> None:
    assert kind_of(caught(wraps, fails, 1)) == kind_of(caught(wraps, fails, 2))
    assert kind_of(caught(wraps, fails, 1)) != kind_of(caught(wraps, fails_elsewhere, 1))
    # From Python 3.11 on.
    group = getattr(builtins, "ExceptionGroup", None)
    if group is not None:
        assert kind_of(group("", [caught(fails, 1)])) != kind_of(group("", [caught(fails_elsewhere, 1)]))


def test_the_place_is_the_innermost_line_of_the_users_code() -> None:
    # The library's lines differ with what it was given.
    kinds = [kind_of(caught(reads, text)) for text in ("", "{", '{"a"')]
    assert len(set(kinds)) == 1
    assert kinds[0].place.function == "reads"
    assert str(kinds[0].place).startswith(__file__[-200:])


def test_how_deep_it_was_raised_makes_no_other_kind() -> None:
    assert kind_of(caught(recurses, 3)) == kind_of(caught(recurses, 300))


def test_what_was_never_raised_or_only_by_a_library_or_by_us_has_a_kind_too() -> None:
    assert kind_of(ValueError(1)) == kind_of(ValueError(2)) != kind_of(KeyError())
    assert str(kind_of(ValueError()).place) == "no line of code"
    for function, argument in ((json.loads, "{"), (loads_json, b"{")):
        error = caught(function, argument)
        assert error.__traceback__ is not None
        # Without the line of this file.
        error.__traceback__ = error.__traceback__.tb_next
        place = kind_of(error).place
        assert place.line
        assert place.file != __file__


def test_a_long_chain_and_a_circle_end() -> None:
    one, other = ValueError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert len(kind_of(one).causes) == MOST_CAUSES


class Odd(Exception):
    """Has attributes that cannot be read."""

    @property
    def exceptions(self) -> object:
        raise ArithmeticError


def test_an_exception_that_cannot_be_looked_at_has_a_kind_by_its_type() -> None:
    assert kind_of(Odd()) == kind_of(Odd()) != kind_of(ValueError())
