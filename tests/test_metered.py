from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fakes import spec
from mosec_asgi.pool.process.metered import MeteredLauncher
from prometheus_client.mmap_dict import MmapedDict

from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.observing.custom import VARIABLE, CustomMetrics

PID = 4_200_000  # above what the system gives


class Handle:
    pid = PID


class Launcher:
    """Keeps what it was asked to start."""

    def launch(self, spec: WorkerSpec, variables: Any, on_frame: Any, on_closed: Any, on_exit: Any) -> Any:
        self.spec, self.variables, self.on_exit = spec, dict(variables), on_exit
        return Handle(), None


def launch(metrics: CustomMetrics, exits: list[int], **variables: str) -> Launcher:
    launcher = Launcher()
    metered = MeteredLauncher(launcher, metrics)  # type: ignore[arg-type]
    metered.launch(spec(), variables, print, print, lambda: exits.append(1))
    return launcher


def test_a_worker_is_told_where_to_count_beside_its_own_variables(tmp_path: Path) -> None:
    metrics = CustomMetrics(None, (str(tmp_path),))
    metrics.open()
    launcher = launch(metrics, [], GPU="1")
    assert launcher.variables == {"GPU": "1", VARIABLE: metrics.private}
    assert launcher.spec.metrics_directory == metrics.private
    metrics.close()


def test_a_directory_that_the_user_gives_a_worker_is_its_own(tmp_path: Path) -> None:
    metrics = CustomMetrics(None, (str(tmp_path),))
    metrics.open()
    assert launch(metrics, [], **{VARIABLE: "/elsewhere"}).variables == {VARIABLE: "/elsewhere"}
    metrics.close()


def test_a_directory_of_the_users_is_not_the_workers_to_remove(tmp_path: Path) -> None:
    launcher = launch(CustomMetrics(str(tmp_path), ()), [])
    assert (launcher.variables, launcher.spec.metrics_directory) == ({VARIABLE: str(tmp_path)}, "")


def test_the_books_of_a_worker_are_closed_when_it_has_ended(tmp_path: Path) -> None:
    metrics = CustomMetrics(None, (str(tmp_path),))
    metrics.open()
    exits: list[int] = []
    launcher = launch(metrics, exits)
    MmapedDict(f"{metrics.private}/counter_{PID}.db").close()
    launcher.on_exit()
    assert (exits, os.listdir(metrics.private)) == ([1], ["counter_0.db"])
    metrics.close()
