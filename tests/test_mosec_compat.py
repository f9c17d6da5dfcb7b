"""Services written for mosec, run by this package and, where its wheel is installed, by mosec beside it.

`tests/services` holds mosec services. This package runs copies in which one line differs, `from mosec import ...`. Both
get the same requests, and their answers are compared with what is expected, so that ours are checked without mosec too.
A difference that is meant is written down where it is: an `Expected` with a text of mosec's own.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Program, wait_until
from mosec_pair import Pair, post_together, serving_both

HISTOGRAMS = ("process_duration_second", "batch_size", "batch_duration_second")
# The label names of each sample of mosec's five metrics.
MOSECS_METRICS = {
    "mosec_service_throughput_total": {("code", "endpoint")},
    "mosec_service_remaining_task": {()},
    **{f"mosec_service_{name}_bucket": {("connection", "le", "stage")} for name in HISTOGRAMS},
    **{f"mosec_service_{name}_sum": {("connection", "stage")} for name in HISTOGRAMS},
    **{f"mosec_service_{name}_count": {("connection", "stage")} for name in HISTOGRAMS},
}


@dataclass(frozen=True)
class Expected:
    """An answer that both give, or ours beside mosec's where they differ on purpose; `*` in a text is any details."""

    body: bytes
    status: int
    text: str = ""
    json: Any = None
    mosec_text: str | None = None
    mosec_status: int | None = None

    def check(self, ours: bool, answer: httpx.Response) -> None:
        status = self.status if ours or self.mosec_status is None else self.mosec_status
        assert answer.status_code == status, answer.text
        if status == 200 and self.json is not None:
            assert answer.json() == self.json
            assert answer.headers["content-type"] == "application/json"
        else:
            text = self.text if ours or self.mosec_text is None else self.mosec_text
            assert fnmatch.fnmatchcase(answer.text, text), answer.text


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with serving_both("validation", tmp_path_factory.mktemp("validation")) as pair:
        yield pair


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(Expected(b'{"x": 21}', 200, json={"y": 42, "batch_size": 1}), id="success"),
        pytest.param(Expected(b"{}", 422, "request validation error: no x"), id="validation"),
        pytest.param(Expected(b'{"x": "client"}', 400, "bad request: wrong currency"), id="client"),
        pytest.param(Expected(b'{"x": "server"}', 500, "internal error: out of stock"), id="server"),
        pytest.param(Expected(b'{"x": "crash"}', 500, "inference internal error"), id="unexpected"),
        pytest.param(
            Expected(b'{"x": "silent"}', 422, "request validation error: request validation error"), id="no-details"
        ),
        pytest.param(Expected(b"garbled", 400, "decoding error: garbled - bytes"), id="decoding-lines-joined"),
        pytest.param(
            Expected(b'{"x": "number keys"}', 200, json={"1": "one", "2": [None, True, 1.5, "ü"]}), id="number-keys"
        ),
        # mosec drops the empty request and says that it went well.
        pytest.param(
            Expected(b"", 400, "no data provided", mosec_status=200, mosec_text="no data provided"), id="empty"
        ),
        # What is wrong is told here; mosec repeats the name of the error.
        pytest.param(
            Expected(
                b"{",
                400,
                "decoding error: the body is not JSON: *",
                mosec_text="decoding error: decoding error",
            ),
            id="not-json",
        ),
        pytest.param(
            Expected(
                b'{"x": "set"}',
                500,
                "encoding error: the result cannot be encoded as JSON: *",
                mosec_text="encoding error: encoding error",
            ),
            id="encoding",
        ),
    ],
)
def test_a_request_is_answered_as_by_mosec(validation: Pair, expected: Expected) -> None:
    for answer in (answers := validation.post("/inference", expected.body)):
        expected.check(answer is answers[0], answer)


def test_a_large_integer_arrives_whole_as_in_mosec(validation: Pair) -> None:
    number = 2**64 + 1
    for answer in validation.post("/inference", b'{"x": %d}' % number):
        assert answer.json()["y"] == 2 * number


