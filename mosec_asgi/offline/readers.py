"""The input: JSON lines, CSV or Parquet as lines, each with its number; never more of it in memory than is in hand."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from mosec_asgi.offline import libraries
from mosec_asgi.offline.faults import Halted, WrongUse
from mosec_asgi.offline.records import Line

# Bytes of a line, or of a field of CSV; a longer one fails by itself.
MOST_LINE_BYTES = 64 * 1024 * 1024
# Rows of Parquet that are decoded at a time.
ROWS = 256
# Bytes at both ends of a file by which it is known again.
FINGERPRINT_BYTES = 64 * 1024
STDIN = "-"
_MARK = b"\xef\xbb\xbf"
_SKIP_BYTES = 1024 * 1024
# A line behind the last one of CSV, which shows whether a quote is still open there; no text has such characters.
_BEHIND_CSV = "\udfff"


class Reader(Protocol):
    """Reads an input once.

    Attributes:
        total: its size, in the unit of `Line.size`; None where it is not known.
    """

    total: int | None

    def lines(self) -> Iterator[Line]:
        """Yield the lines."""


class JsonLines:
    """A line is a JSON value. Lines without anything are left out, and count."""

    def __init__(self, file: BinaryIO, total: int | None) -> None:
        """Read the first line, by which the form of all is known.

        Args:
            file: at its beginning.
            total: its size in bytes.
        """
        self._file = file
        self.total = total
        self.first = b""

    def peek(self) -> bytes:
        """Return the first line, which is read once more by `lines`."""
        self.first = self._file.readline(MOST_LINE_BYTES + 1)
        return self.first.removeprefix(_MARK).strip()

    def lines(self) -> Iterator[Line]:
        """Yield the lines."""
        raw = self.first or self._file.readline(MOST_LINE_BYTES + 1)
        self.first = b""
        for number in itertools.count(1):
            if not raw:
                return
            size = len(raw)
            if number == 1:
                raw = raw.removeprefix(_MARK)
            if size > MOST_LINE_BYTES and not raw.endswith(b"\n"):
                size += self._skip()
                yield Line(number, size, b"", fault=f"the line has more than {MOST_LINE_BYTES} bytes")
            elif text := raw.strip():
                yield Line(number, size, text)
            raw = self._file.readline(MOST_LINE_BYTES + 1)

    def _skip(self) -> int:
        """Read the rest of a line; return its size."""
        size = 0
        while part := self._file.readline(_SKIP_BYTES):
            size += len(part)
            if part.endswith(b"\n"):
                break
        return size


class CsvRows:
    """A row is a dictionary by the names in the first one; all values are texts. Numbered without the first one."""

    def __init__(self, file: BinaryIO, total: int | None) -> None:
        """Prepare; nothing is read.

        Args:
            file: at its beginning.
            total: its size in bytes.
        """
        self._file = file
        self.total = total
        self._size = 0
        self._is_text = True

    def lines(self) -> Iterator[Line]:
        """Yield the rows."""
        csv.field_size_limit(MOST_LINE_BYTES)
        rows = csv.reader(itertools.chain(self._decoded(), [_BEHIND_CSV]))
        number = 0
        try:
            names = next(rows)
            if names == [_BEHIND_CSV]:
                return
            _check_names(names)
            for number, row in enumerate(rows, 1):
                if row == [_BEHIND_CSV]:
                    return
                # A line with nothing on it.
                if row:
                    yield self._line(number, names, row)
        except csv.Error as error:
            raise Halted(f"the CSV cannot be read behind row {number}, about line {rows.line_num}: {error}") from error

    def _decoded(self) -> Iterator[str]:
        for number in itertools.count():
            raw = self._file.readline(MOST_LINE_BYTES + 1)
            if not raw:
                return
            if len(raw) > MOST_LINE_BYTES and not raw.endswith(b"\n"):
                raise csv.Error(f"the line has more than {MOST_LINE_BYTES} bytes")
            self._size += len(raw)
            text = raw.removeprefix(_MARK) if not number else raw
            try:
                yield text.decode()
            except UnicodeDecodeError:
                self._is_text = False
                yield text.decode(errors="replace")

    def _line(self, number: int, names: list[str], row: list[str]) -> Line:
        size, self._size = self._size, 0
        is_text, self._is_text = self._is_text, True
        value: Any = dict(zip(names, row, strict=False))
        fault = "" if is_text else "the row is not UTF-8"
        if row[-1].endswith(_BEHIND_CSV):
            fault, value = "a quote is not closed: the row goes on to the end of the file", row
            row[-1] = row[-1].removesuffix(_BEHIND_CSV)
        elif len(row) != len(names):
            fault, value = f"the row has {len(row)} values, and the first row {len(names)} names", row
        return Line(number, size, None, value, fault)


def _check_names(names: list[str]) -> None:
    """Refuse a first row that does not end, or has a name twice: a row would lose a value; raises `WrongUse`."""
    if names and names[-1].endswith(_BEHIND_CSV):
        raise WrongUse("a quote in the first row of the CSV is not closed")
    # Programs write commas behind the last column, where nothing is.
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise WrongUse(f"the first row of the CSV names the column {twice[:100]!r} twice; give each a name of its own")


class ParquetRows:
    """A row is a dictionary by the names of the columns."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        """Read what the file says of itself.

        Args:
            file: open for reading.
            path: its name.

        Raises:
            WrongUse: pyarrow is not there, or cannot read it.
        """
        parquet = libraries.pyarrow("pyarrow.parquet")
        try:
            self._file = parquet.ParquetFile(file)
        # Of pyarrow's own classes.
        except Exception as error:
            raise WrongUse(f"{path} cannot be read as Parquet: {error}") from error
        self.total: int | None = self._file.metadata.num_rows

    def lines(self) -> Iterator[Line]:
        """Yield the rows."""
        number = 0
        batches = self._file.iter_batches(batch_size=ROWS)
        while True:
            try:
                batch = next(batches, None)
            # Of pyarrow's own classes.
            except Exception as error:
                raise Halted(f"the Parquet cannot be read behind row {number}: {error}") from error
            if batch is None:
                return
            for row in batch.to_pylist():
                number += 1
                yield Line(number, 1, None, row)


@contextlib.contextmanager
def open_input(path: str, kind: str) -> Iterator[JsonLines | CsvRows | ParquetRows]:
    """Open an input for the time of a block.

    Args:
        path: a file, or `-` for standard input.
        kind: jsonl, csv or parquet.

    Raises:
        WrongUse: it cannot be opened.
    """
    if kind == "parquet" and path == STDIN:
        raise WrongUse("Parquet is read from its end, which standard input does not have: name a file")
    with contextlib.ExitStack() as exits:
        file: BinaryIO = sys.stdin.buffer
        total = None
        if path != STDIN:
            try:
                file = exits.enter_context(open(path, "rb"))
            except OSError as error:
                raise WrongUse(f"the input {path} cannot be read: {error.strerror}") from error
            status = os.fstat(file.fileno())
            # A pipe in the place of a file has no size.
            total = status.st_size if stat.S_ISREG(status.st_mode) else None
        if kind == "parquet":
            yield ParquetRows(file, path)
        else:
            yield CsvRows(file, total) if kind == "csv" else JsonLines(file, total)


def can_be_read_twice(path: str) -> bool:
    """Whether an input is a file, and no pipe; what is not there is refused elsewhere."""
    return path != STDIN and (os.path.isfile(path) or not os.path.exists(path))


def fingerprint(path: str) -> dict[str, Any] | None:
    """Return by what a file is known again: its size, and a hash of both its ends; None where it is no regular file."""
    if not can_be_read_twice(path):
        return None
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        seen = hashlib.blake2b(file.read(FINGERPRINT_BYTES), digest_size=16)
        file.seek(max(0, status.st_size - FINGERPRINT_BYTES))
        seen.update(file.read(FINGERPRINT_BYTES))
    return {"size": status.st_size, "hash": seen.hexdigest()}
