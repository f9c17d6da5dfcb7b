"""Workers in actors of Ray, on two nodes of this machine: the promises of all executors, and what is Ray's alone.

All tests that need a cluster stand in this file, as it takes seconds to start; they share an event loop, and with it
one connection to Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import ray_workers as workers
import test_executors as contract
from authority import Authority, needs_openssl, variables
from harness import python, running, skip_module_without
from ray_nodes import RayNodes

from mosec_asgi import Server, Worker
from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.engine import StageStatistics
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.config import check_keywords, resolve
from mosec_asgi.definition import plan_service
from mosec_asgi.errors import StartupError
from mosec_asgi.messages import Call
from mosec_asgi.pool.link import Launcher
from mosec_asgi.pool.process.launcher import ProcessLauncher
from mosec_asgi.pool.ray.cluster import RayCluster
from mosec_asgi.pool.ray.launcher import RayLauncher
from mosec_asgi.ray_options import RayOptions
from mosec_asgi.runtime import Runtime

skip_module_without("ray")
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes() as nodes:
        yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(nodes: RayNodes) -> AsyncIterator[RayCluster]:
    os.environ["RAY_ADDRESS"] = nodes.address
    cluster = RayCluster(asyncio.get_running_loop())
    cluster.use()
    yield cluster
    cluster.leave()
    del os.environ["RAY_ADDRESS"]


@pytest.fixture
def executor(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the workers of `contract.serving` on Ray."""
    monkeypatch.setitem(contract.EXECUTORS, "ray", lambda loop: RayLauncher(loop, RayOptions(), cluster))
    return "ray"


# The promises that all executors keep.
globals().update(
    (name, test)
    for name, test in vars(contract).items()
    if name.startswith("test_") and "executor" in inspect.signature(test).parameters
)


# -- what is Ray's alone ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def on_ray(cluster: RayCluster, *stages: Runtime, **settings: Any) -> AsyncIterator[contract.Engine]:
    """Start the engine of a pipeline, whose stages may run on Ray or in processes."""
    # An actor takes seconds to start where other tests run beside.
    settings = {"timeout": 1000 * int(contract.PATIENCE), **settings}
    plans, routes, limits = plan_service({"/inference": list(stages)}, resolve(check_keywords(settings)))

    def launcher(plan: StagePlan, loop: asyncio.AbstractEventLoop) -> Launcher:
        return RayLauncher(loop, plan.ray, cluster) if plan.executor == "ray" else ProcessLauncher(loop, "spawn")

    coordinator = Coordinator(plans, routes, launcher, limits)
    await coordinator.start()
    try:
        yield contract.Engine(coordinator)
    finally:
        await coordinator.stop(contract.PATIENCE)
    assert coordinator.statistics().admitted == 0


def ray_stage(worker: type[Worker], num: int = 1, **options: Any) -> Runtime:
    return Runtime(worker, num, executor="ray", **options)


def waiting(stage: StageStatistics) -> int:
    """Return how many tasks are at a stage."""
    return stage.queued + stage.in_flight


async def seen(engine: contract.Engine, place: int, number: int) -> set[Any]:
    """Return what so many different workers say at a place of their answers."""
    found: set[Any] = set()
    for _ in range(2000):
        found.update(answer[place] for answer in await asyncio.gather(*(engine.ask(None) for _ in range(8))))
        if len(found) >= number:
            break
    return found


