"""The command line.

mosec-asgi openapi module:server     writes, or checks, a service's OpenAPI document
mosec-asgi map module:server ...     runs a model over a file; see `offline`
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import DefinitionError
from mosec_asgi.offline import command as offline
from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.server import Server
from mosec_asgi.version import __version__


class UsageError(Exception):
    """The command line cannot be followed; the text says what to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        the exit status: 0, or what the command says, as 1 where a check found a difference. A wrong command line exits
        with 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    log.configure("warning", text=True)
    try:
        code: int = options.run(options)
    except (UsageError, WrongUse, DefinitionError) as error:
        parser.error(str(error))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mosec-asgi", description="Tools for model services.")
    parser.add_argument("--version", action="version", version=f"mosec-asgi {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    openapi = commands.add_parser(
        "openapi",
        help="print a service's OpenAPI document",
        description="Print a service's OpenAPI document, write it to a file, or check that a file still holds it. "
        "The service is imported, not run.",
    )
    _add_server(openapi)
    openapi.set_defaults(run=_openapi)
    target = openapi.add_mutually_exclusive_group()
    target.add_argument("--output", type=Path, metavar="FILE", help="write it there instead of printing it")
    target.add_argument(
        "--check", type=Path, metavar="FILE", help="write nothing; exit with 1 where FILE holds anything else"
    )
    mapping = commands.add_parser("map", help="run a model over a file")
    _add_server(mapping)
    offline.add_arguments(mapping)
    mapping.set_defaults(run=_map)
    return parser


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="MODULE:SERVER", help="where the server is, as in app:server")
    parser.add_argument("--app-dir", default=".", metavar="DIR", help="folder to import from (default: this one)")


def _map(options: argparse.Namespace) -> int:
    return offline.run(options, load_server(options.server, options.app_dir))


def _openapi(options: argparse.Namespace) -> int:
    document = load_server(options.server, options.app_dir).openapi()
    if options.check is not None:
        return _check(document, options)
    text = _text_of(document)
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


def _check(document: dict[str, Any], options: argparse.Namespace) -> int:
    """Compare as documents, so that another order or indentation is no difference."""
    file: Path = options.check
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{file} is no document: {error}", file=sys.stderr)
        there = None
    if there == document:
        return 0
    before = [] if there is None else _text_of(there).splitlines()
    sys.stdout.writelines(
        line + "\n"
        for line in difflib.unified_diff(
            before, _text_of(document).splitlines(), str(file), options.server, lineterm=""
        )
    )
    folder = "" if options.app_dir == "." else f" --app-dir {options.app_dir}"
    print(
        f"{file} is not the document of {options.server}. If the change is meant, write it anew and review it:\n"
        f"    mosec-asgi openapi {options.server}{folder} --output {file}",
        file=sys.stderr,
    )
    return 1


def _text_of(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def load_server(path: str, folder: str) -> Server:
    """Import a module and return the server in it.

    Args:
        path: `module:server`, as uvicorn takes it.
        folder: where to look for the module first.

    Raises:
        UsageError: there is no such module, or no such server in it.
    """
    name, _, attribute = path.partition(":")
    if not name or not attribute:
        raise UsageError(f"{path!r} must be MODULE:SERVER, as in app:server")
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only where it is the module itself that is missing; what it fails to import is another error.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UsageError(f"there is no module {name!r} in {folder!r}; name its folder with --app-dir") from None
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            servers = [key for key, value in vars(module).items() if isinstance(value, Server)]
            hint = f"it has {', '.join(f'{name}:{key}' for key in servers)}" if servers else "it has no server at all"
            raise UsageError(f"the module {name!r} has no {attribute!r}; {hint}")
        found = getattr(found, part)
    if not isinstance(found, Server):
        raise UsageError(f"{path} is of type {type(found).__name__}, and not a mosec_asgi.Server")
    return found
