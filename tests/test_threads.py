"""How many threads the libraries of a worker start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mosec_asgi.host import threads
from mosec_asgi.host.threads import cpu_limit, shares

ALL = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.mark.parametrize(
    ("workers", "cpus", "usable", "share"),
    [(2, 8, 8, "4"), (3, 8, 8, "2"), (16, 8, 8, "1"), (1, 4, 64, "4"), (1, 8, 8, None), (2, 1, 1, None)],
)
def test_the_workers_of_a_stage_share_the_cpus_and_one_alone_is_told_of_a_limit(
    workers: int, cpus: int, usable: int, share: str | None
) -> None:
    assert shares(workers, cpus, usable, ()) == ({} if share is None else dict.fromkeys(ALL, share))


def test_what_the_user_has_set_stays_and_openmps_number_was_meant_for_all() -> None:
    assert shares(2, 8, 8, {"MKL_NUM_THREADS"}) == {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    assert shares(2, 8, 8, {"OMP_NUM_THREADS"}) == {}


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_the_tightest_of_the_control_groups_counts(tmp_path: Path, quota: str, cpus: int) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("0::/pod/container\n")
    inner = tmp_path / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pod" / "cpu.max").write_text(f"{quota}\n")
    assert cpu_limit(groups, tmp_path) == cpus


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [("300000", 3), ("-1", 8)])
def test_control_groups_of_version_1_count_as_well(tmp_path: Path, quota: str, cpus: int) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_limit(groups, tmp_path) == cpus


def test_never_more_than_this_process_may_use() -> None:
    assert 1 <= cpu_limit() <= threads.usable_cpus() <= (os.cpu_count() or 1)
