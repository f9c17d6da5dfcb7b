"""`mosec-asgi openapi`: writes, or checks, a service's OpenAPI document."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

import click

from mosec_asgi.cli.faults import UsageError
from mosec_asgi.cli.loading import load_server, server_arguments


@click.command("openapi")
@server_arguments
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it there instead of printing it."
)
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write nothing; exit with 1 where FILE holds anything else.",
)
def command(server: str, app_dir: str, output: Path | None, check: Path | None) -> int:
    """Print a service's OpenAPI document, write it to a file, or check that a file still holds it.

    The service is imported, not run.
    """
    if output is not None and check is not None:
        raise UsageError("--output and --check exclude each other: one writes the file, the other only looks at it")
    document = load_server(server, app_dir).openapi()
    if check is not None:
        return _check(document, check, server, app_dir)
    text = _text_of(document)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
    return 0


def _check(document: dict[str, Any], file: Path, server: str, app_dir: str) -> int:
    """Compare as documents, so that another order or indentation is no difference."""
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
        for line in difflib.unified_diff(before, _text_of(document).splitlines(), str(file), server, lineterm="")
    )
    folder = "" if app_dir == "." else f" --app-dir {app_dir}"
    print(
        f"{file} is not the document of {server}. If the change is meant, write it anew and review it:\n"
        f"    mosec-asgi openapi {server}{folder} --output {file}",
        file=sys.stderr,
    )
    return 1


def _text_of(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