async def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what Ray does, which takes its time on a busy machine."""
    until = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < until, "what was waited for has not happened"
        await asyncio.sleep(0.01)


async def test_workers_have_their_environment_and_are_spread(cluster: RayCluster) -> None:
    stage = ray_stage(workers.Where, 2, env=[{"COLOR": "red"}, {"COLOR": "green"}], placement="SPREAD")
    async with on_ray(cluster, stage) as engine:
        assert await seen(engine, 2, 2) == {"red", "green"}
        assert len(await seen(engine, 1, 2)) == 2


async def test_resources_decide_where_a_worker_runs(cluster: RayCluster, nodes: RayNodes) -> None:
    stage = ray_stage(workers.Where, ray_actor_options={"resources": {"second": 1}}, placement="PACK")
    async with on_ray(cluster, stage) as engine:
        assert (await engine.ask(None))[1] == nodes.second


async def test_what_no_node_has_is_named_where_a_stage_cannot_start(cluster: RayCluster) -> None:
    stage = ray_stage(workers.Where, ray_actor_options={"num_gpus": 3})
    with pytest.raises(StartupError, match="it asks for 3 GPU, and no node has that"):
        async with on_ray(cluster, stage, start_timeout=200):
            pass


async def test_options_that_ray_refuses_are_named(cluster: RayCluster) -> None:
    with pytest.raises(StartupError, match=r"Ray refuses the actor: .*no_such_option"):
        async with on_ray(cluster, ray_stage(workers.Where, ray_actor_options={"no_such_option": 3})):
            pass


async def test_a_stage_of_processes_may_stand_before_one_on_ray(cluster: RayCluster) -> None:
    async with on_ray(cluster, Runtime(workers.Adds), ray_stage(workers.Adds), Runtime(workers.Adds)) as engine:
        answer = await engine.ask([])
    assert len(set(answer)) == 3


async def test_what_dies_with_its_worker_is_tried_elsewhere_and_another_takes_its_place(cluster: RayCluster) -> None:
    async with on_ray(cluster, ray_stage(workers.Dies, 2)) as engine:
        before = await seen(engine, 1, 2)
        outcomes = await asyncio.gather(engine.outcome("die"), *(engine.outcome(number) for number in range(50)))
        assert outcomes[0].code == 500
        assert b"the worker died" in bytes(outcomes[0].payload)
        assert [outcome.code for outcome in outcomes[1:]] == [200] * 50
        await wait_for(lambda: engine.coordinator.statistics().stages[0].ready == 2)
        assert not before & await seen(engine, 1, 2)


async def test_a_stage_is_scaled_and_restarted_while_it_serves(cluster: RayCluster) -> None:
    async with on_ray(cluster, ray_stage(workers.Dies, 1)) as engine:
        before = await seen(engine, 1, 1)
        asking = asyncio.ensure_future(asyncio.gather(*(engine.ask(number) for number in range(500))))
        await engine.coordinator.scale(0, 2)
        assert len(await seen(engine, 1, 2)) == 2
        await engine.coordinator.scale(0, 1)
        await engine.coordinator.restart(0)
        assert not before & await seen(engine, 1, 1)
        assert [number for number, _ in await asking] == list(range(500))


async def test_a_node_that_dies_under_load_costs_no_call(cluster: RayCluster, nodes: RayNodes) -> None:
    extra = nodes.add("second")
    # Two on one of the nodes, and one on the other.
    stage = ray_stage(workers.Where, 3, ray_actor_options={"resources": {"second": 40}}, max_attempts=5)
    async with on_ray(cluster, stage) as engine:
        assert await seen(engine, 1, 2) == {extra, nodes.second}
        answers: list[Any] = []

        async def ask() -> None:
            while not dead.done() or dead.result() + 200 > len(answers):
                answers.append(await engine.ask(None))

        dead: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asking = [asyncio.ensure_future(ask()) for _ in range(8)]
        await wait_for(lambda: len(answers) > 100)
        await asyncio.to_thread(nodes.remove, extra)
        dead.set_result(len(answers))
        await asyncio.gather(*asking)
        assert extra in {node for _, node, _ in answers}
        # There is room for two.
        await wait_for(lambda: engine.coordinator.statistics().stages[0].ready == 2)
        assert await seen(engine, 1, 1) == {nodes.second}
    while len((await cluster.look()).nodes) > 2:
        await asyncio.sleep(0.05)


async def test_without_its_broker_a_service_starts_its_workers_anew(cluster: RayCluster) -> None:
    async with on_ray(cluster, ray_stage(workers.Dies, 1)) as engine:
        (before,) = await seen(engine, 1, 1)
        assert cluster.broker_pid is not None
        # As when the head of the cluster has been gone for long, and Ray ends what is connected to it.
        os.kill(cluster.broker_pid, signal.SIGKILL)
        await wait_for(lambda: not engine.coordinator.statistics().stages[0].ready)
        await wait_for(lambda: engine.coordinator.statistics().stages[0].ready)
        assert before not in await seen(engine, 1, 1)
        await wait_for(lambda: not Path(f"/proc/{before}").exists())


async def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python has it of a package that is not there.
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StartupError, match=r"pip install 'mosec-asgi\[ray\]'"):
        async with on_ray(RayCluster(asyncio.get_running_loop()), ray_stage(workers.Where)):
            pass


async def test_large_arrays_pass_between_nodes_by_the_store_and_are_freed(cluster: RayCluster) -> None:
    stages = ray_stage(workers.Makes), ray_stage(workers.Sums, ray_actor_options={"resources": {"second": 1}})
    async with on_ray(cluster, *stages) as engine:
        for size in (10, 1_000_000, 200_000):
            total, writeable, *_ = await engine.ask(size)
            assert total == size * (size - 1) / 2
            # What lies in the store is read in place.
            assert writeable == (size == 10)
        for _ in range(100):
            if await engine.ask("kept") == [0]:
                break
        assert await engine.ask("kept") == [0]


async def test_what_is_lost_with_its_owner_is_made_again(cluster: RayCluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stages = ray_stage(workers.Makes), ray_stage(workers.Sums, env=[{"GATE": str(gate)}])
    async with on_ray(cluster, *stages, timeout=60_000) as engine:
        before = (await engine.ask(10))[2]
        _, first = engine.submit(workers.Sums.gate)
        await wait_for(gate.with_suffix(".begun").exists)
        others = [engine.submit(200_000 + number)[1] for number in range(5)]
        # All have been made.
        await wait_for(lambda: not waiting(engine.coordinator.statistics().stages[0]))
        os.kill(before, signal.SIGKILL)
        await wait_for(lambda: not Path(f"/proc/{before}").exists())
        await wait_for(lambda: engine.coordinator.statistics().stages[0].restarts == 1)
        await wait_for(lambda: engine.coordinator.statistics().stages[0].ready == 1)
        gate.touch()
        made_by = set()
        for number, caller in enumerate(others, 200_000):
            outcome = await asyncio.wait_for(caller.future, 60)
            assert outcome.code == 200, outcome
            total, _, pid, _ = json.loads(outcome.payload)
            assert total == number * (number - 1) / 2
            made_by.add(pid)
        # Until a node has heard of the owner's death, what it has there can still be read.
        assert made_by - {before}
        assert (await first.future).code == 200


async def test_a_stage_has_as_many_workers_as_fit_into_the_cluster(cluster: RayCluster) -> None:
    server = Server()
    # The second node has 100 of it.
    options = {"resources": {"second": 40}}
    server.append_worker(workers.Where, num="auto", executor="ray", ray_actor_options=options)
    async with server.lifespan():
        await wait_for(lambda: server.statistics().stages[0].ready == 2)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
async def test_a_cluster_that_is_not_there_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(StartupError, match=f"cannot connect to a Ray cluster at {address}: .* RAY_ADDRESS=host:port"):
        async with on_ray(RayCluster(asyncio.get_running_loop()), ray_stage(workers.Where)):
            pass


APP = """
import os
from mosec_asgi import Server, Worker

