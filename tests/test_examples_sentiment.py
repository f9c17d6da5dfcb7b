"""The sentiment example from end to end, with a tiny model of the same class in place of the real one."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, free_port, python, running

EXAMPLE = ROOT / "examples" / "sentiment"
TEXTS = ["what a lovely day", "bad", "The day is not very good.", "ö ü 日本", "x" * 200]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_models.environment("sentiment", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def program(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The example under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment=environment) as program:
        program.wait_ready(seconds=120)
        yield program


@pytest.fixture(scope="module")
def expected(environment: dict[str, str]) -> dict[str, list[float]]:
    """What the model itself says of each text, alone."""
    # Imported here, and not by each process that collects the tests: it takes seconds.
    import torch
    from transformers import DistilBertForSequenceClassification, DistilBertTokenizer

    tokenizer = DistilBertTokenizer.from_pretrained(environment["SENTIMENT_MODEL"])
    model = DistilBertForSequenceClassification.from_pretrained(environment["SENTIMENT_MODEL"]).eval()
    with torch.inference_mode():
        return {text: model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist() for text in TEXTS}


def ask(program: Program, text: str) -> Any:
    answer = program.client.post("/inference", json={"text": text})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_answer_is_the_models_own_also_in_batches(program: Program, expected: dict[str, list[float]]) -> None:
    texts = TEXTS * 10
    answers = program.ask_together("Classify_2", lambda text: ask(program, text), texts)
    for text, answer in zip(texts, answers, strict=True):
        negative, positive = expected[text]
        assert answer["scores"] == pytest.approx({"NEGATIVE": negative, "POSITIVE": positive}, abs=1e-5)
        assert answer["label"] == ("POSITIVE" if positive > negative else "NEGATIVE")
        assert answer["score"] == max(answer["scores"].values())
    assert len({round(answer["score"], 4) for answer in answers}) == len(TEXTS)
    assert "warm-up failed" not in program.output


def test_a_text_that_is_too_long_is_refused_with_its_length(program: Program) -> None:
    assert ask(program, "day " * 62)["label"]
    answer = program.client.post("/inference", json={"text": "day " * 63})
    assert (answer.status_code, "65 tokens" in answer.text, "64 at most" in answer.text) == (422, True, True)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("{}", 422, "Field required"),
        ('{"text": ""}', 422, "at least 1 character"),
        ('{"text": 1}', 422, "valid string"),
        ('{"text": "a", "truncate": true}', 422, "truncate"),
        (f'{{"text": "{"a" * 20_001}"}}', 422, "at most 20000 characters"),
        ("day", 400, "not JSON"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(program: Program, body: str, status: int, told: str) -> None:
    answer = program.client.post("/inference", content=body)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_client_prints_what_it_is_told(program: Program, expected: dict[str, list[float]]) -> None:
    done = run_client("--url", program.url, "bad", "day " * 63)
    label = "POSITIVE" if expected["bad"][1] > 0.5 else "NEGATIVE"
    assert done.stdout.split() == [label, f"{max(expected['bad']):.4f}", "bad"]
    assert (done.returncode, done.stderr.startswith("422: ")) == (1, True)
    assert run_client("--url", program.url, "bad").returncode == 0


def test_without_a_server_the_client_says_so_in_one_line() -> None:
    done = run_client("--url", f"http://127.0.0.1:{free_port()}", "text", "another")
    assert (done.returncode, done.stderr.count("\n"), "sentiment/server.py" in done.stderr) == (1, 1, True)


def test_a_model_that_is_not_there_ends_the_server_with_the_variable_to_set(log: Path) -> None:
    with running(python(EXAMPLE / "server.py"), log, environment={"SENTIMENT_MODEL": "/no/such/folder"}) as program:
        assert program.wait(120) != 0
        assert "SENTIMENT_MODEL=/no/such/folder cannot be loaded: it must be a folder" in program.output


def test_a_folder_without_a_tokenizer_is_refused(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all words would be the unknown one, and all texts of a length alike."""
    shutil.copy(Path(environment["SENTIMENT_MODEL"], "config.json"), tmp_path)
    server = importlib.import_module("examples.sentiment.server")
    monkeypatch.setattr(sys.modules["distilbert"], "MODEL", str(tmp_path))
    with pytest.raises(RuntimeError, match="DistilBERT and its tokenizer"):
        server.Tokenize()


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ModuleType]:
    """The example's module, as it is on a machine with two GPUs to use."""
    module = importlib.import_module("examples.sentiment.server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENTIMENT_GPUS", "0,3")
        yield importlib.reload(module)
    importlib.reload(module)


def test_each_gpu_has_a_worker_that_sees_no_other(server: ModuleType) -> None:
    classify = server.server._defined.routes["/inference"][1]
    assert (classify.num, [variables["CUDA_VISIBLE_DEVICES"] for variables in classify.env]) == (2, ["0", "3"])


def test_a_gpu_that_is_not_there_is_named(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"SENTIMENT_GPUS names GPU 3, which torch .* cannot use"):
        sys.modules["distilbert"].device()


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("sentiment", program, tmp_path)
