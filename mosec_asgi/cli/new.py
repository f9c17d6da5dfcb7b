"""`mosec-asgi new`: a small service to start from, with its test, as files of `templates`."""

from __future__ import annotations

import json
import re
import string
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import click

from mosec_asgi.cli.faults import CommandError, UsageError
from mosec_asgi.cli.output import STRONG, output
from mosec_asgi.version import __version__

# What the name of an image may be, so that the commands of the README work.
_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
# By their names in the new folder.
FILES = ("app.py", "test_app.py", "requirements.txt", "Dockerfile", "README.md", ".gitignore")


@click.command("new")
@click.argument("name", metavar="NAME")
def command(name: str) -> int:
    """Make a folder NAME with a small service, its test, a Dockerfile and a README.

    The folder may be there already, if it is empty.
    """
    folder = Path(name)
    title = folder.resolve().name
    if not _NAME.fullmatch(title.lower()):
        raise UsageError(f"{title!r} is no name for a service: use letters and digits, with -, _ or . between them")
    texts = render(title)
    _write(folder, texts)
    out = output()
    out.line(f"{folder} has a service to start from:", STRONG)
    for file in texts:
        out.line(f"  {folder / file}")
    out.line("next:")
    out.line(f"  cd {folder} && pip install pytest httpx && pytest")
    out.line("  mosec-asgi serve app:server --reload")
    return 0


def render(title: str) -> dict[str, str]:
    """Return the files of a new service, by name.

    Args:
        title: of the service.
    """
    values = {
        "title": title,
        "name": title.lower(),
        "requirement": requirement(_origin()),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    folder = resources.files("mosec_asgi.cli") / "templates"
    return {
        name: string.Template((folder / f"{name.lstrip('.')}.template").read_text("utf-8")).substitute(values)
        for name in FILES
    }


def requirement(origin: dict[str, Any]) -> str:
    """Return what requirements.txt says of this package, so that it is found again where this one came from.

    Args:
        origin: the package's `direct_url.json` (PEP 610); empty where it came from an index.
    """
    url = str(origin.get("url", ""))
    if not url:
        return f"mosec-asgi[cli]>={__version__}"
    vcs = origin.get("vcs_info")
    if vcs:
        return f"mosec-asgi[cli] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    if not url.startswith("file:"):
        return f"mosec-asgi[cli] @ {url}"
    return (
        "# From this machine. An image cannot read that: put the wheel beside this file, and replace the line by\n"
        f"# ./mosec_asgi-{__version__}-py3-none-any.whl[cli]\n"
        f"mosec-asgi[cli] @ {url}"
    )


def _origin() -> dict[str, Any]:
    try:
        text = metadata.distribution("mosec-asgi").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write files into a folder that is empty, or is not there; leave nothing where that is not possible."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"the folder {folder} is not empty; choose another name, or empty it")
    made = not folder.exists()
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                written.append(folder / name)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        if made and folder.is_dir():
            folder.rmdir()
        raise CommandError(f"{folder} cannot be made: {error.strerror}; choose another place") from error
