"""`make versus`: each version is really the one that runs, its checkout is removed, and the verdict is right."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, benchmark

versus = benchmark("versus")
checkouts = benchmark("checkouts")
servers = benchmark("servers")
results = benchmark("results")
load = benchmark("load")
cost = benchmark("cost")
problems = benchmark("problems")
turns = benchmark("turns")
machine = benchmark("machine")

ROWS = {row.name: row for row in versus.ROWS}


# -- Verdict -----------------------------------------------------------------------------------------------------------


def side(value: float) -> Any:
    """Return a round of so many requests per second, and a latency that is so much shorter."""
    return results.Side(load.Measurement(1000 * value, 1 / value, 2 / value, 1000), cost.Cost(20 / value, 5.0))


def result(row: str, ratios: Sequence[float]) -> Any:
    return results.Result(ROWS[row], [results.Pair(side(1.0), side(ratio)) for ratio in ratios])


def test_a_row_is_below_its_bar_where_the_median_of_its_ratios_is() -> None:
    measured = [result("echo", [0.9, 0.999, 1.2]), result("latency", [0.9, 1.0, 1.2]), result("model", [0.5, 0.98, 2])]
    assert versus.below(measured, {"echo": 1.0, "latency": 1.0, "model": 0.97}) == ["echo"]
    assert versus.below(measured, {"echo": 0.99, "latency": 1.01, "model": 0.99}) == ["latency", "model"]


def test_a_row_without_a_bar_of_its_own_has_the_one_of_all() -> None:
    options = versus._parser().parse_args(["main", "--bar", "0.9", "--bar-of", "model=1.1", "--bar-of", "echo=0.8"])
    bars = versus.BARS | dict(options.bar_of)
    assert [versus.bar_of(row, options.bar, bars) for row in ("echo", "latency", "model", "two-stages")] == [
        *(0.8, 1.0, 1.1, 0.9)
    ]


@pytest.mark.parametrize("wrong", ["ceiling=1.0", "echo", "echo=much"])
def test_a_bar_of_no_row_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versus._parser().parse_args(["main", "--bar-of", wrong])
    assert "--bar-of" in capsys.readouterr().err


def test_the_table_says_what_each_version_does_and_costs() -> None:
    measured = [result("echo", [0.5]), result("latency", [1.25])]
    echo, latency = versus.table(measured, {"echo": 1.0, "latency": 1.0}).splitlines()[-2:]
    assert echo.split("  ")[0] == "echo"
    assert "0.500" in echo
    assert "1.00 BELOW" in echo
    assert "20.0 + 5.0" in echo
    assert "40.0 + 5.0" in echo
    assert latency.split()[1:6] == ["p50", "ms", "1.000", "0.800", "1.250"]
    assert "1.00 met" in latency


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (0.9, 1)])
def test_the_exit_status_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ratio: float, status: int
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(versus, "checked_out", lambda root, name: _Context(servers.Checkout(name, root)))
    monkeypatch.setattr(versus, "compare", lambda row, then, now, rounds, seconds: result(row.name, [ratio] * rounds))
    monkeypatch.setattr(load.Posts, "check", lambda self: None)
    assert versus.main(["main", "--only", "echo", "--rounds", "2"]) == status
    assert ("below the bar: echo" in capsys.readouterr().out) is bool(status)


class _Context:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __enter__(self) -> Any:
        return self._value

    def __exit__(self, *_: object) -> None:
        pass


# -- Turns -------------------------------------------------------------------------------------------------------------


def test_who_goes_first_changes_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def measure(server: Any, scenario: Any, seconds: int) -> Any:
        order.append((server.name, seconds))
        return side(2.0 if server.name == "now" else 1.0)

    monkeypatch.setattr(turns, "measure", measure)
    then, now = (servers.RunningServer("mosec_asgi", name, None, 0, Path()) for name in ("then", "now"))
    pairs = turns.in_turn(ROWS["echo"], then, now, rounds=3, seconds=7)
    assert order[2:] == [(name, 7) for name in ("then", "now", "now", "then", "then", "now")]
    assert results.Result(ROWS["echo"], pairs).ratios == [2.0, 2.0, 2.0]


# -- Checkouts ---------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    finished = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository whose file says 2, after a commit in which it says 1, and 3 in what is not committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for text in ("1", "2"):
        (folder / "file").write_text(text)
        git(folder, "add", "file")
        git(folder, "commit", "--quiet", "-m", text)
    (folder / "file").write_text("3")
    return folder


def test_a_commit_is_checked_out_for_a_while_and_the_working_tree_is_left_alone(repository: Path) -> None:
    with checkouts.checked_out(repository, "HEAD~1") as checkout:
        assert (checkout.folder / "file").read_text() == "1"
        assert git(repository, "rev-parse", "HEAD~1").startswith(checkout.name)
        assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert not checkout.folder.parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert (repository / "file").read_text() == "3"


def test_a_checkout_is_removed_after_an_error_with_what_was_written_there(repository: Path) -> None:
    def write_and_stop(folder: Path) -> None:
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "file.pyc").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), checkouts.checked_out(repository, "HEAD") as checkout:
        write_and_stop(checkout.folder)
    assert not checkout.folder.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_commit_that_does_not_exist_is_named(repository: Path) -> None:
    checkout = checkouts.checked_out(repository, "nonsense")
    with pytest.raises(problems.BenchmarkError, match="is called 'nonsense'"), checkout:
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


# -- Which package runs ------------------------------------------------------------------------------------------------


def test_a_service_runs_the_package_of_its_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "mosec_asgi", copy / "mosec_asgi")
    # Whatever else there is, this one says who it is.
    with (copy / "mosec_asgi" / "__init__.py").open("a") as package:
        package.write("\nprint('this is the copy', flush=True)\n")
    here, there = servers.Checkout("here", ROOT), servers.Checkout("there", copy)
    with servers.running("echo", [here, there], load.ECHOES) as (first, second):
        assert "this is the copy" not in first.log.read_text()
        # The server and its worker.
        assert second.log.read_text().count("this is the copy") == 2


@pytest.mark.parametrize("service", sorted({row.service for row in versus.ROWS}))
def test_a_service_does_not_run_a_package_from_elsewhere(service: str, tmp_path: Path) -> None:
    server = servers.start(service, servers.Checkout("empty", tmp_path), tmp_path)
    try:
        assert server.process.wait(30) == 1
        assert f", not from {tmp_path}" in server.log.read_text()
    finally:
        servers.stop([server])
