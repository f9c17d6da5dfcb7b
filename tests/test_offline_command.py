"""`mosec-asgi map` in this process, with workers in threads: what it reads, writes, refuses and says."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import offline_workers as workers
import pytest

from mosec_asgi import Server
from mosec_asgi.cli import map as map_
from mosec_asgi.errors import DefinitionError
from mosec_asgi.offline import command
from mosec_asgi.offline.faults import WrongUse

OPTIONS = [field.name for field in dataclasses.fields(command.Options)]


def server_of(**settings: Any) -> Server:
    server = Server(**{"timeout": 20_000, **settings})
    server.append_worker(workers.Double, max_batch_size=16, executor="thread")
    server.append_worker(workers.Various, route="/v1/various", executor="thread")
    server.append_worker(workers.Words, route="/words", executor="thread")
    return server


def run(folder: Path, *arguments: str, server: Server | None = None, output: str = "out.jsonl") -> int:
    places = ["--input", str(folder / "in.jsonl"), "--output", str(folder / output)]
    # The later one of two counts.
    given = map_.command.make_context("map", ["app:server", *places, *arguments]).params
    return command.run(command.Options(**{name: given[name] for name in OPTIONS}), server or server_of())


def written(folder: Path, *values: Any, name: str = "in.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))


def records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_line_becomes_a_record_in_order(tmp_path: Path) -> None:
    written(tmp_path, *({"n": n} for n in range(300)))
    assert run(tmp_path) == 0
    found = records(tmp_path / "out.jsonl")
    assert found == [{"line": n + 1, "output": {"double": 2 * n, "batch": 0}} for n in range(300)]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.run.json"}


def test_lines_that_fail_stand_beside_with_their_number_code_text_and_input(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "in.jsonl").write_text('{"n": 1}\nnonsense\n\n{"m": 1}\n{"n": 2}')
    assert run(tmp_path) == command.SOME_FAILED
    assert [row["line"] for row in records(tmp_path / "out.jsonl")] == [1, 5]
    errors = sorted(records(tmp_path / "out.jsonl.errors.jsonl"), key=lambda row: row["line"])
    assert [(row["line"], row["code"], row["input"]) for row in errors] == [(2, 400, "nonsense"), (4, 422, {"m": 1})]
    assert "the line is not JSON" in errors[0]["error"]
    assert errors[1]["error"] == "request validation error: no number n"
    assert "2 lines failed" in capfd.readouterr().err


def test_results_are_json_or_their_line_fails(tmp_path: Path) -> None:
    written(tmp_path, "array", "huge", "bytes", "created", "teapot", "fault")
    assert run(tmp_path, "--route", "/v1/various") == command.SOME_FAILED
    found = {row["line"]: row["output"] for row in records(tmp_path / "out.jsonl")}
    assert found == {1: {"array": [0.0, 1.0, 2.0]}, 2: 1 << 80, 4: {"id": 7}}
    errors = {row["line"]: (row["code"], row["error"]) for row in records(tmp_path / "out.jsonl.errors.jsonl")}
    assert errors.keys() == {3, 5, 6}
    assert errors[3][0] == 500
    assert "bytes" in errors[3][1]
    assert errors[5] == (418, '{"tea":true}')
    assert errors[6] == (500, "inference internal error"), "a fault's text may hold secrets"


@pytest.mark.parametrize("given", [True, False])
def test_a_file_of_openais_batches_is_recognised_and_answered_in_kind(tmp_path: Path, given: bool) -> None:
    def request(name: str, url: str, body: Any) -> dict[str, Any]:
        return {"custom_id": name, "method": "POST", "url": url, "body": body}

    written(
        tmp_path,
        request("a", "/v1/various", {"x": 1}),
        request("b", "/inference", {"n": 4}),
        request("c", "/v1/nowhere", {}),
        request("d", "/inference", {}),
        {"custom_id": "e"},
    )
    assert run(tmp_path, *(["--format", "openai-batch"] if given else [])) == command.SOME_FAILED
    answers = records(tmp_path / "out.jsonl")
    assert [(row["custom_id"], row["response"]["body"]) for row in answers] == [
        ("a", {"x": 1}),
        ("b", {"double": 8, "batch": 0}),
    ]
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in answers)
    errors = {row["custom_id"]: row for row in records(tmp_path / "out.jsonl.errors.jsonl")}
    assert {name: row["code"] for name, row in errors.items()} == {"c": 404, "d": 422, "e": 422}
    assert errors["d"]["response"]["status_code"] == 422
    assert errors["e"]["response"] is None
    assert "there is no route '/v1/nowhere'" in errors["c"]["response"]["body"]["error"]["message"]


def test_csv_goes_in_and_out(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,first\n2,second\n")
    source = ["--input", str(tmp_path / "in.csv"), "--route", "/v1/various"]
    assert run(tmp_path, *source, output="out.csv") == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads(rows[1]["output"]) == {"id": "2", "text": "second"}
    assert not (tmp_path / "out.csv.records.jsonl").exists()
    assert run(tmp_path, *source, "--column", "text", output="texts.csv") == 0
    assert (tmp_path / "texts.csv").read_text().split() == ["line,output", "1,first", "2,second"]


def test_a_table_that_was_not_made_yet_is_gone_on_with(tmp_path: Path) -> None:
    """Ended between the last record and the table."""
    written(tmp_path, *({"n": n} for n in range(5)))
    assert run(tmp_path, "--output-format", "csv", output="out") == 0
    state = tmp_path / "out.run.json"
    state.write_text(state.read_text().splitlines()[0] + "\n")
    table = (tmp_path / "out").read_text()
    kept = [f'{{"line":{n + 1},"output":{{"double":{2 * n},"batch":0}}}}\n' for n in range(5)]
    (tmp_path / "out.records.jsonl").write_text("".join(kept[:3]))
    (tmp_path / "out").unlink()
    assert run(tmp_path, "--output-format", "csv", "--resume", output="out") == 0
    assert (tmp_path / "out").read_text() == table
    assert run(tmp_path, "--output-format", "csv", "--resume", output="out") == 0


def test_parquet_goes_in_and_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"n": range(700)}), tmp_path / "in.parquet")
    assert run(tmp_path, "--input", str(tmp_path / "in.parquet"), output="out.parquet") == 0
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows == [{"line": n + 1, "output": {"double": 2 * n, "batch": 0}} for n in range(700)]


@pytest.mark.parametrize("place", ["input", "output"])
def test_parquet_without_pyarrow_names_the_package_at_once(tmp_path: Path, place: str) -> None:
    if "pyarrow" in sys.modules or _has_pyarrow():
        pytest.skip("it is here")
    written(tmp_path, {"n": 1})
    arguments = ["--input", __file__, "--format", "parquet"] if place == "input" else ["--output-format", "parquet"]
    with pytest.raises(WrongUse, match=r"pip install 'mosec-asgi\[parquet\]'"):
        run(tmp_path, *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}


def _has_pyarrow() -> bool:
    import importlib.util

    return importlib.util.find_spec("pyarrow") is not None


def test_only_lines_without_a_record_are_done_by_resume(tmp_path: Path, capfd: Any) -> None:
    values = [{"n": n} if n % 10 else {"m": n} for n in range(100)]
    written(tmp_path, *values)
    assert run(tmp_path, "--unordered") == command.SOME_FAILED
    output, errors = tmp_path / "out.jsonl", tmp_path / "out.jsonl.errors.jsonl"
    expected = sorted(output.read_text().splitlines()), sorted(errors.read_text().splitlines())
    state = tmp_path / "out.jsonl.run.json"
    state.write_text(state.read_text().splitlines()[0] + "\n")
    # Ended in the middle, in each file in the middle of a record.
    output.write_bytes(output.read_bytes()[: output.stat().st_size // 2])
    errors.write_bytes(errors.read_bytes()[: errors.stat().st_size // 3])
    kept = output.read_text().splitlines()[:-1]
    assert run(tmp_path, "--unordered", "--resume") == command.SOME_FAILED
    assert output.read_text().splitlines()[: len(kept)] == kept
    assert (sorted(output.read_text().splitlines()), sorted(errors.read_text().splitlines())) == expected
    capfd.readouterr()
    assert run(tmp_path, "--unordered", "--resume") == command.SOME_FAILED
    assert "nothing is left to do; 10 lines failed" in capfd.readouterr().err


def test_what_is_there_is_touched_only_where_that_was_said(tmp_path: Path) -> None:
    written(tmp_path, {"n": 1})
    assert run(tmp_path) == 0
    before = (tmp_path / "out.jsonl").read_text()
    with pytest.raises(WrongUse, match="--resume goes on with what a run has left, --overwrite begins anew"):
        run(tmp_path)
    written(tmp_path, {"n": 22})
    with pytest.raises(WrongUse, match="begun with another input file"):
        run(tmp_path, "--resume")
    assert (tmp_path / "out.jsonl").read_text() == before
    assert run(tmp_path, "--overwrite") == 0
    assert records(tmp_path / "out.jsonl")[0]["output"]["double"] == 44


def test_an_empty_input_has_an_empty_output_and_starts_no_worker(tmp_path: Path) -> None:
    written(tmp_path)
    server = Server()
    server.append_worker(workers.Double)
    assert run(tmp_path, server=server) == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--route", "/none"], "there is no route '/none'; --route takes one of /inference, /v1/various, /words"),
        (["--route", "/words"], "the route /words streams"),
        (["--input", "none.jsonl"], "No such file"),
        (["--output", "-"], "say where lines that fail are written: --errors FILE"),
        (["--output", "-", "--errors", "e", "--resume"], "--resume needs a file for --output"),
        (["--output", "-", "--errors", "e", "--output-format", "csv"], "name one with --output"),
        (["--input", "-", "--resume"], "--resume needs an input that can be read twice"),
        (["--output", "/dev/null"], "is no regular file"),
        (["--output", "IN"], "--output is the input itself"),
        (["--errors", "OUT"], "--errors is the output itself"),
        (["--timeout", "-1"], "--timeout is a whole number, at least 0, not -1"),
        (["--in-flight", "0"], "--in-flight is a whole number, at least 1, not 0"),
        (["--format", "openai-batch", "--column", "a"], "leave out --column"),
        (["--output", "nowhere/out.jsonl"], "cannot be written"),
    ],
)
def test_wrong_use_says_what_to_change_and_leaves_nothing(tmp_path: Path, arguments: list[str], text: str) -> None:
    written(tmp_path, {"n": 1})
    places = {"IN": str(tmp_path / "in.jsonl"), "OUT": str(tmp_path / "out.jsonl")}
    with pytest.raises(WrongUse, match=text):
        run(tmp_path, *(places.get(argument, argument) for argument in arguments))
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}


def test_a_server_without_a_stage_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    written(tmp_path, {"n": 1})
    with pytest.raises(DefinitionError, match="no stage"):
        run(tmp_path, server=Server())
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}


def test_the_time_of_an_item_is_the_runs_own(tmp_path: Path) -> None:
    written(tmp_path, 0.2)
    for arguments, code in (([], command.SOME_FAILED), (["--timeout", "20000", "--overwrite"], 0)):
        server = Server(timeout=100)
        server.append_worker(workers.Slow, executor="thread")
        assert run(tmp_path, *arguments, server=server) == code
        if code:
            assert records(tmp_path / "out.jsonl.errors.jsonl")[0]["code"] == 408


def test_models_that_take_nothing_any_more_end_the_run_without_an_error_for_each_line(
    tmp_path: Path, capfd: Any
) -> None:
    written(tmp_path, *({"n": n} for n in range(3)))
    assert run(tmp_path, server=Stopped()) == command.NOT_FINISHED
    assert "the models took no more items" in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()
    assert run(tmp_path, "--resume") == 0


class Stopped(Server):
    """One whose engine has given its items up."""

    def __init__(self) -> None:
        super().__init__()
        self.append_worker(workers.Double)

    def engine(self) -> Any:
        import contextlib

        from mosec_asgi.errors import STAGE_DOWN, raised

        class Engine:
            def map_asks(self, asks: Any, **_: Any) -> Any:
                for index, _ask in enumerate(asks):
                    yield index, raised(STAGE_DOWN)

        return contextlib.nullcontext(Engine())
