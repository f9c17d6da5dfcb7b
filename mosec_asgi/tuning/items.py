"""The sample: items as the service's calls bring them, from a file."""

from __future__ import annotations

import itertools
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


def _first(lines: Iterator[Line]) -> Iterator[Line]:
    size = 0
    for line in itertools.islice(lines, MOST_ITEMS):
        size += line.size
        if size > MOST_BYTES:
            return
        yield line
