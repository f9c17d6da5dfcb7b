"""What workers count with prometheus_client: added up, kept when a worker dies, and gone with the server."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Program, running, wait_until, written
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mosec_asgi.batching.engine import Statistics
from mosec_asgi.observing import custom as custom_metrics
from mosec_asgi.observing.custom import MOST_COUNTED, MOST_DEAD, CustomMetrics
from mosec_asgi.observing.exposition import Exposition
from mosec_asgi.observing.metrics import ServiceMetrics

SUFFIXES = {"counter": "_total", "histogram": "_bucket", "summary": "_count"}


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[CustomMetrics]:
    made = CustomMetrics(None, (str(tmp_path),))
    made.open()
    yield made
    made.close()


def count(metrics: CustomMetrics, kind: str, pid: int, value: float, at: float = 0.0, name: str = "n") -> None:
    """Write a value as process `pid` does."""
    file = MmapedDict(os.path.join(metrics.variables[custom_metrics.VARIABLE], f"{kind}_{pid}.db"))
    labels = ([], []) if kind != "histogram" else (["le"], ["1.0"])
    suffix = SUFFIXES.get(kind, "")
    file.write_value(mmap_key(name, name + suffix, *labels, "help"), value, at)
    file.close()


def shown(metrics: CustomMetrics) -> dict[str, float]:
    """Return what is shown: by the name of the sample, and of the process where it is shown."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return {
        sample.name + sample.labels.get("pid", ""): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def files(metrics: CustomMetrics) -> list[str]:
    return sorted(os.listdir(metrics.private))


