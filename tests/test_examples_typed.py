"""The typed example from end to end: what its README shows, what it refuses, and that a batch changes no answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from harness import ROOT, Program, running

EXAMPLE = ROOT / "examples" / "typed"
QUERY: dict[str, Any] = {"question": "who barks?", "passages": ["Cats purr.", "Dogs bark."]}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready()
        yield program


def rank(program: Program, **changes: Any) -> Any:
    return program.client.post("/rank", json=QUERY | changes)


def test_the_answer_is_the_one_in_the_readme(program: Program) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    asked, answered = re.search(r"/rank -d '(.*)'\n.*?```json\n(.*?)\n```", readme, re.DOTALL).groups()  # type: ignore[union-attr]
    answer = program.client.post("/rank", content=asked)
    assert (answer.status_code, answer.json()) == (200, json.loads(answered))


def test_the_same_text_is_the_closest_and_nothing_is_close_to_an_empty_one(program: Program) -> None:
    answer = rank(program, passages=["", "who purrs?", " Who  barks? ", "who barks?"], at_least=0)
    scores = {match["place"]: match["score"] for match in answer.json()["matches"]}
    assert [match["place"] for match in answer.json()["matches"]] == [2, 3, 1, 0]
    assert (scores[2], scores[3], scores[0]) == (1.0, 1.0, 0.0)
    assert 0 < scores[1] < 1


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"question": ""}, [["question"]]),
        ({"question": 1, "passages": ["a", None]}, [["question"], ["passages", 1]]),
        ({"passages": []}, [["passages"]]),
        ({"at_least": "0.5"}, [["at_least"]]),
        ({"atleast": 0.5}, [["atleast"]]),
    ],
)
def test_a_wrong_request_is_told_every_field_that_is_wrong(
    program: Program, changes: dict[str, Any], places: list[Any]
) -> None:
    answer = rank(program, **changes)
    assert answer.status_code == 422
    assert [error["loc"] for error in json.loads(answer.text.removeprefix("request validation error: "))] == places


def test_a_batch_changes_no_answer_and_only_the_wrong_request_fails(program: Program) -> None:
    questions = ["" if number % 5 == 0 else f"question {number}" for number in range(40)]
    passages = [f"question {number}" for number in range(40)]

    def ask(question: str) -> Any:
        answer = rank(program, question=question, passages=passages, at_least=1)
        return answer.status_code if answer.is_error else [match["place"] for match in answer.json()["matches"]]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, questions))
    assert answers == [422 if number % 5 == 0 else [number] for number in range(40)]


def packed(program: Program, **changes: Any) -> Any:
    return program.client.post("/rank/msgpack", content=msgspec.msgpack.encode(QUERY | changes))


def test_msgspec_and_pydantic_give_the_same_answers(program: Program) -> None:
    for changes in ({}, {"at_least": 0.0}, {"passages": ["", "who barks?", "who purrs?"], "at_least": 0.0}):
        answer = packed(program, **changes)
        assert answer.headers["content-type"] == "application/msgpack"
        assert msgspec.msgpack.decode(answer.content) == rank(program, **changes).json()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"question": ""}, "length >= 1 - at `$.question`"),
        ({"passages": ["a", 1]}, "Expected `str`, got `int` - at `$.passages[1]`"),
        ({"at_least": 2.0}, "<= 1.0 - at `$.at_least`"),
        ({"atleast": 0.5}, "unknown field `atleast`"),
    ],
)
def test_msgspec_says_where_the_first_thing_is_wrong(program: Program, changes: dict[str, Any], told: str) -> None:
    answer = packed(program, **changes)
    assert (answer.status_code, told in answer.text) == (422, True), answer.text


@pytest.mark.parametrize("route", ["/rank", "/rank/msgpack"])
def test_the_client_prints_the_matches(program: Program, route: str) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), QUERY["question"], *QUERY["passages"], "--route", route]
    done = subprocess.run([*command, "--url", program.url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.3000  Dogs bark.\n", "")
