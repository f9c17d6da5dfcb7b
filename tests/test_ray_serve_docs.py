"""docs/ray_serve.md is true: Ray Serve deploys a server as the page says; its workers come and go with the replicas."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from harness import ROOT, TESTS, Program, child_processes, running, skip_module_without, wait_until, written

from mosec_asgi.config import Settings

skip_module_without("ray")

PAGE = (ROOT / "docs" / "ray_serve.md").read_text()
[PROGRAM] = re.findall(r"```python\n# ray_app\.py\n(.*?)```", PAGE, re.DOTALL)
SERVICE = """
import os
import time

from mosec_asgi import Server, SSEWorker, Worker


class Double(Worker):
    def forward(self, data: list[int]) -> list[list[int]]:
        return [[2 * number, len(data), os.getppid()] for number in data]


class Slow(Worker):
    def forward(self, data: str) -> str:
        open(data, "w").close()
        time.sleep(1)
        return "done"

    def close(self) -> None:
        with open(os.environ["CLOSED"], "ab", buffering=0) as file:
            file.write(b".")


class Spell(SSEWorker):
    def forward(self, data: str):
        yield from data


server = Server()
server.append_worker(Double, max_batch_size=64, max_wait_time=50)
server.append_worker(Slow, route="/slow")
server.append_worker(Spell, route="/spell")
"""
WORKERS = 3


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where it all lies: the paths of Ray's sockets below it have to be short."""
    path = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def deployed(folder: Path) -> Iterator[Program]:
    """Deploy the program of the page, once for all tests of this module."""
    written(folder, SERVICE)
    written(folder, PROGRAM, "ray_app.py")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "CLOSED": str(folder / "closed"),
        # No token in the home of whoever runs the tests, and no report to the makers of Ray.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(TESTS / "ray_serve_program.py"), "{port}", str(folder / "ray")]
    with running(command, folder / "log", environment=environment, cwd=folder, stops=False) as program:
        wait_until(lambda: program.process.poll() is not None or "\ndeployed\n" in program.output, "deployed", 120)
        assert program.process.poll() is None, program.output
        yield program


def replicas(program: Program, several: int) -> set[int]:
    """Ask until so many replicas have answered; return their processes."""
    found: set[int] = set()

    def enough() -> bool:
        answer = program.client.post("/inference", json=21)
        if answer.status_code == 200:
            double, _, replica = answer.json()
            assert double == 42
            found.add(replica)
        return len(found) == several

    wait_until(enough, f"answers of {several} replicas", 60)
    return found


def test_each_replica_has_its_workers_and_batches_are_larger_than_rays_default(deployed: Program) -> None:
    for replica in replicas(deployed, 2):
        assert len(child_processes(replica)) >= WORKERS
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda number: deployed.client.post("/inference", json=number).json(), range(200)))
    assert [double for double, _, _ in answers] == [2 * number for number in range(200)]
    assert max(batch for _, batch, _ in answers) > 5


def test_streams_and_the_servers_own_pages_come_through_ray(deployed: Program) -> None:
    assert deployed.client.post("/spell", json="hi").text == "data: h\n\ndata: i\n\n"
    assert deployed.client.get("/readyz").json()["status"] == "ready"
    assert deployed.client.get("/openapi/metadata.json").status_code == 200
    assert deployed.client.post("/inference", content=b"{").status_code == 400


def test_the_metrics_of_both_are_there(deployed: Program) -> None:
    ours = deployed.client.get("/metrics").text
    port = re.findall(r"metrics of the node at (\d+)", deployed.output)[0]

    def of_ray() -> str:
        return httpx.get(f"http://127.0.0.1:{port}/metrics").text

    table = PAGE.partition("## Metrics")[2].partition("##")[0]
    names = re.findall(r"`((?:mosec|ray)_\w+)`", table)
    assert len(names) >= 6
    for name in names:
        if name.startswith("mosec_"):
            assert name in ours
        else:
            wait_until(lambda name=name: name in of_ray(), f"{name} in Ray's metrics")


def test_a_killed_replica_leaves_no_worker_and_another_takes_its_place(deployed: Program) -> None:
    killed, left = replicas(deployed, 2)
    workers = child_processes(killed)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "its workers still run")
    wait_until(lambda: replicas(deployed, 2) - {killed, left}, "no other replica")


def test_a_deployment_that_is_taken_down_answers_what_it_has_and_ends_its_workers(
    deployed: Program, folder: Path
) -> None:
    assert len(replicas(deployed, 2)) == 2
    begun, closed = folder / "begun", folder / "closed"
    # By the worker of the replica that was killed.
    wait_until(closed.exists, "the worker without a server has not closed")
    closed.unlink()
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(deployed.client.post, "/slow", json=str(begun))
        wait_until(begun.exists, "it has not begun")
        deployed.send(signal.SIGTERM)
        assert answer.result().json() == "done"
    deployed.wait_for_output("\ndeleted\n")
    assert closed.read_bytes() == b".."
    assert deployed.wait() == 0
    deployed.assert_nothing_left()


# -- the manifest for KubeRay ------------------------------------------------------------------------------------------


@pytest.fixture
def manifest() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "rayservice.yaml").read_text())
    return document


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_manifest_gives_to_ray_serve_is_what_the_page_says(manifest: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    [application] = config.applications
    [deployment] = application.deployments
    assert application.import_path == "ray_app:app"
    assert f"class {deployment.name}:" in PROGRAM
    for setting in ("num_replicas", "max_ongoing_requests", "graceful_shutdown_timeout_s", "health_check_period_s"):
        assert re.search(rf"{setting}={getattr(deployment, setting):g}\b", PROGRAM), setting
    assert deployment.max_ongoing_requests > Settings().capacity
    timeout = int(application.runtime_env["env_vars"]["MOSEC_TIMEOUT"]) / 1000
    assert deployment.graceful_shutdown_timeout_s == 2 * timeout + 7
    assert config.http_options.request_timeout_s > timeout


def test_the_pods_of_the_manifest_follow_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterConfig"]
    [workers] = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        [container] = pod["spec"]["containers"]
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]
    spec = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]["deployments"][0]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > spec["graceful_shutdown_timeout_s"]
    [container] = workers["template"]["spec"]["containers"]
    assert int(container["resources"]["requests"]["cpu"]) >= spec["ray_actor_options"]["num_cpus"]
    assert "haproxy" in PAGE.partition("pip install")[2].splitlines()[0]