def dead_process() -> int:
    """Return the number of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


LIVE = os.getpid()


@pytest.mark.parametrize(
    ("kind", "total"), [("counter", 7.0), ("gauge_sum", 7.0), ("gauge_min", 1.0), ("gauge_max", 4.0), ("summary", 7.0)]
)
def test_what_the_dead_have_counted_stays_in_one_file(metrics: CustomMetrics, kind: str, total: float) -> None:
    name = "n" + SUFFIXES.get(kind, "")
    for pid, value in ((10, 1.0), (11, 2.0), (LIVE, 4.0)):
        count(metrics, kind, pid, value)
    for pid in (10, 11):
        metrics.ended(pid)
        assert shown(metrics) == {name: total}
    assert files(metrics) == sorted([f"{kind}_0.db", f"{kind}_{LIVE}.db"])


def test_a_histogram_of_the_dead_keeps_its_buckets(metrics: CustomMetrics) -> None:
    for pid in (10, 11):
        count(metrics, "histogram", pid, 3.0)
        metrics.ended(pid)
    assert shown(metrics) == {"n_bucket": 6.0, "n_count": 6.0}


def test_of_two_times_the_later_one_counts_also_among_the_dead(metrics: CustomMetrics) -> None:
    for pid, value, at in ((10, 1.0, 100.0), (11, 2.0, 300.0), (12, 3.0, 200.0)):
        count(metrics, "gauge_mostrecent", pid, value, at)
        metrics.ended(pid)
    assert shown(metrics) == {"n": 2.0}


def test_the_live_gauges_of_the_dead_go(metrics: CustomMetrics) -> None:
    for pid in (10, LIVE):
        count(metrics, "gauge_livesum", pid, 1.0)
    metrics.ended(10)
    assert shown(metrics) == {"n": 1.0}


def test_a_process_that_nobody_watches_is_found_dead_when_somebody_asks(metrics: CustomMetrics) -> None:
    pid = dead_process()
    count(metrics, "gauge_livesum", pid, 1.0)
    count(metrics, "counter", pid, 1.0, name="c")
    assert shown(metrics) == {"c_total": 1.0}
    assert files(metrics) == ["counter_0.db"]


def test_a_worker_that_dies_again_and_again_does_not_fill_the_directory(metrics: CustomMetrics) -> None:
    pids = [dead_process() for _ in range(3)] + list(range(4_200_000, 4_200_100))
    for pid in pids:
        for kind in ("counter", "histogram", "gauge_all", "gauge_livemax"):
            count(metrics, kind, pid, 1.0, name=kind)
        metrics.ended(pid)
    assert len(files(metrics)) == MOST_DEAD + 2
    now = shown(metrics)
    assert (now["counter_total"], now["histogram_count"]) == (len(pids), len(pids))
    # Each for itself, and the youngest.
    assert {name for name in now if name.startswith("gauge_all")} == {f"gauge_all{pid}" for pid in pids[-MOST_DEAD:]}


OTHER = 3


def of_another_machine(metrics: CustomMetrics, kind: str, value: float, number: int = OTHER) -> None:
    """Have a worker on another machine count."""
    file = Path(metrics.private, "theirs")
    theirs = MmapedDict(str(file))
    suffix = SUFFIXES.get(kind, "")
    theirs.write_value(mmap_key("n", "n" + suffix, [], [], "help"), value, 0.0)
    theirs.close()
    values = file.read_bytes()
    # As much of it as is in use.
    metrics.counted(number, kind, values[: int.from_bytes(values[:4], sys.byteorder)])
    file.unlink()


def test_another_machines_worker_is_added_to_those_of_this_one_as_long_as_it_lives(metrics: CustomMetrics) -> None:
    count(metrics, "counter", LIVE, 1.0)
    for value in (2.0, 3.0):
        of_another_machine(metrics, "counter", value)
        # Nobody takes it for dead, however often it is asked.
        assert shown(metrics) == shown(metrics) == {"n_total": 1.0 + value}
    metrics.foreign_ended(OTHER)
    assert shown(metrics) == {"n_total": 4.0}
    assert files(metrics) == sorted(["counter_0.db", f"counter_{LIVE}.db"])


def test_with_it_its_live_gauges_go(metrics: CustomMetrics) -> None:
    of_another_machine(metrics, "gauge_livesum", 2.0)
    of_another_machine(metrics, "gauge_livesum", 4.0, OTHER + 1)
    assert shown(metrics) == {"n": 6.0}
    metrics.foreign_ended(OTHER)
    assert shown(metrics) == {"n": 4.0}


def test_each_of_them_is_shown_by_a_number_that_no_process_here_has(metrics: CustomMetrics) -> None:
    of_another_machine(metrics, "gauge_all", 2.0)
    of_another_machine(metrics, "gauge_all", 4.0, OTHER + 1)
    numbers = [int(name[1:]) for name in shown(metrics)]
    assert len(numbers) == 2
    assert min(numbers) > 2**22


def test_those_that_end_again_and_again_do_not_fill_the_directory(metrics: CustomMetrics) -> None:
    for number in range(MOST_DEAD + 5):
        of_another_machine(metrics, "gauge_all", 1.0, number)
        metrics.foreign_ended(number)
    assert len(files(metrics)) == MOST_DEAD


@pytest.mark.parametrize("kind", ["../counter", "counter_1", "gauge", "", "exemplar"])
def test_a_kind_that_is_none_is_not_written(
    metrics: CustomMetrics, kind: str, logged: pytest.LogCaptureFixture
) -> None:
    metrics.counted(OTHER, kind, b"x")
    assert files(metrics) == []
    assert "were not taken" in logged.text


def test_more_than_a_worker_may_send_is_not_written(metrics: CustomMetrics, logged: pytest.LogCaptureFixture) -> None:
    metrics.counted(OTHER, "counter", bytes(MOST_COUNTED + 1))
    assert files(metrics) == []
    assert "were not taken" in logged.text


@pytest.mark.parametrize("kind", ["counter", "gauge_all"])
def test_what_cannot_be_shown_takes_nothing_of_others_with_it(
    metrics: CustomMetrics, kind: str, logged: pytest.LogCaptureFixture
) -> None:
    of_another_machine(metrics, "counter", 2.0)
    garbage = (60).to_bytes(4, sys.byteorder) + bytes(4) + b"\xff" * 52
    for _ in range(3):
        metrics.counted(OTHER + 1, kind, garbage)
        assert shown(metrics) == {"n_total": 2.0}
    # It is sent each second, and told once.
    assert logged.text.count("were not taken") == 1
    metrics.foreign_ended(OTHER + 1)
    metrics.foreign_ended(OTHER)
    assert shown(metrics) == {"n_total": 2.0}
    assert files(metrics) == ["counter_0.db"]


def test_what_there_is_no_room_for_is_not_left_half_written(
    metrics: CustomMetrics, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "replace", full)
    of_another_machine(metrics, "counter", 2.0)
    assert "were not taken" in logged.text
    assert not list(Path(metrics.private).glob("*.new"))


def test_a_file_that_is_being_made_is_passed_over(metrics: CustomMetrics) -> None:
    count(metrics, "counter", LIVE, 1.0)
    Path(metrics.private, f"histogram_{LIVE}.db").touch()
    assert shown(metrics) == {"n_total": 1.0}


def test_a_file_that_cannot_be_read_costs_only_the_custom_metrics(
    metrics: CustomMetrics, logged: pytest.LogCaptureFixture
) -> None:
    Path(metrics.private, f"counter_{LIVE}.db").write_bytes(b"\x40\0\0\0\0\0\0\0\xff\xff\xff\x7f" + b"x" * 100)
    service = ServiceMetrics("mosec_service", [])
    service.answered("/inference", 200)
    text = Exposition(service, lambda: Statistics(0, False, ()), metrics).render("")[0].decode()
    assert 'mosec_service_throughput_total{code="200",endpoint="/inference"} 1\n' in text
    assert "cannot be read" in logged.text


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_the_text_can_be_parsed(metrics: CustomMetrics, accept: str) -> None:
    for kind in ("counter", "gauge_all", "summary"):
        count(metrics, kind, LIVE, 2.0, name=kind)
    service = ServiceMetrics("mosec_service", [])
    body, kind = Exposition(service, lambda: Statistics(0, False, ()), metrics).render(accept)
    parse: Any = parse_openmetrics if "openmetrics" in kind else parse_text
    families: list[Metric] = list(parse(body.decode()))
    assert {sample.name for family in families for sample in family.samples} >= {"counter_total", "gauge_all"}


# -- the directory -----------------------------------------------------------------------------------------------------


def test_nothing_is_shown_and_nothing_goes_wrong_after_the_end(metrics: CustomMetrics, tmp_path: Path) -> None:
    count(metrics, "counter", LIVE, 1.0)
    metrics.close()
    metrics.close()
    metrics.ended(LIVE)
    assert (shown(metrics), list(tmp_path.iterdir())) == ({}, [])


def test_a_directory_of_the_users_own_is_used_and_kept(tmp_path: Path) -> None:
    metrics = CustomMetrics(str(tmp_path), ())
    metrics.open()
    count(metrics, "counter", 10, 1.0)
    count(metrics, "gauge_livesum", 10, 1.0)
    metrics.ended(10)
    assert shown(metrics) == {"n_total": 1.0}
    metrics.close()
    assert (metrics.private, os.listdir(tmp_path)) == ("", ["counter_10.db"])


def test_what_a_killed_server_has_left_is_swept_away_and_no_living_ones(metrics: CustomMetrics, tmp_path: Path) -> None:
    left = tmp_path / f"{custom_metrics.PREFIX}left"
    left.mkdir()
    (left / "counter_1.db").touch()
    other = CustomMetrics(None, (str(tmp_path),))
    other.open()
    assert set(map(str, tmp_path.iterdir())) == {metrics.private, other.private}
    other.close()


def test_the_next_place_is_taken_where_one_cannot_be_written(tmp_path: Path) -> None:
    metrics = CustomMetrics(None, (str(tmp_path / "missing"), str(tmp_path)))
    metrics.open()
    assert Path(metrics.private).parent == tmp_path
    metrics.close()


def test_without_any_place_a_warning_says_what_to_do(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    metrics = CustomMetrics(None, (str(tmp_path / "missing"),))
    metrics.open()
    assert (metrics.variables, shown(metrics)) == ({}, {})
    assert "PROMETHEUS_MULTIPROC_DIR" in logged.text
    metrics.close()


# -- a service ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import errno
import os
from prometheus_client import Counter, Gauge, Histogram
from mosec_asgi import Server, Worker

CALLS = Counter("calls", "calls of forward")
BY_PLACE = Counter("calls_by_place", "the same by worker", ["worker"])
FIRST = BY_PLACE.labels("1")
ALIVE = Gauge("alive", "workers", multiprocess_mode="livesum")
SIZES = Histogram("sizes", "of an item", buckets=(1, 2))

class Count(Worker):
    def __init__(self):
        self.late = Counter("late", "made in the worker")
        ALIVE.set(1)

    def forward(self, data):
        CALLS.inc()
        (FIRST if self.worker_id == 1 else BY_PLACE.labels(self.worker_id)).inc()
        SIZES.observe(data)
        self.late.inc()
        return [os.getpid(), os.environ["PROMETHEUS_MULTIPROC_DIR"]]

server = Server()
server.append_worker(Count, num=2, start_method="METHOD")
if __name__ == "__main__":
    server.run()
"""