class Here(Worker):
    def forward(self, data):
        return os.getpid()

server = Server(log_level="debug")
server.append_worker(Here, executor="ray")

if __name__ == "__main__":
    server.run()
"""


@pytest.mark.parametrize("by", ["run", "uvicorn"])
async def test_a_server_that_is_killed_leaves_no_actor(nodes: RayNodes, tmp_path: Path, by: str) -> None:
    """The worker's class stands in the main module, or in a module of the current folder."""
    file = tmp_path / "app.py"
    file.write_text(APP)
    command = {
        "run": python(file),
        "uvicorn": [sys.executable, "-m", "uvicorn", "app:server", "--port", "{port}"],
    }[by]
    environment = {"RAY_ADDRESS": nodes.address}
    with running(command, tmp_path / "output.log", cwd=tmp_path, environment=environment) as program:
        await asyncio.to_thread(program.wait_ready, "/readyz", 60.0)
        actor = int(await asyncio.to_thread(lambda: httpx.post(f"{program.url}/inference", json={}).text))
        assert Path(f"/proc/{actor}").exists()
        program.send(signal.SIGKILL)
        await asyncio.to_thread(program.wait)
        await wait_for(lambda: not Path(f"/proc/{actor}").exists())


# -- by TLS ----------------------------------------------------------------------------------------------------------


