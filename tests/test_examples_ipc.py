"""The example of large arrays between stages: all ways give the same answer, redis as well where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness import ROOT, Program, running, wait_until

EXAMPLE = ROOT / "examples" / "ipc"


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A redis-server that writes nothing to disk, on a socket that nobody else knows; empty without one."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield ""
        return
    redis = pytest.importorskip("redis")
    with tempfile.TemporaryDirectory(prefix="redis") as folder:
        url = f"unix://{folder}/s"
        options = ["--port", "0", "--unixsocket", f"{folder}/s", "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        try:
            with redis.from_url(url) as client:
                wait_until(answers, "redis does not answer")
            yield url
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"REDIS_URL": redis_url, "MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready()
        yield program


def test_all_ways_give_the_same_answer(program: Program, redis_url: str) -> None:
    side = 500
    wave = np.sin(np.linspace(0, 4 * np.pi, side, dtype=np.float32))
    mean = [wave.mean(), np.outer(wave, wave).mean(), 1.0]
    for route in ("/default", "/numbin", "/redis") if redis_url else ("/default", "/numbin"):
        answer: dict[str, Any] = program.client.post(route, json={"side": side}).json()
        assert (answer["shape"], answer["bytes"]) == ([side, side, 3], side * side * 3 * 4)
        assert answer["mean"] == pytest.approx(mean, abs=1e-3)


def test_the_client_measures_them(program: Program, redis_url: str) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), "--side", "256", "--count", "3", "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    default, numbin, redis = done.stdout.splitlines()
    assert all("0.8 MB" in line for line in (default, numbin))
    assert ("0.8 MB" if redis_url else "no REDIS_URL") in redis


@pytest.mark.parametrize("side", [0, 1025, 1.5, "1", True, None])
def test_a_wrong_size_is_refused(program: Program, side: object) -> None:
    answer = program.client.post("/default", json={"side": side})
    assert (answer.status_code, "from 1 to 1024" in answer.text) == (422, True)
