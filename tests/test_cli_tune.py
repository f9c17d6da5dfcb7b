"""`mosec-asgi tune`: a small run with real workers, what it refuses, and what it changes of a service that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment_of_programs, python, running, wait_until

from mosec_asgi.cli import main
from mosec_asgi.cli.ctl import Client

SERVICE = """
import time

from mosec_asgi import Server, SSEWorker, Worker


class Decode(Worker):
    def forward(self, data):
        return len(data["text"])


class Model(Worker):
    @staticmethod
    def cost(item):
        return item

    def forward(self, data):
        time.sleep(0.004 + 0.0002 * sum(data))
        return data


class Refusing(Worker):
    def forward(self, data):
        raise ValueError("never")


class Streaming(SSEWorker):
    def forward(self, data):
        yield data


server = Server()
server.append_worker(Decode)
server.append_worker(Model, max_batch_size=4)

several = Server()
several.append_worker(Decode)
several.append_worker(Model, route="/other")

threads = Server()
threads.append_worker(Decode, executor="thread")

streaming = Server()
streaming.append_worker(Streaming)

refusing = Server()
refusing.append_worker(Refusing)

empty = Server()
if __name__ == "__main__":
    server.run()
"""
ITEMS = '{"text": "a"}\n{"text": "four"}\n{"words": 1}\n{"text": "seven77"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tuned_service.py").write_text(SERVICE)
    (tmp_path / "in.jsonl").write_text(ITEMS)
    return tmp_path


# Seconds: a bound. A run ends when all is measured, in some three, and on a busy machine when it comes to that.
def tune(folder: Path, *arguments: str, server: str = "server") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mosec_asgi", "tune", f"tuned_service:{server}", "--input", "in.jsonl",
         "--seconds", "15", "--max-batch-size", "16", "--max-workers", "2", *arguments],
        env=environment_of_programs(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )  # fmt: skip


def test_settings_are_found_from_a_sample(folder: Path) -> None:
    done = tune(folder, "--p99", "80ms")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    model = next(line for line in out.splitlines() if line.lstrip().startswith("Model_2"))
    # By cost, as the class says, and near to what it sleeps: 4 ms + 0.2 ms for each.
    fixed, slope = float(model.split()[1]), float(model.split()[4])
    # A busy machine sleeps longer, and not evenly: a batch in the middle is less moved than the two parts of its time.
    assert 0.9 * 12 < fixed + 40 * slope < 2 * 12
    assert "a unit of cost" in model
    assert "Decode_1 refused 1 items" in out
    assert "calls a second with p99 <= 80 ms; as defined:" in out
    assert "server.append_worker(Decode, num=" in out
    # It takes lists, so that it is never given single items.
    assert "server.append_worker(Model, num=" in out
    assert "max_batch_size=" in out
    assert "mosec-asgi serve tuned_service:server" in out


def test_a_target_that_cannot_be_met_is_said_with_the_best_that_can(folder: Path) -> None:
    done = tune(folder, "--p99", "2ms")
    assert done.returncode == 1, done.stderr
    assert "No settings meet the target: with next to no load, the p99 is" in done.stdout
    assert "append_worker" not in done.stdout


def test_a_model_that_takes_no_item_ends_the_run(folder: Path) -> None:
    done = tune(folder, "--throughput", server="refusing")
    assert done.returncode == 1
    assert "Refusing takes none of the sample's items" in done.stderr


def test_a_running_service_is_given_what_can_be_changed_while_it_serves(folder: Path) -> None:
    program = python(folder / "tuned_service.py", "--admin-socket", str(folder / "admin.sock"))
    with running(program, folder / "log"):
        wait_until((folder / "admin.sock").exists, "the admin socket")
        done = tune(folder, "--throughput", "--apply", str(folder / "admin.sock"))
        assert "Model_2: max_batch_size=" in done.stdout, done.stdout + done.stderr
        told = Client(str(folder / "admin.sock")).ask("GET", "/status")
        assert f"max_batch_size={told['values']['Model_2']['max_batch_size']}" in done.stdout
        # On a machine that is busy with something else there may be no time to measure larger batches.
        assert told["values"]["Model_2"]["max_batch_size"] > 4 or "the time was over" in done.stdout


@pytest.mark.parametrize(
    ("server", "arguments", "message"),
    [
        ("server", [], "either --p99 TIME, or --throughput"),
        ("server", ["--p99", "1s", "--throughput"], "either --p99 TIME, or --throughput"),
        ("server", ["--p99", "100"], "is no time with its unit"),
        ("server", ["--p99", "0ms"], "is no time with its unit"),
        ("server", ["--p99", "nan"], "is no time with its unit"),
        ("server", ["--p99", "-5ms"], "is no time with its unit"),
        ("server", ["--throughput", "--seconds", "nan"], "is no number of seconds"),
        ("server", ["--throughput", "--route", "/none"], "there is no route '/none'; --route takes one of /inference"),
        ("several", ["--throughput"], "has several routes; --route takes one of /inference, /other"),
        ("threads", ["--throughput"], "does not run in processes of its own"),
        ("streaming", ["--throughput"], "streams: the time of a call is not that of a batch"),
        ("empty", ["--throughput"], "no stage"),
        ("server", ["--throughput", "--column", "none"], "which --column names"),
        ("server", ["--throughput", "--apply", "none.sock"], "there is no socket at none.sock"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_a_worker_starts(
    folder: Path,
    server: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "tuned_service", raising=False)
    assert main(["tune", f"tuned_service:{server}", "--input", "in.jsonl", *arguments]) != 0
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    sys.modules.pop("tuned_service", None)