@needs_openssl
async def test_the_promises_hold_by_tls_as_well(
    nodes: RayNodes, cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = variables(Authority(tmp_path).node())
    for name, value in files.items():
        monkeypatch.setenv(name, value)
    options = RayOptions({"runtime_env": {"env_vars": files}})
    encrypted = RayCluster(asyncio.get_running_loop(), encrypted="on")
    encrypted.use()
    monkeypatch.setitem(contract.EXECUTORS, "tls", lambda loop: RayLauncher(loop, options, encrypted))
    try:
        await contract.test_each_answer_belongs_to_its_request("tls")
        await contract.test_streams_come_whole_and_in_order("tls", contract.workers.CountsAsync)
        await contract.test_a_client_that_leaves_is_told_to_forward("tls", tmp_path)
        async with contract.serving("tls", Runtime(contract.workers.Echo)) as engine:
            text = "ten letter" * 1_000_000
            caller = contract.Caller(engine.coordinator)
            engine.coordinator.submit(Call(1, 0, json.dumps(text).encode(), "large"), caller)
            assert json.loads((await asyncio.wait_for(caller.future, contract.PATIENCE)).payload) == text
    finally:
        encrypted.leave()


@needs_openssl
async def test_an_actor_whose_node_has_no_certificate_says_so(
    nodes: RayNodes, cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(Authority(tmp_path).node()).items():
        monkeypatch.setenv(name, value)
    encrypted = RayCluster(asyncio.get_running_loop(), encrypted="on")
    with pytest.raises(StartupError, match=r"by TLS: .*the variable RAY_TLS_SERVER_CERT is not set"):
        async with on_ray(encrypted, ray_stage(workers.Where)):
            pass


ENCRYPTED = """
from mosec_asgi import Server, Worker

class Echo(Worker):
    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        return data

server = Server()
server.append_worker(Echo, executor="ray")

if __name__ == "__main__":
    server.run()
"""


@needs_openssl
async def test_where_ray_has_tls_its_workers_have_it_with_the_same_files(tmp_path: Path) -> None:
    """A program of its own starts a cluster of its own, as there is none that has these certificates."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # Nothing is sent; it says by which address this machine would.
        sock.connect(("10.255.255.255", 1))
        hosts = f"DNS:localhost,IP:127.0.0.1,IP:{sock.getsockname()[0]}"
    environment = variables(Authority(tmp_path).node(hosts=hosts))
    (tmp_path / "app.py").write_text(ENCRYPTED)
    command = python(tmp_path / "app.py")
    log, body = tmp_path / "output.log", os.urandom(10_000_000)
    # Sockets lie below it, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment |= {"RAY_USE_TLS": "1", "RAY_ADDRESS": "local", "RAY_TMPDIR": folder}
        await _echoes_by_tls(command, log, environment, body)


async def _echoes_by_tls(command: list[str], log: Path, environment: dict[str, str], body: bytes) -> None:
    with running(command, log, cwd=log.parent, environment=environment) as program:
        await asyncio.to_thread(program.wait_ready, "/readyz", 120.0)
        assert "by TLS" in program.output
        for data in (b"small", body):
            answer = await asyncio.to_thread(httpx.post, f"{program.url}/inference", content=data, timeout=60)
            assert (answer.status_code, answer.content) == (200, data)


# -- what workers count ----------------------------------------------------------------------------------------------


async def test_what_workers_count_is_shown_and_stays_when_they_die(cluster: RayCluster) -> None:
    server = Server()
    server.append_worker(workers.Counts, 2, executor="ray")
    app = httpx.ASGITransport(app=server)
    async with server.lifespan(), httpx.AsyncClient(transport=app, base_url="http://server") as client:

        async def shown(sample: str) -> str:
            lines = [line for line in (await client.get("/metrics")).text.splitlines() if line.startswith(sample)]
            return lines[0].partition(" ")[2] if lines else ""

        async def wait_for_shown(sample: str, value: str) -> None:
            for _ in range(600):
                if await shown(sample) == value:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"{sample} is {await shown(sample)} and not {value}")

        await asyncio.gather(*(server.infer("count") for _ in range(20)))
        await wait_for_shown("asked_total", "20")
        await wait_for_shown("took_count", "20")
        await wait_for_shown("working", "2")
        await server.restart()
        await wait_for(lambda: server.statistics().stages[0].ready == 2)
        # The live gauge is that of the new ones, which have set it when they were loaded.
        await wait_for_shown("working", "2")
        assert await shown("asked_total") == "20"
        await server.infer("count")
        await wait_for_shown("asked_total", "21")
