"""The example of server-sent events from end to end: both of its routes, what it refuses, and its client."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT, Program, free_port, running

httpx_sse = pytest.importorskip("httpx_sse")

EXAMPLE = ROOT / "examples" / "sse"
BOTH = pytest.mark.parametrize("route", ["/pushed", "/yielded"])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "60000"}) as program:
        program.wait_ready()
        yield program


def say(program: Program, route: str, text: object) -> list[tuple[str, str]]:
    """Return the type and the data of each event."""
    with httpx_sse.connect_sse(program.client, "POST", route, json={"text": text}) as source:
        return [(event.event, event.data) for event in source.iter_sse()]


@BOTH
def test_a_text_comes_word_by_word_and_then_its_end(program: Program, route: str) -> None:
    words = [("message", word) for word in ["To", "be,", "or", "not", "to", "be"]]
    assert say(program, route, "To be, or not to be") == [*words, ("end", '{"words": 6}')]


@BOTH
def test_texts_of_a_batch_keep_to_their_own_streams(program: Program, route: str) -> None:
    texts = [" ".join(f"{number}.{place}" for place in range(number)) for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        streams = list(threads.map(lambda text: say(program, route, text), texts))
    for number, (text, events) in enumerate(zip(texts, streams, strict=True)):
        assert [data for kind, data in events if kind == "message"] == text.split()
        assert events[-1] == ("end", f'{{"words": {number}}}')


@BOTH
def test_a_wrong_request_is_told_as_the_readme_shows(program: Program, route: str) -> None:
    shown = re.search(r"event: error\ndata: (.*)", (EXAMPLE / "README.md").read_text())
    assert shown is not None
    assert say(program, route, 1) == [("error", shown[1])]
    assert program.client.post(route, content=b"[]").text == f"event: error\ndata: {shown[1]}\n\n"


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@BOTH
def test_the_client_prints_the_words(program: Program, route: str) -> None:
    done = run_client("--url", program.url, "--route", route, "to be or not")
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "to be or not", "4 words")


def test_without_a_server_the_client_says_what_to_do() -> None:
    done = run_client("--url", f"http://127.0.0.1:{free_port()}", "text")
    assert (done.returncode, "server.py" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
