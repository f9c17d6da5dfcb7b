"""Workers that are forked from a template which has loaded their model: what they share, and how all of it ends."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from common import until
from fakes import spec
from harness import Program, child_processes, serving, wait_until
from lives import Life
from preload_workers import Endless, Helped, Loaded, Random, Stubborn, Unable

from mosec_asgi import Server
from mosec_asgi.errors import StartupError
from mosec_asgi.pool.process.launcher import ProcessLauncher
from mosec_asgi.worker import Worker

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a pidfd")


class Pool:
    """The workers of one launcher."""

    def __init__(self) -> None:
        self.launcher = ProcessLauncher(asyncio.get_running_loop(), "spawn", preload=True)
        self.lives: list[Life] = []

    def launch(self, worker: type[Worker] = Loaded, number: int = 1) -> Life:
        self.lives.append(Life(self.launcher, spec(worker, worker_id=number)))
        return self.lives[-1]

    async def pair(self, worker: type[Worker] = Loaded) -> list[Life]:
        return [await life.wait_ready() for life in (self.launch(worker), self.launch(worker, 2))]

    @property
    def template(self) -> int:
        [pid] = [pid for pid in child_processes(os.getpid()) if b"spawn_main" in command(pid)]
        return pid

    async def close(self) -> None:
        for life in self.lives:
            life.link.kill()
        for life in self.lives:
            await life.ended()
            assert len(life.ends) == 1, "its end is told once"
        self.launcher.close()


async def asked(life: Life, body: bytes) -> Any:
    return json.loads(await life.ask(body))


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    # What `multiprocessing` keeps is there before.
    resource_tracker.ensure_running()
    before, children = descriptors(), child_processes(os.getpid())
    made = Pool()
    yield made
    await made.close()
    assert child_processes(os.getpid()) == children
    made.lives.clear()
    assert descriptors() <= before


async def test_workers_are_loaded_once_and_forked_from_there(pool: Pool) -> None:
    first, second = [await asked(life, b'"who"') for life in await pool.pair()]
    assert first["loaded"] == second["loaded"] == [pool.template, 0]
    assert (first["id"], second["id"]) == (1, 2)
    for life, who in zip(pool.lives, (first, second), strict=True):
        assert who["forked"] == who["pid"] == life.link.pid
        assert who["pid"] in child_processes(pool.template)


async def test_each_worker_has_random_numbers_of_its_own(pool: Pool) -> None:
    first, second = [await asked(life, b"1") for life in await pool.pair(Random)]
    assert not set(first) & set(second)


async def test_a_worker_holds_nothing_of_its_siblings_or_of_its_template(pool: Pool) -> None:
    first, second = [await asked(life, b'"descriptors"') for life in await pool.pair()]
    assert first.count("socket") == 1
    assert [kind for kind in first if kind != "pipe"] == [kind for kind in second if kind != "pipe"]
    # With these two `multiprocessing` would tell the first one of the template's end.
    assert second.count("pipe") - first.count("pipe") == 2


async def test_a_replacement_is_forked_from_the_same_template(pool: Pool) -> None:
    first, _ = await pool.pair()
    before = await asked(first, b'"who"')
    first.send(b'["exit", 7]')
    assert await first.ended() == "exited with status 7"
    assert (await asked(await pool.launch().wait_ready(), b'"who"'))["loaded"] == before["loaded"]


async def test_a_worker_can_be_killed_more_than_once_and_leaves_its_sibling_alone(pool: Pool) -> None:
    first, second = await pool.pair()
    first.link.kill()
    first.link.kill()
    assert await first.ended() == "was killed by signal 9 (SIGKILL)"
    assert await asked(second, b"5") == 5


async def test_a_worker_ends_when_its_pipe_does(pool: Pool) -> None:
    first, _ = await pool.pair()
    first.link.finish()
    assert await first.ended() == "exited with status 0"


@pytest.mark.parametrize(("worker", "said"), [(Unable, "OSError: no weights"), (Stubborn, "OSError: no connection")])
async def test_a_worker_that_cannot_be_loaded_or_forked_says_why(pool: Pool, worker: type[Worker], said: str) -> None:
    both = [pool.launch(worker), pool.launch(worker, 2)]
    for life in both:
        assert await life.ended() == "exited with status 1"
        ((why,),) = life.all("failed")
        assert said in why
        assert life.said[0] == ("failed", why)
    # Another try is one.
    assert await pool.launch(worker).ended() == "exited with status 1"


async def test_workers_outlive_their_template_and_the_next_one_is_forked_from_another(pool: Pool) -> None:
    first, second = await pool.pair()
    template = pool.template
    os.kill(template, signal.SIGKILL)
    assert (await asked(first, b"5"), await asked(second, b"6")) == (5, 6)
    third = await pool.launch().wait_ready()
    assert (await asked(third, b'"who"'))["loaded"][0] == pool.template != template
    assert (await asked(first, b"7"), await asked(second, b"8")) == (7, 8)


async def test_a_template_has_a_name_as_workers_have(pool: Pool) -> None:
    [first, _] = await pool.pair()
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (pool.template, first.link.pid)]
    # The kernel has room for 15 bytes.
    assert names == ["Echo_1:template", "Echo_1:1"]


async def test_what_a_template_has_started_ends_with_it(pool: Pool) -> None:
    helper = await asked((await pool.pair(Helped))[0], b"1")
    assert lives(helper)
    await pool.close()
    await until(lambda: not lives(helper))


async def test_what_a_dead_template_has_started_ends_with_the_last_worker_that_needs_it(pool: Pool) -> None:
    first, second = await pool.pair(Helped)
    helper = await asked(first, b"1")
    os.kill(pool.template, signal.SIGKILL)
    first.link.kill()
    await first.ended()
    assert await asked(second, b"1") == helper
    assert lives(helper)
    second.link.kill()
    await second.ended()
    await until(lambda: not lives(helper))


async def test_a_server_that_takes_in_orphans_reaps_them(pool: Pool) -> None:
    prctl, pr_set_child_subreaper = ctypes.CDLL(None).prctl, 36
    first, second = await pool.pair()
    pids = {life.link.pid for life in pool.lives}
    # As process number 1 of a container is.
    prctl(pr_set_child_subreaper, 1)
    try:
        os.kill(pool.template, signal.SIGKILL)
        first.link.kill()
        second.link.kill()
        await first.ended()
        await second.ended()
        assert not pids & set(child_processes(os.getpid()))
    finally:
        prctl(pr_set_child_subreaper, 0)


async def test_a_template_that_never_loads_is_ended_with_the_workers_that_wait_for_it(pool: Pool) -> None:
    both = [pool.launch(Endless), pool.launch(Endless, 2)]
    template = pool.template
    assert both[0].link.pid == both[1].link.pid == template
    both[0].link.kill()
    for life in both:
        assert await life.ended() == "was killed by signal 9 (SIGKILL)"
    assert not lives(template)


async def test_a_worker_whose_template_hangs_can_be_ended_all_the_same(pool: Pool) -> None:
    first, second = await pool.pair()
    template, pid = pool.template, first.link.pid
    assert pid is not None
    os.kill(template, signal.SIGSTOP)
    first.link.kill()
    # Who knows how is dead as well by now.
    assert await first.ended() == "has ended, nobody knows how"
    assert not lives(pid)
    # It was killed a moment ago.
    await until(lambda: not lives(template))
    assert await asked(second, b"5") == 5


async def test_a_worker_can_be_reaped_without_a_loop(pool: Pool) -> None:
    first, _ = await pool.pair()
    pid = first.link.pid
    assert pid is not None
    asyncio.get_running_loop().remove_reader(first.link._process._watched)
    first.link.close()
    first.link.reap(0.01)
    assert not lives(pid)
    first.ends.append("reaped")


async def test_without_pidfds_it_is_refused_with_the_reason(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(StartupError, match=r"worker 1 of Echo_1 cannot be started: preload needs Linux"):
        pool.launch()
    pool.lives.clear()


# -- a service ---------------------------------------------------------------------------------------------------------

MEGABYTES = 100


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    env = [{"HEAVY": str(MEGABYTES)}] * 2
    stage = f"from preload_workers import Heavy\nserver.append_worker(Heavy, num=2, preload=True, env={env})"
    with serving(tmp_path_factory.mktemp("preload"), stage) as program:
        yield program


def tree(program: Program) -> tuple[int, list[int]]:
    """Return the template of a service and its workers."""
    [template] = [pid for pid in child_processes(program.process.pid) if b"spawn_main" in command(pid)]
    return template, [pid for pid in child_processes(template) if lives(pid)]


def metrics_directory(pid: int) -> Path:
    """Return where a process counts with prometheus_client."""
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    [path] = [line.partition("=")[2] for line in environment if line.startswith("PROMETHEUS_MULTIPROC_DIR=")]
    return Path(path)


def ready(program: Program) -> int:
    return program.metric('workers_ready{stage="Heavy_1"}')


def proportional_set_size(pid: int) -> float:
    """Return MB in which memory that is shared counts in parts."""
    [line] = [row for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if row.startswith("Pss:")]
    return int(line.split()[1]) / 1024


def test_two_workers_share_the_memory_of_their_model(service: Program) -> None:
    total = sum(service.client.post("/inference", json=1).json() for _ in range(4))
    assert total == 4 * MEGABYTES, "they have read all of it"
    _, workers = tree(service)
    assert len(workers) == 2
    # A third each: the template has it too.
    assert all(proportional_set_size(pid) < MEGABYTES / 2 for pid in workers)


def test_what_forked_workers_count_is_added_up(service: Program) -> None:
    def asked() -> float:
        lines = service.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("asked_total "))

    before = asked()
    for _ in range(3):
        service.client.post("/inference", json=1)
    assert asked() == before + 3


def test_a_worker_that_crashes_is_replaced_without_loading_again(service: Program) -> None:
    template, workers = tree(service)
    before = service.restarts("Heavy_1")
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: service.restarts("Heavy_1") == before + 1, "it is replaced")
    wait_until(lambda: ready(service) == 2, "another is ready")
    assert tree(service)[0] == template
    assert service.client.post("/inference", json=1).json() == MEGABYTES


def test_a_template_that_dies_takes_nobody_with_it_and_is_started_again_when_it_is_needed(service: Program) -> None:
    template, workers = tree(service)
    directory = metrics_directory(template)
    before = service.restarts("Heavy_1")
    os.kill(template, signal.SIGKILL)
    wait_until(lambda: not lives(template), "it is dead")
    assert all(map(lives, workers))
    assert service.client.post("/inference", json=1).json() == MEGABYTES
    assert service.restarts("Heavy_1") == before
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: service.restarts("Heavy_1") == before + 1, "the worker is replaced")
    wait_until(lambda: ready(service) == 2, "the other is ready")
    assert service.client.post("/inference", json=1).json() == MEGABYTES
    assert lives(workers[1])
    assert tree(service)[0] != template
    assert directory.is_dir(), "the server still shows what its workers count"


def test_a_server_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "server.append_worker(Nap, num=2, preload=True)", stops=False) as program:
        directory = metrics_directory(tree(program)[0])
        assert directory.is_dir()
        program.send(signal.SIGKILL)
        program.wait()
        program.assert_nothing_left()
        assert not directory.exists()


async def test_a_stage_that_cannot_be_started_leaves_no_template() -> None:
    resource_tracker.ensure_running()
    children = child_processes(os.getpid())
    server = Server()
    server.append_worker(Stubborn, num=2, preload=True)
    with pytest.raises(StartupError, match="no connection"):
        async with server.lifespan():
            pass
    assert child_processes(os.getpid()) == children
