"""The settings of a service as options of a command. What they are, and what fits, says `config`, and nothing here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from mosec_asgi.config import FIELDS, FLAGS

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(*, without: frozenset[str] = frozenset()) -> Callable[[F], F]:
    """Add an option for each setting; the command takes them as keywords, see `given`.

    Args:
        without: settings that make no sense for the command.
    """

    def add(function: F) -> F:
        # The last one that is added stands first.
        for name in reversed(FLAGS):
            if name not in without:
                function = _option(name)(function)
        return function

    return add


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, by name, as `config.resolve` takes them."""
    return {name: value for name, value in options.items() if name in FLAGS and value is not None}


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return the arguments that give these settings."""
    arguments = []
    for name, value in settings.items():
        if isinstance(value, bool):
            arguments.append(FLAGS[name] if value else "--no-" + FLAGS[name][2:])
        else:
            arguments.append(f"{FLAGS[name]}={value}")
    return arguments


def _option(name: str) -> Callable[[F], F]:
    field, flag = FIELDS[name], FLAGS[name]
    text = f"{field.metadata['help']} (default: {_shown(field.default)})"
    text = text[0].upper() + text[1:]
    if isinstance(field.default, bool):
        flags = f"{flag}/--no-{flag[2:]}"
        return click.option(flags, name, default=None, help=text)
    choices = field.metadata["choices"]
    # Checked by `config`, which says what is wrong, in what unit, and where it was given. Shells complete a path.
    kind = click.Choice(choices) if choices else click.Path() if name in _FILES else click.STRING
    return click.option(flag, name, type=kind, default=None, help=text, metavar=None if choices else _metavar(name))


_FILES = frozenset({"ssl_certfile", "ssl_keyfile", "uds", "path"})


def _metavar(name: str) -> str:
    """Return what kind of value an option takes; a setting's text begins with its unit."""
    if name in _FILES:
        return "FILE"
    if isinstance(FIELDS[name].default, int):
        return {"milliseconds": "MS", "bytes": "BYTES"}.get(FIELDS[name].metadata["help"].partition(" ")[0], "N")
    return "TEXT"


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default) if default != "" else "none"