@pytest.fixture(params=["spawn", "fork"])
def program(request: pytest.FixtureRequest, tmp_path: Path, log: Path) -> Iterator[Program]:
    """A service whose workers count; where it forks, its program has loaded prometheus_client before."""
    file = written(tmp_path, PROGRAM.replace("METHOD", request.param))
    command = [sys.executable, str(file), "--port", "{port}"]
    if request.param == "fork":
        command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=tmp_path) as program:
        program.wait_ready()
        yield program


def numbers(program: Program) -> dict[str, float]:
    lines = program.client.get("/metrics").text.splitlines()
    rows = [line.rpartition(" ") for line in lines if not line.startswith(("#", "mosec_service_"))]
    return {name: float(value) for name, _, value in rows}


def both_answer(program: Program) -> tuple[set[int], str, int]:
    """Ask until both workers have answered; return their numbers, their directory and how often they were asked."""
    pids: set[int] = set()
    asked, directory = 0, ""
    while len(pids) < 2:
        pid, directory = program.client.post("/inference", json=2).json()
        pids.add(pid)
        asked += 1
        assert asked < 1000, "one worker answers all"
    return pids, directory, asked


def test_the_counts_of_all_workers_are_added_up_and_survive_them(program: Program) -> None:
    pids, directory, asked = both_answer(program)
    before = numbers(program)
    totals = ("calls_total", "late_total", "sizes_count", 'sizes_bucket{le="2.0"}')
    assert [before[name] for name in totals] == [asked] * 4
    by_place = [before[f'calls_by_place_total{{worker="{place}"}}'] for place in (1, 2)]
    assert (min(by_place) > 0, sum(by_place)) == (True, asked)
    assert before["alive"] == 2

    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: program.restarts("Count_1") == 1, "the worker is not replaced")
    lowest = numbers(program)
    assert [lowest[name] for name in totals] == [asked] * 4
    wait_until(lambda: program.metric('workers_ready{stage="Count_1"}') == 2, "no worker has taken its place")
    _, _, more = both_answer(program)
    after = numbers(program)
    assert [after[name] for name in totals] == [asked + more] * 4
    assert after["alive"] == 2
    assert not {f"counter_{min(pids)}.db", f"gauge_livesum_{min(pids)}.db"} & set(os.listdir(directory))

    program.stop()
    assert not os.path.exists(directory)


