"""MODULE:SERVER, and the server that it names."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, TypeVar

import click

from mosec_asgi.cli.faults import BrokenModule, UsageError
from mosec_asgi.errors import DefinitionError
from mosec_asgi.server import Server

F = TypeVar("F", bound=Callable[..., Any])


def server_arguments(function: F) -> F:
    """Add to a command the arguments `server` and `app_dir`, which `load_server` takes."""
    folder = click.option(
        "--app-dir", default=".", metavar="DIR", help="Folder to import from (default: the current one)."
    )
    return click.argument("server", metavar="MODULE:SERVER")(folder(function))


def load_server(path: str, folder: str) -> Server:
    """Import a module and return the server in it.

    Args:
        path: `module:server`, as uvicorn takes it.
        folder: where to look for the module first.

    Raises:
        UsageError: there is no such module, or no such server in it.
        BrokenModule: the module cannot be imported.
    """
    name, _, attribute = path.partition(":")
    if attribute and "/" in name:
        raise UsageError(_of_file(name, attribute))
    if not name or not attribute or name.startswith("."):
        raise UsageError(f"{path!r} must be MODULE:SERVER, as in app:server")
    sys.path.insert(0, str(Path(folder).resolve()))
    module = _imported(name, attribute, folder)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            servers = [key for key, value in vars(module).items() if isinstance(value, Server)]
            hint = (
                f"it has {', '.join(f'{name}:{key}' for key in servers)}"
                if servers
                else "it has no server at all: define one at its top level, as in server = Server()"
            )
            raise UsageError(f"the module {name!r} has no {attribute!r}; {hint}")
        found = getattr(found, part)
    if not isinstance(found, Server):
        raise UsageError(f"{path} is of type {type(found).__name__}, and not a mosec_asgi.Server")
    return found


def _of_file(name: str, attribute: str) -> str:
    """Say what to write in the place of the path of a file."""
    file = PurePath(name)
    where = f" --app-dir {file.parent}" if len(file.parts) > 1 else ""
    return (
        f"{name!r} is no name of a module, but the path of a file; write "
        f"{file.name.removesuffix('.py')}:{attribute}{where}"
    )


def _imported(name: str, attribute: str, folder: str) -> ModuleType:
    Server._only_imported = True
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only where it is the module itself that is missing; what it fails to import is another fault.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            if name.endswith(".py"):
                raise UsageError(_of_file(name, attribute)) from None
            raise UsageError(f"there is no module {name!r} in {folder!r}; name its folder with --app-dir") from None
        raise _broken(name, error) from error
    except DefinitionError:
        # Its text says what to change.
        raise
    except Exception as error:
        raise _broken(name, error) from error
    finally:
        Server._only_imported = False


def _broken(name: str, error: Exception) -> BrokenModule:
    trace = traceback.TracebackException.from_exception(error)
    kept = [frame for frame in trace.stack if not _is_of_import(frame.filename)]
    trace.stack = traceback.StackSummary.from_list(kept)
    return BrokenModule(
        f"the module {name!r} cannot be imported: {_first_line(error)}; the lines above say where",
        "".join(trace.format()),
    )


def _is_of_import(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
