"""The settings that editors know are those that there are."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from mosec_asgi import config, runtime
from mosec_asgi.keywords import Keywords

HINTS = typing.get_type_hints(Keywords)


def expected(setting: str) -> Any:
    """Return the type that a setting is to have, by what is said of it."""
    field = config.FIELDS[setting]
    choices, members = field.metadata["choices"], field.metadata["members"]
    if field.metadata["is_list"]:
        return str | Sequence[Literal[members] if members else str]
    return Literal[choices] if choices else type(field.default)


def test_they_have_the_names_of_the_settings_in_their_order() -> None:
    assert list(HINTS) == list(config.FIELDS)


@pytest.mark.parametrize("setting", config.FIELDS)
def test_each_has_the_type_of_its_setting(setting: str) -> None:
    assert HINTS[setting] == expected(setting)


def test_the_arguments_of_a_stage_with_few_values_name_them_all() -> None:
    assert typing.get_args(runtime.StartMethod) == runtime.START_METHODS
    assert typing.get_args(runtime.Method) == runtime.METHODS
