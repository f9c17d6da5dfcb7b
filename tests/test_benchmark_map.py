"""`make map`: what it runs, and that it notices a line that is lost, doubled or another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import benchmark

measured: Any = benchmark("map")
problems: Any = benchmark("problems")


def test_a_small_run_goes_through_a_kill(capsys: Any) -> None:
    assert measured.main(["--lines", "3000", "--kills", "1"]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "killed 1 of 1" in said
    assert "3,000 lines, every one exactly once, in order" in said


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([1, 2], "2 records for 3 lines"), ([1, 1, 2], "at place 2"), ([1, 3, 2], "at place 2"), ([1, 2, 3], "")],
)
def test_what_is_not_there_once_is_noticed(tmp_path: Path, numbers: list[int], text: str) -> None:
    output = tmp_path / "out"
    output.write_text("".join(json.dumps({"line": n, "output": measured.item(n)}) + "\n" for n in numbers))
    if not text:
        measured.check(output, 3)
        return
    with pytest.raises(problems.BenchmarkError, match=text):
        measured.check(output, 3)
