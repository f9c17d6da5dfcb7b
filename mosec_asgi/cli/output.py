"""What commands show: tables and lines, by rich on a terminal, and as plain text elsewhere or without rich."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

# The styles of lines, by rich's names.
PLAIN, STRONG, FAINT, GOOD, WARN, BAD = "", "bold", "dim", "green", "yellow", "red"


class Output:
    """Plain text."""

    def __init__(self, stream: TextIO) -> None:
        """Write to a stream."""
        self._stream = stream

    def line(self, text: str = "", style: str = PLAIN) -> None:
        """Write a line.

        Args:
            text: its text.
            style: one of this module's.
        """
        print(text, file=self._stream, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
        """Write a table.

        Args:
            columns: the heads of the columns.
            rows: the cells.
            title: stands above it.
        """
        cells = [columns, *rows]
        widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
        if title:
            self.line(title)
        for row in cells:
            texts = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            self.line("  " + "  ".join(texts).rstrip())
        self.line()


class RichOutput(Output):
    """A terminal, by rich."""

    def __init__(self, stream: TextIO) -> None:
        """Write to a terminal."""
        super().__init__(stream)
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)

    def line(self, text: str = "", style: str = PLAIN) -> None:
        """Write a line, whole: what is to be copied is not broken."""
        self._console.print(text, style=style or None, markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
        """Write a table as wide as the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)


def output(stream: TextIO | None = None) -> Output:
    """Return how to write to a stream; standard output where it is None."""
    stream = stream if stream is not None else sys.stdout
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        return RichOutput(stream)
    return Output(stream)
