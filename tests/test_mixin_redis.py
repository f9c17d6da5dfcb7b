"""`RedisShmIPCMixin` with a real redis-server of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from harness import Program, python, running, wait_until, written
from mosec_pair import Pair, post_together, serving_both

from mosec_asgi.errors import DefinitionError, ServerError
from mosec_asgi.mixin import RedisShmIPCMixin
from mosec_asgi.mixin.redis_worker import URL_VARIABLE


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A redis-server that writes nothing to disk, on a socket that nobody else knows."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    with tempfile.TemporaryDirectory(prefix="redis") as folder:
        path = f"{folder}/s"
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
        try:
            with redis.from_url(f"unix://{path}") as client:
                wait_until(lambda: answers(client), "redis does not answer")
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait()


def answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty redis that the workers of a test use."""
    monkeypatch.setenv(URL_VARIABLE, redis_url)
    monkeypatch.setenv("TESTS_REDIS_URL", redis_url)
    with redis.from_url(redis_url) as client:
        client.flushall()
        yield client


def own_keys(client: Any) -> list[bytes]:
    return list(client.keys("mosec_asgi:*"))


class Stage(RedisShmIPCMixin):
    def forward(self, data: Any) -> Any:
        return data


# -- one worker --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, {"a": [1, b"raw", {2}]}, b"x" * 2_000_000], ids=lambda value: repr(value)[:20])
def test_what_one_stage_puts_in_the_next_takes_out(client: Any, value: Any) -> None:
    first, second = Stage(), Stage()
    key = first.serialize_ipc(value)
    assert own_keys(client) == [key]
    assert second.deserialize_ipc(key) == value
    # Until it is answered it may be run again, by another worker.
    assert Stage().deserialize_ipc(key) == value
    second._answered([key])
    assert own_keys(client) == []
    first.close()
    second.close()


def test_a_key_expires_if_nobody_reads_it(client: Any) -> None:
    class Hasty(Stage):
        redis_ttl = 1

    worker = Hasty()
    key = worker.serialize_ipc("data")
    assert 0 < client.pttl(key) <= 1000
    wait_until(lambda: not own_keys(client), "the key does not expire")
    with pytest.raises(ServerError, match=r"redis has lost .* expired after 1 s \(redis_ttl\)"):
        worker.deserialize_ipc(key)
    worker.close()


def test_by_default_a_key_lives_for_five_minutes(client: Any) -> None:
    worker = Stage()
    assert 290 < client.ttl(worker.serialize_ipc("data")) <= 300
    worker.close()


def test_no_two_keys_are_the_same_and_none_costs_a_question(client: Any) -> None:
    workers = [Stage(), Stage()]
    before = client.info("commandstats")
    keys = [worker.serialize_ipc(number) for number in range(10) for worker in workers]
    after = client.info("commandstats")
    assert len(set(keys)) == len(keys)
    assert after["cmdstat_set"]["calls"] - before.get("cmdstat_set", {"calls": 0})["calls"] == len(keys)
    assert "cmdstat_incr" not in after
    for worker in workers:
        worker.close()


def test_the_url_is_left_where_spawned_workers_find_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "")
    worker = Stage()
    with pytest.raises(DefinitionError, match=r"call RedisShmIPCMixin.set_redis_url"):
        worker.serialize_ipc("data")
    RedisShmIPCMixin.set_redis_url(redis_url)
    assert os.environ[URL_VARIABLE] == redis_url
    assert worker.deserialize_ipc(worker.serialize_ipc("data")) == "data"
    worker.close()


def test_a_worker_that_never_used_redis_closes_all_the_same() -> None:
    Stage().close()


# -- services ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(client: Any, tmp_path: Path) -> Iterator[Pair]:
    with serving_both("redis_ipc", tmp_path) as pair:
        yield pair


def test_a_service_written_for_mosec_answers_the_same_bytes(pair: Pair, client: Any) -> None:
    for times in (1, 1000, 200_000):
        expected = b"%d %s" % (3 * times, (b"abc" * times)[:8])
        for answer in pair.post("/inference", b'{"text": "abc", "times": %d}' % times):
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
            assert answer.content == expected

    def together(program: Program) -> list[bytes]:
        bodies = [b'{"text": "%d ", "times": 1}' % number for number in range(16)]
        return [answer.content for answer in post_together(program, "/inference", bodies)]

    expected_of_each = [b"%d %d " % (len(str(number)) + 1, number) for number in range(16)]
    assert [together(program) for program in pair.programs] == [expected_of_each] * len(pair.programs)
    wait_until(lambda: not own_keys(client), "what has been answered has left something behind")


DYING = """
import os, signal, time
from mosec_asgi import Server, Worker
from mosec_asgi.mixin import RedisShmIPCMixin

class First(RedisShmIPCMixin, Worker):
    redis_ttl = 60

    def forward(self, data):
        return data

class Second(RedisShmIPCMixin, Worker):
    def deserialize_ipc(self, data):
        if os.path.exists("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        while os.path.exists("waits"):
            time.sleep(0.01)
        return super().deserialize_ipc(data)

    def forward(self, data):
        if "dies" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return data

if __name__ == "__main__":
    server = Server()
    server.append_worker(First)
    server.append_worker(Second, max_batch_size=3, max_wait_time=2000)
    server.run()
"""


def test_a_killed_worker_leaves_no_key_that_does_not_expire(client: Any, redis_url: str, tmp_path: Path) -> None:
    command = python(written(tmp_path, DYING), "--timeout", "20000")
    with running(command, tmp_path / "log", cwd=tmp_path, environment={URL_VARIABLE: redis_url}) as program:
        program.wait_ready()
        assert program.client.post("/inference", content=b'"lives"').json() == "lives"
        # In one batch with what kills its worker; alone it is run again, and its data are still there.
        bodies = [b'"dies"', b'"lives"', b'"lives too"']
        dies, *live = post_together(program, "/inference", bodies)
        assert dies.status_code == 500
        assert [answer.json() for answer in live] == ["lives", "lives too"]
        # A worker deletes what it has read after it has answered.
        wait_until(lambda: len(own_keys(client)) == 1, "not one key is left, that of the task without an answer")
        (key,) = own_keys(client)
        assert 0 < client.pttl(key) <= 60_000
        client.delete(key)
        # It dies before it has read.
        (tmp_path / "dies").touch()
        assert program.client.post("/inference", content=b'"unread"').status_code == 500
        (key,) = own_keys(client)
        assert 0 < client.pttl(key) <= 60_000
        (tmp_path / "dies").unlink()
        wait_until(
            lambda: program.client.post("/inference", content=b'"again"').status_code == 200, "it does not recover"
        )


def test_a_server_that_is_killed_leaves_no_key_that_does_not_expire(
    client: Any, redis_url: str, tmp_path: Path
) -> None:
    command = python(written(tmp_path, DYING), "--timeout", "20000")
    environment = {URL_VARIABLE: redis_url}
    (tmp_path / "waits").touch()
    with (
        running(command, tmp_path / "log", cwd=tmp_path, environment=environment, stops=False) as program,
        ThreadPoolExecutor(1) as threads,
    ):
        program.wait_ready()
        unanswered = threads.submit(program.client.post, "/inference", content=b'"waits"')
        wait_until(lambda: own_keys(client), "nothing is left in redis")
        program.send(signal.SIGKILL)
        program.wait()
        assert isinstance(unanswered.exception(), httpx.TransportError)
        program.assert_nothing_left()
        (key,) = own_keys(client)
        assert 0 < client.pttl(key) <= 60_000
