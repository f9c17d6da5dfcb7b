"""Records as tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mosec_asgi.offline import conversion
from mosec_asgi.offline.faults import Halted


def written(folder: Path, values: list[Any]) -> Path:
    path = folder / "records"
    path.write_text("".join(json.dumps({"line": n, "output": v}) + "\n" for n, v in enumerate(values, 1)))
    return path


def test_csv_has_texts_as_they_are_and_all_else_as_json(tmp_path: Path) -> None:
    values = ['é, "x"\ny', 0.5, None, {"a": [1]}]
    output = tmp_path / "out.csv"
    conversion.convert(written(tmp_path, values), output, "csv")
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["line", "output"], ["1", values[0]], ["2", "0.5"], ["3", "null"], ["4", '{"a": [1]}']]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "records"]


def test_csv_has_a_text_that_is_no_unicode_as_json_has_it(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    conversion.convert(written(tmp_path, ["a\ud800", ["\ud800"]]), output, "csv")
    assert output.read_text().split() == ["line,output", "1,a\\ud800", '2,"[""\\\\ud800""]"']


def test_no_result_at_all_is_an_empty_table(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    conversion.convert(tmp_path / "none", output, "csv")
    assert output.read_text().split() == ["line,output"]


def test_a_table_that_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(Halted, match="cannot be written"):
        conversion.convert(written(tmp_path, [1]), tmp_path / "nowhere" / "out.csv", "csv")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([{"a": 1}, {"b": "x"}], [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([1, "x"], ["1", '"x"']),
        ([{}, {}], ["{}", "{}"]),
        ([{"a": {}}], ['{"a": {}}']),
        ([[{}]], ["[{}]"]),
        ([2**60 + 1, 0.5], [str(2**60 + 1), "0.5"]),
        (["\ud800", {"\ud800": ["\ud800"]}], ['"\\\\ud800"', '{"\\\\ud800": ["\\\\ud800"]}']),
        (["\ud800"], ["\\ud800"]),
        ([None], [None]),
        ([], []),
        ([1] * (conversion.ROWS + 1) + [0.5], [1] * (conversion.ROWS + 1) + [0.5]),
        ([1] * conversion.ROWS + ["x"], ["1"] * conversion.ROWS + ['"x"']),
    ],
)
def test_parquet_has_the_type_of_all_values_or_json(tmp_path: Path, values: list[Any], expected: list[Any]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "out.parquet"
    conversion.convert(written(tmp_path, values), output, "parquet")
    table = parquet.read_table(output)
    assert table.column("output").to_pylist() == expected
    assert table.column("line").to_pylist() == list(range(1, len(values) + 1))