def test_no_file_is_left_by_a_server_that_is_killed(program: Program) -> None:
    _, directory = program.client.post("/inference", json=1).json()
    program.send(signal.SIGKILL)
    program.wait()
    wait_until(lambda: not os.path.exists(directory), f"{directory} is left")


def test_a_program_that_sets_the_directory_up_itself_as_under_mosec_keeps_it(tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    head = f'import os\nos.environ["PROMETHEUS_MULTIPROC_DIR"] = {str(folder)!r}\n'
    file = written(tmp_path, head + PROGRAM.replace("METHOD", "spawn"))
    with running([sys.executable, str(file), "--port", "{port}"], log, cwd=tmp_path) as program:
        program.wait_ready()
        _, directory, asked = both_answer(program)
        assert (directory, numbers(program)["calls_total"]) == (str(folder), asked)
    assert list(folder.glob("counter_*.db"))


def test_without_any_directory_for_files_there_is_one_warning_and_no_metrics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(custom_metrics.tempfile, "gettempdir", nowhere)
    made = CustomMetrics(None, ("/proc", ""))
    made.open()
    assert made.variables == {}
    assert made.private == ""
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "no directory can be made in /proc." in said
    assert "PROMETHEUS_MULTIPROC_DIR" in said
    made.ended(1)
    assert shown(made) == {}
    made.close()
