"""Where records go. Each is written by one call to the system, at once: see `resume` for what that is good for."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from mosec_asgi.offline.faults import Halted

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Places:
    """The files of a run.

    Attributes:
        output: where the result is wanted.
        records: where records are written: the output itself, but for CSV and Parquet.
        errors: for the lines that fail.
        state: says which run these are of.
    """

    output: Path
    records: Path
    errors: Path
    state: Path

    @classmethod
    def of(cls, output: str, errors: str | None, *, converted: bool) -> Places:
        """Return the files beside an output.

        Args:
            output: its path.
            errors: of the file for errors; None for one beside it.
            converted: the output is made from the records at the end.
        """
        return cls(
            Path(output),
            Path(f"{output}.records.jsonl" if converted else output),
            Path(errors or f"{output}.errors.jsonl"),
            Path(f"{output}.run.json"),
        )

    def results(self) -> list[Path]:
        """Return those that a run fills, each once."""
        return list(dict.fromkeys((self.output, self.records, self.errors)))


class Sink(Protocol):
    """Takes records."""

    def append(self, record: bytes) -> None:
        """Write a record.

        Raises:
            Halted: it cannot be written.
        """

    def close(self) -> None:
        """Write no more."""


class RecordFile:
    """A file of records, at whose end more are written; it is made with the first of them."""

    def __init__(self, path: Path) -> None:
        """Prepare; nothing is made."""
        self._path = path
        self._file: FileIO | None = None

    def append(self, record: bytes) -> None:
        """Write a record."""
        try:
            if self._file is None:
                self._file = FileIO(self._path, "ab")
            _write(self._file, record)
        except OSError as error:
            raise Halted(f"{self._path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()


class StandardOutput:
    """Standard output, for records alone: what models print goes to standard error."""

    def __init__(self) -> None:
        """Take it, before any worker is started."""
        sys.stdout.flush()
        self._file = FileIO(os.dup(1), "wb")
        os.dup2(2, 1)

    def append(self, record: bytes) -> None:
        """Write a record."""
        try:
            _write(self._file, record)
        except BrokenPipeError as error:
            raise Halted("whoever reads standard output has ended") from error
        except OSError as error:
            raise Halted(f"standard output cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _write(file: FileIO, record: bytes) -> None:
    written = file.write(record)
    # A full disk, or a signal, may end a call in the middle.
    while written < len(record):
        record = record[written:]
        written = file.write(record)
