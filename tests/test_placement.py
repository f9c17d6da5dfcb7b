"""Where workers run: what each has in its environment before its process starts."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from harness import serving
from test_devices import LISTED, PARTS, bare, smi
from workers import Echo

from mosec_asgi import Runtime, Server, testing
from mosec_asgi.errors import DefinitionError
from mosec_asgi.host import dry_run
from mosec_asgi.host.placement import Placement, Placer

pytestmark = pytest.mark.usefixtures("logged")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def placed(runtime: Runtime, folder: Path, environment: dict[str, str] | None = None, cpus: int = 1) -> Placement:
    """Return where a stage is placed on a machine that the test has made up; with one CPU there are none to share."""
    return Placer(environment or {}, bare(folder), cpus, cpus).place({runtime: "Echo_1"})[runtime]


def messages(logged: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in logged.records]


def test_a_worker_for_each_gpu_that_is_found(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    smi(tmp_path, LISTED)
    found = placed(Runtime(Echo, devices="auto"), tmp_path)
    assert found == (3, [{"CUDA_VISIBLE_DEVICES": name} for name in (*PARTS, "1")], {})
    assert messages(logged) == [f"Echo_1 has a worker on each of the GPUs {', '.join(PARTS)}, 1 (by nvidia-smi)"]


def test_several_on_each_of_those_that_an_outer_variable_leaves(tmp_path: Path) -> None:
    runtime = Runtime(Echo, devices="auto", workers_per_device=2)
    found = placed(runtime, tmp_path, {"CUDA_VISIBLE_DEVICES": "2,3"})
    # The first have one each: with fewer workers later on, no GPU is left alone.
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found.env or ()] == ["2", "3", "2", "3"]


@pytest.mark.parametrize(
    ("environment", "why"), [({}, "none was found"), ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES names none")]
)
def test_without_a_gpu_there_is_one_worker_on_the_cpu_and_a_line_says_so(
    tmp_path: Path, environment: dict[str, str], why: str, logged: pytest.LogCaptureFixture
) -> None:
    found = placed(Runtime(Echo, devices="auto", workers_per_device=3), tmp_path, environment)
    assert (found.num, found.env) == (1, None)
    assert messages(logged) == [f"Echo_1 has one worker, on the CPU: there is no GPU, for {why}"]


def test_devices_that_the_user_names_make_the_workers(tmp_path: Path) -> None:
    runtime = Runtime(Echo, devices=[1, "0"], workers_per_device=2)
    assert runtime.num == 4
    found = placed(runtime, tmp_path)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found.env or ()] == ["1", "0", "1", "0"]


def test_variables_of_the_users_own_stand_beside_the_devices(tmp_path: Path) -> None:
    one = placed(Runtime(Echo, devices=["0", "1"], env=[{"A": "1"}]), tmp_path)
    assert one.env == [{"CUDA_VISIBLE_DEVICES": "0", "A": "1"}, {"CUDA_VISIBLE_DEVICES": "1", "A": "1"}]
    each = placed(Runtime(Echo, devices=["0", "1"], env=[{"A": "1"}, {"A": "2"}]), tmp_path)
    assert [variables["A"] for variables in each.env or ()] == ["1", "2"]
    smi(tmp_path, LISTED)
    found = placed(Runtime(Echo, devices="auto", env=[{"A": "1"}]), tmp_path)
    assert [variables["A"] for variables in found.env or ()] == ["1", "1", "1"]


def test_mosecs_way_of_a_variable_for_each_worker_is_left_alone(tmp_path: Path) -> None:
    env = [{"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "7"}]
    found = placed(Runtime(Echo, num=2, env=env), tmp_path, {"CUDA_VISIBLE_DEVICES": "5"}, cpus=8)
    assert found == (2, env, {})


def test_the_workers_of_a_stage_share_the_cpus_which_is_said(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    assert placed(Runtime(Echo, num=2), tmp_path, cpus=8).defaults == dict.fromkeys(THREADS, "4")
    (said,) = messages(logged)
    assert said.startswith("Echo_1: 2 workers share 8 CPUs: OMP_NUM_THREADS, MKL_NUM_THREADS, OPENBLAS_NUM_THREADS=4;")
    assert placed(Runtime(Echo, num=2), tmp_path, {"OMP_NUM_THREADS": "3"}, cpus=8).defaults == {}
    assert placed(Runtime(Echo, num=2, executor="thread"), tmp_path, cpus=8).defaults == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"devices": "all"}, r'devices is \'all\'; write devices="auto"'),
        ({"devices": []}, "devices is"),
        ({"devices": [-1]}, "devices holds -1"),
        ({"devices": ["cuda:0"]}, "devices holds 'cuda:0'"),
        ({"devices": [True]}, "devices holds True"),
        ({"devices": ["0", 0]}, "names one of them twice; .* workers_per_device"),
        ({"devices": "auto", "num": 2}, "num follows from devices"),
        ({"devices": "auto", "workers_per_device": 0}, "workers_per_device must be at least 1"),
        ({"workers_per_device": 2}, "workers_per_device is for `devices`"),
        ({"devices": "auto", "executor": "thread"}, "devices is for workers that are processes"),
        ({"devices": "auto", "preload": True}, "leave out preload, or devices"),
        ({"devices": "auto", "env": [{"CUDA_VISIBLE_DEVICES": "0"}]}, "env sets CUDA_VISIBLE_DEVICES"),
        ({"devices": ["0", "1", "2"], "env": [{}, {}]}, "env has 2 dictionaries and num is 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_write(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Runtime(Echo, **settings)


async def test_in_a_test_without_processes_a_stage_has_one_worker_whatever_the_machine_has() -> None:
    server = Server()
    server.append_worker(Echo, devices="auto")
    async with testing.serving(server) as service:
        assert (await service.infer(1))["echo"] == 1
        assert service.statistics.stages[0].workers == 1


def test_a_process_has_its_device_and_its_threads_before_it_loads_anything(tmp_path: Path) -> None:
    """numpy is imported with the module of the worker, before `__init__`."""
    program = """
        import os
        AT_IMPORT = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "A")}
        from mosec_asgi import Worker
        class Where(Worker):
            def forward(self, data):
                return [self.worker_id, AT_IMPORT]
    """
    (tmp_path / "where.py").write_text(textwrap.dedent(program))
    stages = """
        from where import Where
        server.append_worker(Where, devices=["1", "0"], env=[{"A": "a", "OMP_NUM_THREADS": "5"}])
        server.append_worker(Where, devices="auto", route="/auto")
    """
    environment = {"CUDA_VISIBLE_DEVICES": "6,GPU-abc"}
    with serving(tmp_path, stages, environment=environment) as program_:
        seen = {}
        while len(seen) < 2:
            number, at_import = program_.client.post("/inference", json=1).json()
            seen[number] = at_import
        assert seen == {
            1: {"CUDA_VISIBLE_DEVICES": "GPU-abc", "OMP_NUM_THREADS": "5", "A": "a"},
            2: {"CUDA_VISIBLE_DEVICES": "6", "OMP_NUM_THREADS": "5", "A": "a"},
        }
        _, at_import = program_.client.post("/auto", json=1).json()
        assert at_import["CUDA_VISIBLE_DEVICES"] in ("6", "GPU-abc")
        assert program_.metric('workers_ready{stage="Where_2"}') == 2


def test_a_dry_run_has_one_worker_on_the_first_device(tmp_path: Path) -> None:
    smi(tmp_path, LISTED)
    stages = [
        Runtime(Echo, devices="auto", workers_per_device=2),
        Runtime(Echo, devices=["1", "0"], env=[{"A": "1"}, {"A": "2"}]),
    ]
    single = dry_run._one_worker_each({"/a": stages})["/a"]
    assert placed(single[0], tmp_path).env == [{"CUDA_VISIBLE_DEVICES": PARTS[0]}]
    assert placed(single[1], tmp_path).env == [{"CUDA_VISIBLE_DEVICES": "1", "A": "1"}]
    assert [runtime.most_workers for runtime in stages] == [None, None], "the user's own stay what they are"
