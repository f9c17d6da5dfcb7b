"""The sample: items as the service's calls bring them, from a file."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosec_asgi.errors import MosecError
from mosec_asgi.offline import readers
from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.offline.records import Line, Plain

# Items that are taken, from the beginning of the file, and bytes of their lines.
MOST_ITEMS = 256
MOST_BYTES = 256 * 1024 * 1024
_TABLES = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


def read(path: str, column: str | None = None) -> list[Any]:
    """Return the items of a file of JSON lines, CSV or Parquet, as `mosec-asgi map` reads it.

    Args:
        path: the file, or `-` for standard input.
        column: what of a line is the item; None for all of it.

    Raises:
        WrongUse: it cannot be read, has no item, or a line of it is none.
    """
    _check_ends(path)
    kind = _TABLES.get(Path(path).suffix.lower(), "jsonl")
    form = Plain(kind, "", column)
    items = []
    with readers.open_input(path, kind) as reader:
        for line in _first(reader.lines()):
            if line.fault:
                raise WrongUse(f"line {line.number} of {path}: {line.fault}")
            try:
                items.append(form.ask(line).item)
            except MosecError as error:
                raise WrongUse(f"line {line.number} of {path} is no item: {error}") from error
    if not items:
        raise WrongUse(f"{path} has no items: write one on each line, as clients send them")
    return items


def is_pipe(path: str) -> bool:
    """Whether a sample is a named pipe, whose reader waits for a writer."""
    try:
        return path != readers.STDIN and stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        # What cannot be read is refused by `read`.
        return False


def _check_ends(path: str) -> None:
    """Refuse a device, which may have no end; raises `WrongUse`."""
    if path != readers.STDIN and os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode):
        raise WrongUse(f"{path} is a device: name a file, or - for standard input")


def _first(lines: Iterator[Line]) -> Iterator[Line]:
    size = 0
    for line in itertools.islice(lines, MOST_ITEMS):
        size += line.size
        if size > MOST_BYTES:
            return
        yield line
