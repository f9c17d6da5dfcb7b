"""Inputs as lines: numbers, sizes, faults, and no more in memory than must be."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from mosec_asgi.offline import readers
from mosec_asgi.offline.faults import Halted, WrongUse
from mosec_asgi.offline.readers import CsvRows, JsonLines, fingerprint, open_input


def json_lines(data: bytes) -> list[tuple[int, int, bytes | None, str]]:
    return [(line.number, line.size, line.raw, line.fault) for line in JsonLines(io.BytesIO(data), len(data)).lines()]


def test_lines_count_as_an_editor_counts_and_empty_ones_are_left_out() -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2]\n3'
    assert json_lines(data) == [(1, 13, b'{"a": 1}', ""), (4, 4, b"[2]", ""), (5, 1, b"3", "")]
    assert json_lines(b"") == []


def test_the_first_line_can_be_looked_at_before() -> None:
    reader = JsonLines(io.BytesIO(b"\xef\xbb\xbf1\n2\n"), None)
    assert reader.peek() == b"1"
    assert [line.raw for line in reader.lines()] == [b"1", b"2"]


class Endless(io.RawIOBase):
    """A line without end, but for that after `size` bytes, and how much of it was read at a time."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.most = 0

    def readline(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        taken = min(self.left, size or 0)
        self.most = max(self.most, taken)
        self.left -= taken
        if taken:
            return b"x" * taken if self.left else b"x" * (taken - 1) + b"\n"
        return b""


def test_a_line_too_long_fails_alone_and_is_not_held() -> None:
    file = Endless(3 * readers.MOST_LINE_BYTES)
    [line] = JsonLines(cast(BinaryIO, file), None).lines()
    assert line.size == 3 * readers.MOST_LINE_BYTES
    assert "more than" in line.fault
    assert line.raw == b""
    assert file.most <= readers.MOST_LINE_BYTES + 1


def csv_rows(data: bytes) -> list[tuple[int, Any, str]]:
    return [(line.number, line.value, line.fault) for line in CsvRows(io.BytesIO(data), len(data)).lines()]


def test_rows_are_dictionaries_by_the_first_one() -> None:
    data = b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n\r\n2,"\xc3\xa9 ""q"""\r\n'
    assert csv_rows(data) == [(1, {"a": "1", "b": "x\r\ny"}, ""), (3, {"a": "2", "b": 'é "q"'}, "")]
    assert sum(line.size for line in CsvRows(io.BytesIO(data), None).lines()) <= len(data)
    assert csv_rows(b"") == []


def test_a_row_that_does_not_fit_or_is_no_text_fails_alone() -> None:
    rows = csv_rows(b"a,b\n1,2\n1\n\xff,2\n3,4\n")
    assert [fault for _, _, fault in rows] == [
        "", "the row has 1 values, and the first row 2 names", "the row is not UTF-8", "",
    ]  # fmt: skip
    assert rows[1][1] == ["1"]


def test_a_quote_that_never_ends_is_said_with_its_row() -> None:
    class Quoted(io.BytesIO):
        given = itertools.chain([b"a\n", b"1\n", b'"'], itertools.repeat(b"x" * 1_000_000 + b"\n"))

        def readline(self, size: int | None = -1) -> bytes:
            return next(self.given)

    with pytest.raises(Halted, match="behind row 1, about line"):
        list(CsvRows(cast(BinaryIO, Quoted()), None).lines())


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_quote_that_is_open_at_the_end_of_the_file_is_a_fault_of_its_row(end: str) -> None:
    rows = csv_rows(f'a,b\n1,2\n3,"4\n5,6{end}'.encode())
    assert rows == [
        (1, {"a": "1", "b": "2"}, ""),
        (2, ["3", f"4\n5,6{end}"], "a quote is not closed: the row goes on to the end of the file"),
    ]
    with pytest.raises(WrongUse, match="in the first row"):
        csv_rows(f'a,"b\n1,2{end}'.encode())


def test_a_line_of_csv_too_long_ends_the_run_and_is_not_held() -> None:
    file = Endless(3 * readers.MOST_LINE_BYTES)
    with pytest.raises(Halted, match="more than"):
        list(CsvRows(cast(BinaryIO, file), None).lines())
    assert file.left > 0


def test_a_column_that_is_named_twice_is_refused_and_not_lost() -> None:
    with pytest.raises(WrongUse, match="'a' twice"):
        csv_rows(b"a,b,a\n1,2,3\n")
    assert csv_rows(b"a,,\n1,,\n") == [(1, {"a": "1", "": ""}, "")]


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="No such file"), open_input(str(tmp_path / "none"), "jsonl"):
        pass
    with pytest.raises(WrongUse, match="name a file"), open_input("-", "parquet"):
        pass


def test_a_file_is_known_again_by_its_size_and_its_ends(tmp_path: Path) -> None:
    file = tmp_path / "in"
    data = bytes(1_000_000)
    file.write_bytes(data)
    before = fingerprint(str(file))
    seen = [before]
    for changed in (data + b"\n", b"1" + data[1:], data[:-1] + b"1"):
        file.write_bytes(changed)
        seen.append(fingerprint(str(file)))
    assert all(one != other for one, other in itertools.combinations(seen, 2))
    file.write_bytes(data)
    assert fingerprint(str(file)) == before
    assert fingerprint("-") is None


def test_rows_of_parquet_come_in_parts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    count = 3 * readers.ROWS + 1
    parquet.write_table(pyarrow.table({"n": range(count), "t": ["x"] * count}), path)
    with open_input(str(path), "parquet") as reader:
        lines = list(reader.lines())
    assert reader.total == count == len(lines) == sum(line.size for line in lines)
    assert (lines[-1].number, lines[-1].value) == (count, {"n": count - 1, "t": "x"})
    data = bytearray(path.read_bytes())
    data[4:64] = b"\xff" * 60
    path.write_bytes(data)
    with open_input(str(path), "parquet") as reader, pytest.raises(Halted, match="behind row 0"):
        list(reader.lines())
    path.write_bytes(b"no parquet")
    with pytest.raises(WrongUse, match="cannot be read as Parquet"), open_input(str(path), "parquet"):
        pass