def test_eight_requests_that_come_together_are_one_batch(validation: Pair) -> None:
    for program in validation.programs:
        answers = post_together(program, "/batch", [b'{"x": %d}' % n for n in range(8)])
        assert [answer.json() for answer in answers] == [{"y": 2 * n, "batch_size": 8} for n in range(8)]


def test_in_a_failed_batch_only_the_culprit_fails_where_mosec_fails_them_all(validation: Pair) -> None:
    bodies = [b'{"x": %d}' % n for n in range(7)] + [b"{}"]
    for program in validation.programs:
        answers = post_together(program, "/batch", bodies)
        culprit = answers.pop()
        assert (culprit.status_code, culprit.text) == (422, "request validation error: no x")
        if program is validation.ours:
            assert [(answer.status_code, answer.json()["y"]) for answer in answers] == [(200, 2 * n) for n in range(7)]
        else:
            assert {(answer.status_code, answer.text) for answer in answers} == {(422, culprit.text)}


def test_an_item_that_cannot_be_decoded_fails_alone_where_mosec_fails_the_batch(validation: Pair) -> None:
    bodies = [b'{"x": %d}' % n for n in range(7)] + [b"garbled"]
    for program in validation.programs:
        answers = post_together(program, "/batch", bodies)
        assert (answers[-1].status_code, answers[-1].text) == (400, "decoding error: garbled - bytes")
        status = 200 if program is validation.ours else 400
        assert {answer.status_code for answer in answers[:-1]} == {status}


def test_a_wrong_path_and_a_wrong_method_are_answered_as_by_mosec(validation: Pair) -> None:
    for program in validation.programs:
        assert program.client.post("/unknown", content=b"{}").status_code == 404
        wrong_method = program.client.get("/inference")
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


