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
    pyarrow = libraries.pyarrow("pyarrow")
    kind = _common_type(pyarrow, records)
    if kind is not None:
        try:
            _write_parquet(records, target, kind)
            return
        # Not all values have a form in it: an integer beside fractions may be too large for one.
        except (pyarrow.ArrowException, OverflowError) as error:
            # Some of pyarrow's are errors of the system as well, such as a full disk.
            if isinstance(error, OSError):
                raise
    _write_parquet(records, target, None)


def _write_parquet(records: Path, target: Path, kind: Any) -> None:
    """Write Parquet with a type of values; with None as JSON."""
    pyarrow, parquet = libraries.pyarrow("pyarrow"), libraries.pyarrow("pyarrow.parquet")
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
            while chunk := [_loaded(text) for text in islice(rows, ROWS)]:
                yield [row["line"] for row in chunk], [row["output"] for row in chunk]


def _loaded(record: bytes) -> Any:
    value = json.loads(record)
    # Half of a surrogate pair, which JSON can write and no table can.
    return _as_unicode(value) if b"\\ud" in record else value


def _as_unicode(value: Any) -> Any:
    """Return a value whose texts are Unicode: what is not stands there as JSON has written it."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_as_unicode(each) for each in value]
    if isinstance(value, dict):
        return {_as_unicode(name): _as_unicode(each) for name, each in value.items()}
    return value


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
