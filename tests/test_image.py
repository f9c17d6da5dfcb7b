"""docker/Dockerfile as it is built and run: its own steps, then containers with as few rights as in Kubernetes.

There is no engine here, so `containers.build` takes its place; see there for what that shows and what not.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from containers import Container, Image, build, contained, skip_unless_images_can_be_built
from harness import ROOT, TESTS, child_processes, free_port, wait_until

USERS_OWN = """
from mosec_asgi import Server
from workers import Abandon, Echo, Gate

server = Server()
server.append_worker(Echo)
server.append_worker(Gate, route="/gate")
server.append_worker(Abandon, max_attempts=1, route="/abandon")

if __name__ == "__main__":
    server.run()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    skip_unless_images_can_be_built(folder)
    yield build(ROOT / "docker" / "Dockerfile", ROOT, folder)
    # Hundreds of megabytes, of which pytest would keep three runs.
    shutil.rmtree(folder)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a service of the user's own, to be mounted."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "server.py").write_text(USERS_OWN)
    shutil.copy(TESTS / "workers.py", folder)
    return folder


@contextlib.contextmanager
def started(image: Image, log: Path, volumes: dict[Path, str] | None = None) -> Iterator[Container]:
    """Run a container of an image, and wait until its service is ready."""
    port = free_port()
    command = image.run_command({"MOSEC_PORT": str(port), "MOSEC_TIMEOUT": "20000"}, volumes or {})
    with contained(command, log, port=port) as container:
        container.program.wait_ready()
        yield container


def unhealthy(image: Image, container: Container) -> str:
    """Return what the healthcheck finds wrong with a container, or nothing."""
    done = image.check_health(container, {"MOSEC_PORT": str(container.program.port)})
    assert (done.returncode != 0) == bool(done.stderr), done
    return done.stderr


def numbers(pid: int, of: str) -> set[str]:
    """Return the user's, or group's, or capabilities' numbers of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {number for line in lines if line.startswith(of) for number in line.split()[1:]}


def package_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_the_whole_package_is_in_it(image: Image) -> None:
    [installed] = (image.files / "opt/venv/lib").glob("python*/site-packages/mosec_asgi")
    assert package_files(installed) == package_files(ROOT / "mosec_asgi")


def test_by_itself_it_serves_the_file_types_and_needs_no_rights(image: Image, log: Path) -> None:
    with started(image, log) as container:
        wait_until(lambda: not unhealthy(image, container), "the healthcheck does not see that it is ready")
        [server] = container.workers()
        for pid in (container.pid, server, *child_processes(server)):
            assert numbers(pid, "Uid:") == numbers(pid, "Gid:") == {"10001"}
            assert set(numbers(pid, "CapEff:")) == {"0" * 16}
        text = (ROOT / "examples" / "filetype" / "README.md").read_bytes()
        assert container.program.client.post("/inference", content=text).json()["label"] == "markdown"
        assert container.stop() == 0


def test_a_users_own_service_takes_the_examples_place_and_its_orphans_are_buried(
    image: Image, log: Path, own: Path
) -> None:
    with started(image, log, {own: "/app"}) as container:
        number = len(container.workers())
        assert container.program.client.post("/abandon", json="/app/soon").status_code == 500
        wait_until(lambda: len(container.workers()) == number + 1, "process 1 does not inherit what the worker leaves")
        (own / "soon").touch()
        wait_until(lambda: len(child_processes(container.pid)) == number, "it has ended and is not buried")
        assert container.program.client.post("/inference", json=1).json()["echo"] == 1
        assert container.stop() == 0


def test_sigterm_reaches_the_server_which_turns_unhealthy_and_finishes_its_work(
    image: Image, log: Path, own: Path
) -> None:
    with started(image, log, {own: "/app"}) as container, ThreadPoolExecutor(1) as threads:
        request = threads.submit(container.program.client.post, "/gate", json="/app/gate")
        container.program.wait_for_output("waiting at the gate")
        container.send(signal.SIGTERM)
        wait_until(lambda: unhealthy(image, container), "it stays healthy")
        (own / "gate").touch()
        assert request.result().status_code == 200
        assert container.program.wait() == 0
        container.program.assert_nothing_left(1.0)