def metric_shapes(text: str) -> dict[str, set[tuple[str, ...]]]:
    """Return the label names under which each sample of mosec's five metrics is shown."""
    shapes: dict[str, set[tuple[str, ...]]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        if name in MOSECS_METRICS:
            shapes.setdefault(name, set()).add(tuple(sorted(re.findall(r'(\w+)="', labels))))
    return shapes


def metric_stages(text: str) -> set[str]:
    """Return the stages whose times are shown."""
    return set(re.findall(r'process_duration_second_count\{.*?stage="(\w+)".*?\}', text))


def test_the_metrics_have_mosecs_names_and_labels(validation: Pair) -> None:
    for program in validation.programs:
        for path in ("/inference", "/batch"):
            post_together(program, path, [b'{"x": 1}'] * 8)
        text = program.client.get("/metrics").text
        assert metric_shapes(text) == MOSECS_METRICS
        assert metric_stages(text) == {"total", "Inference_1", "Inference_2"}


def test_a_pipeline_of_three_stages_answers_as_by_mosec(tmp_path: Path) -> None:
    cases = [
        Expected(
            b'{"text": " Hello "}',
            200,
            json={
                "text": "hello",
                "letters": ["e", "h", "l", "o"],
                "count": 5,
                "even": False,
                "none": None,
                "nested": {"half": 2.5},
            },
        ),
        # In the first stage, and in the last.
        Expected(b'{"text": 1}', 422, "request validation error: text must be a string"),
        Expected(b'{"text": "thirteen char"}', 422, "request validation error: thirteen letters bring bad luck"),
        # An object that the first stage does not expect is a bug of the worker.
        Expected(b"[]", 500, "inference internal error"),
    ]
    with serving_both("pipeline", tmp_path) as pair:
        for expected in cases:
            for answer in (answers := pair.post("/inference", expected.body)):
                expected.check(answer is answers[0], answer)
        for program in pair.programs:
            bodies = [b'{"text": "%s"}' % (b"a" * n) for n in range(1, 12)]
            answers = post_together(program, "/inference", bodies)
            assert [answer.json()["count"] for answer in answers] == list(range(1, 12))
            stages = {"total", "Preprocess_1", "Inference_2", "Postprocess_3"}
            assert metric_stages(program.client.get("/metrics").text) == stages


@pytest.mark.parametrize("service", ["shared_runtime", "shared_route_list"])
def test_routes_share_their_workers_as_in_mosec(service: str, tmp_path: Path) -> None:
    with serving_both(service, tmp_path) as pair:
        for program in pair.programs:
            alone = program.client.post("/double", content=b'{"value": 3}').json()
            both = program.client.post("/double/increment", content=b'{"value": 3}').json()
            assert (alone["value"], both["value"]) == (6, 7)
            assert alone["pid"] == both["pid"]
            assert metric_stages(program.client.get("/metrics").text) == {"total", "Double_1", "Increment_2"}
            assert program.client.post("/inference", content=b'{"value": 3}').status_code == 404


def test_each_worker_has_its_environment_as_in_mosec(tmp_path: Path) -> None:
    with serving_both("environment", tmp_path) as pair:
        for program in pair.programs:
            seen: set[tuple[str, str, int]] = set()

            def both_have_answered(program: Program = program, seen: set[tuple[str, str, int]] = seen) -> bool:
                answers = [answer.json() for answer in post_together(program, "/inference", [b"{}"] * 4)]
                seen.update((answer["device"], answer["at_import"], answer["worker_id"]) for answer in answers)
                return len(seen) > 1

            wait_until(both_have_answered, f"only {seen} has answered")
            assert seen == {("0", "0", 1), ("1", "1", 2)}


def test_all_examples_are_run_once_before_the_first_request_as_in_mosec(tmp_path: Path) -> None:
    with serving_both("warm_up", tmp_path) as pair:
        for answer in pair.post("/inference", b'{"n": 9}'):
            assert answer.json() == [[1], [2, 3], [4], [9]]


def test_a_worker_whose_example_does_not_fit_serves_all_the_same_as_in_mosec(tmp_path: Path) -> None:
    with serving_both("warm_up", tmp_path) as pair:
        for answer in pair.post("/careless", b'{"n": 9}'):
            assert answer.json() == 10
        assert any("warm-up failed" in message for message in pair.ours.messages())


def test_a_worker_with_a_format_of_its_own_answers_as_in_mosec(tmp_path: Path) -> None:
    everything = bytes(range(256)) * 300
    with serving_both("raw_bytes", tmp_path) as pair:
        for answer in pair.post("/inference", everything):
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert answer.content == b"\x89PNG\r\n\x1a\n" + everything[::-1]
        for answer in pair.post("/inference", b"no picture"):
            assert (answer.status_code, answer.text) == (400, "decoding error: not a picture")


def test_workers_know_who_they_are_as_in_mosec(tmp_path: Path) -> None:
    with serving_both("identity", tmp_path) as pair:
        for program in pair.programs:
            seen: set[tuple[tuple[int, str, int], ...]] = set()

            def both_have_answered(
                program: Program = program, seen: set[tuple[tuple[int, str, int], ...]] = seen
            ) -> bool:
                for answer in post_together(program, "/inference", [b"{}"] * 4):
                    seen.add(tuple(tuple(worker) for worker in answer.json()))
                return len(seen) > 1

            wait_until(both_have_answered, f"only {seen} has answered")
            second = (1, "Second_2", 16)
            assert seen == {((1, "First_1", 1), second), ((2, "First_1", 1), second)}


def test_forward_is_interrupted_after_its_stages_timeout_as_in_mosec(tmp_path: Path) -> None:
    with serving_both("slow", tmp_path) as pair:
        late = pair.post("/inference", b'{"seconds": 60}')
        in_time = pair.post("/inference", b'{"seconds": 0}')
        assert [answer.status_code for answer in late] == [408] * len(late)
        assert all("`forward`" in answer.text and "0.2" in answer.text for answer in late)
        # The worker is free for the next request.
        assert [(answer.status_code, answer.json()) for answer in in_time] == [(200, {"seconds": 0})] * len(in_time)


def test_a_request_that_is_not_done_in_the_services_time_is_answered_as_by_mosec(tmp_path: Path) -> None:
    with serving_both("slow", tmp_path, "--timeout", "400") as pair, ThreadPoolExecutor(2) as threads:
        slow = b'{"seconds": 1}'
        answers = list(threads.map(lambda program: program.client.post("/patient", content=slow), pair.programs))
        assert {(answer.status_code, answer.text.partition(":")[0]) for answer in answers} == {
            (408, "inference timeout")
        }
