"""The consumer of examples/jobs with a real redis-server: jobs are run, retried, claimed, and finished at the end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Program, environment_of_programs, free_port, running, skip_module_without, wait_until

skip_module_without("redis")

from redis import Redis  # noqa: E402
from redis.exceptions import ConnectionError  # noqa: E402

EXAMPLE = ROOT / "examples" / "jobs"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A redis-server that writes nothing to disk."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    with tempfile.TemporaryDirectory(prefix="jobs") as folder:
        path = Path(folder) / "socket"
        command = [binary, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with Redis.from_url(f"unix://{path}") as client:
                wait_until(lambda: answers(client), "redis does not answer")
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except ConnectionError:
        return False


@pytest.fixture
def redis(url: str) -> Iterator[Any]:
    with Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def consumer(url: str, redis: Any, log: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    """A consumer that takes jobs, with the test's settings."""
    variables = {"REDIS_URL": url, **getattr(request, "param", {})}
    with running([sys.executable, str(EXAMPLE / "consumer.py")], log, environment=variables) as program:
        program.wait_for_output("takes jobs from")
        yield program


def submit(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "submit.py"), *arguments]
    variables = environment_of_programs() | {"REDIS_URL": url}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)


def results(redis: Any, jobs: list[str]) -> list[Any]:
    wait_until(lambda: all(redis.mget([f"result:{job}" for job in jobs])), "a job has no result")
    return [json.loads(redis.get(f"result:{job}")) for job in jobs]


def pending(redis: Any) -> int:
    return int(redis.xpending("jobs", "models")["pending"])


# Two calls at a time, of many more jobs: most are refused with 429, and tried again.
@pytest.mark.parametrize("consumer", [{"MOSEC_CAPACITY": "2"}], indirect=True)
def test_each_job_is_run_and_acknowledged_though_many_find_no_room_at_first(
    consumer: Program, redis: Any, url: str
) -> None:
    jobs = [redis.xadd("jobs", {"text": "word " * number}) for number in range(5)]
    assert results(redis, jobs) == [{"result": {"words": number}} for number in range(5)]
    wait_until(lambda: pending(redis) == 0, "a job is not acknowledged")
    done = submit(url, "To be, or not to be")
    assert (done.returncode, done.stdout.split("  ")[1]) == (0, '{"result": {"words": 6}}\n'), done.stderr


@pytest.mark.parametrize("consumer", [{"LEFT_AFTER": "0.01"}], indirect=True)
def test_a_job_of_a_consumer_that_died_is_claimed(consumer: Program, redis: Any) -> None:
    # Read and claimed by somebody who says no more, so that the consumer is never given it as a new one.
    pipe = redis.pipeline(transaction=True)
    pipe.xadd("jobs", {"text": "a b c"}, id="1-1")
    pipe.xreadgroup("models", "dead", {"jobs": ">"})
    pipe.execute()
    assert results(redis, ["1-1"]) == [{"result": {"words": 3}}]
    wait_until(lambda: pending(redis) == 0, "the job is not acknowledged")


def test_on_sigterm_it_finishes_what_it_has_and_takes_no_more(consumer: Program, redis: Any) -> None:
    jobs = [redis.xadd("jobs", {"text": "a b"}) for _ in range(200)]
    consumer.send(signal.SIGTERM)
    assert consumer.wait() == 0
    consumer.assert_nothing_left()
    assert pending(redis) == 0
    taken = redis.xinfo_groups("jobs")[0]["entries-read"] or 0
    assert [bool(redis.get(f"result:{job}")) for job in jobs] == [place < taken for place in range(200)]
    assert "Traceback" not in consumer.output


def test_without_redis_the_client_says_so_in_one_line() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    began = time.monotonic()
    done = submit(url, "text")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert url in done.stderr
    assert time.monotonic() - began < 30


def test_a_job_without_a_result_is_said_to_have_none_yet(redis: Any, url: str) -> None:
    done = submit(url, "text", "--wait", "0.1")
    assert (done.returncode, done.stdout.split("  ")[1]) == (1, "no result yet\n")
