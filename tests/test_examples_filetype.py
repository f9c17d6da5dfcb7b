"""The file type example from end to end: its server, its client, and Magika's own command line beside it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import free_port, skip_module_without
from prometheus_client.parser import text_string_to_metric_families

httpx = pytest.importorskip("httpx")
skip_module_without("magika", "rich")

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "filetype"
MAGIKA = shutil.which("magika", path=str(Path(sys.executable).parent)) or shutil.which("magika")
DEADLINE = 120.0  # seconds; far above what is needed, so that only a hang reaches it
# Files of one suffix that are asked for, of those in the repository.
OF_A_KIND = 20
# Files that Magika treats in a way of their own, most of them without asking its model.
EDGE_CASES = {
    "empty": b"",
    "one-byte": b"x",
    "seven-bytes": b"import ",
    "short-binary": b"\xff\xfe\x00",
    "cut-utf8": b"\xc3",
    "blank": b" \n\t" * 400,
    "vertical-tabs": b"\x0b" * 50,
    "few-bytes-in-blanks": b" " * 20 + b"a b" + b"\n" * 20,
    "blank-block-then-text": b" " * 5000 + b"def f(x):\n    return x\n" * 20,
    "cut-utf8-at-block-end": b" " * 4095 + "éé".encode() + b" " * 5000,
    "exactly-a-window": b"abcd efg" * 128,
    "exactly-a-block": b"x = 1 \n\n" * 512,
    "random": bytes((i * i * 31 + i // 7) % 256 for i in range(6000)),
}


@dataclass
class Answer:
    label: str
    score: float


@dataclass
class Run:
    """All that one run of the service over `files` has shown."""

    files: list[str]
    client: subprocess.CompletedProcess[str]
    metrics: str
    exit_code: int

    @property
    def answers(self) -> dict[str, Answer]:
        rows = map(json.loads, self.client.stdout.splitlines())
        return {row["path"]: Answer(row["label"], row["score"]) for row in rows}


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server has stopped:\n{log.read_text()}"
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server is not ready:\n{log.read_text()}")


@contextmanager
def serving(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    command = [sys.executable, str(EXAMPLE / "server.py"), "--port", str(port), "--timeout", "60000"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url, log)
        yield process, url
    finally:
        process.kill()
        process.wait()


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), "--json", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)


def ask_magika(files: list[str], *options: str) -> dict[str, Answer]:
    """Return what Magika's command line prints for `files`."""
    assert MAGIKA, "the magika package has brought no command"
    command = [MAGIKA, "--jsonl", *options, *files]
    lines = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=DEADLINE
    ).stdout.splitlines()
    values = {row["path"]: row["result"]["value"] for row in map(json.loads, lines)}
    return {path: Answer(value["output"]["label"], value["score"]) for path, value in values.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Copies of some of the repository's own files, which nobody edits meanwhile, and the edge cases."""
    folder = tmp_path_factory.mktemp("files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds: Counter[str] = Counter()
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, folder / "repository" / name
        kinds[source.suffix] += 1
        fits = source.is_file() and not source.is_symlink() and source.stat().st_size <= 1 << 20
        if fits and kinds[source.suffix] <= OF_A_KIND:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    for name, content in EDGE_CASES.items():
        (folder / name).write_bytes(content)
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def run(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(log) as (process, url):
        client = run_client("--url", url, "--concurrency", "64", *files)
        assert client.returncode == 0, client.stderr + log.read_text()
        metrics = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        return Run(files, client, metrics, process.wait(DEADLINE))


def test_the_client_answers_for_every_file_in_order(run: Run) -> None:
    assert list(run.answers) == run.files


def test_every_answer_is_that_of_magikas_own_command_line(run: Run) -> None:
    """A batch of one is summed in another order than a larger one, which moves some scores (see the README).

    So an answer must be what the command line prints either for the file alone or for the file in a batch.
    The tolerance is one digit, for a score that lies on the border between two.
    """
    alone, batched = ask_magika(run.files), ask_magika(run.files, "--batch-size", "64")
    for path, answer in run.answers.items():
        assert any(
            answer.label == expected.label and answer.score == pytest.approx(expected.score, abs=0.0011)
            for expected in (alone[path], batched[path])
        ), f"{path}: {answer}, but alone {alone[path]}, in a batch {batched[path]}"


def test_requests_share_runs_of_the_model(run: Run) -> None:
    totals = {"sum": 0.0, "count": 0.0}
    for family in text_string_to_metric_families(run.metrics):
        for sample in family.samples:
            kind = sample.name.removeprefix("mosec_service_batch_size_")
            if kind in totals and sample.labels.get("stage") == "Model_2":
                totals[kind] += sample.value
    assert totals["sum"] == sum(Path(path).stat().st_size > 0 for path in run.files)
    assert totals["sum"] / totals["count"] > 1


def test_sigterm_ends_the_service_in_good_order(run: Run) -> None:
    assert run.exit_code == 0


def test_without_a_server_the_client_says_what_to_do() -> None:
    client = run_client("--url", f"http://127.0.0.1:{free_port()}", str(EXAMPLE))
    assert client.returncode == 1
    assert "make serve" in client.stderr
    assert "Traceback" not in client.stderr
