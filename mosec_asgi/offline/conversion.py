"""Records as CSV or Parquet, made at the end of a run; what is there in the meantime can be gone on with."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mosec_asgi.offline import libraries
from mosec_asgi.offline.faults import Halted

# Records, and bytes of them, that are in memory at a time.
ROWS = 10_000
BYTES = 16 * 1024 * 1024


def convert(records: Path, output: Path, kind: str) -> None:
    """Write records as a table of two columns, `line` and `output`, and remove them.

    Args:
        records: a file of JSON lines; none where there was no result.
        output: appears as a whole, or not at all.
        kind: csv or parquet.

    Raises:
        Halted: it cannot be written.
    """
    part = output.with_name(f"{output.name}.part")
    try:
        (to_csv if kind == "csv" else to_parquet)(records, part)
        os.replace(part, output)
    except OSError as error:
        raise Halted(f"{output} cannot be written: {error.strerror or error}") from error


def to_csv(records: Path, target: Path) -> None:
    """Write CSV: a text as it is, anything else as JSON."""
    with open(target, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["line", "output"])
        for lines, values in _chunks(records):
            rows.writerows(zip(lines, map(_cell, values), strict=True))


def to_parquet(records: Path, target: Path) -> None:
    """Write Parquet, with the type that all values have together; as JSON where they have none."""
    pyarrow, parquet = libraries.pyarrow("pyarrow"), libraries.pyarrow("pyarrow.parquet")
    kind = _common_type(pyarrow, records)
    schema = pyarrow.schema([("line", pyarrow.int64()), ("output", pyarrow.string() if kind is None else kind)])
    with parquet.ParquetWriter(target, schema) as writer:
        for lines, values in _chunks(records):
            texts = [json.dumps(value, ensure_ascii=False) for value in values] if kind is None else values
            writer.write_table(pyarrow.table({"line": lines, "output": texts}, schema))


def _common_type(pyarrow: Any, records: Path) -> Any:
    """Return the type of all values; None where they have none in common."""
    common = pyarrow.null()
    try:
        for _, values in _chunks(records):
            both = [pyarrow.schema([("output", kind)]) for kind in (common, pyarrow.array(values).type)]
            common = pyarrow.unify_schemas(both, promote_options="permissive").field("output").type
    except (pyarrow.ArrowException, OverflowError):
        return None
    # A dictionary without any key has no form in Parquet.
    return None if pyarrow.types.is_struct(common) and not common.num_fields else common


def _chunks(records: Path) -> Iterator[tuple[list[int], list[Any]]]:
    """Yield the columns of some records at a time."""
    if not records.exists():
        return
    with open(records, "rb") as file:
        while texts := file.readlines(BYTES):
            rows = iter(texts)
            while chunk := [json.loads(text) for text in islice(rows, ROWS)]:
                yield [row["line"] for row in chunk], [row["output"] for row in chunk]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
