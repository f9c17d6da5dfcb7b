"""The worker's side of custom metrics, each in a process of its own: it changes how prometheus_client counts."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

from mosec_asgi.inside.counting import remove_if_orphaned

MADE_BEFORE = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
plain, labelled = Counter("plain", "a"), Counter("labelled", "b", ["kind"])
bound = labelled.labels("x")
gauge, sizes = Gauge("gauge", "c", multiprocess_mode="livesum"), Histogram("sizes", "d", ["kind"])
plain.inc(100)
"""
COUNT = """
plain.inc(); bound.inc(2); labelled.labels("y").inc(3); gauge.set(4); sizes.labels("x").observe(5)
Counter("late", "e").inc(6)
"""
SHOW = """
from prometheus_client import CollectorRegistry, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry, sys.argv[1])
for family in registry.collect():
    for sample in family.samples:
        if not sample.name.endswith("_bucket"):
            print(sample.name, *sample.labels.values(), sample.value)
"""


def run(program: str, *arguments: str) -> list[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_metrics_that_were_made_before_the_fork_count_for_the_server_from_zero(tmp_path: Path) -> None:
    share = """
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from mosec_asgi.inside.counting import share_after_fork
share_after_fork()
"""
    assert sorted(run(MADE_BEFORE + share + COUNT + SHOW, str(tmp_path))) == [
        "gauge 4.0",
        "labelled_total x 2.0",
        "labelled_total y 3.0",
        "late_total 6.0",
        "plain_total 1.0",
        "sizes_count x 1.0",
        "sizes_sum x 5.0",
    ]


def test_without_a_directory_a_fork_changes_nothing() -> None:
    share = "from mosec_asgi.inside.counting import share_after_fork\nshare_after_fork()\n"
    assert run(MADE_BEFORE + share + COUNT + "print(plain._value.get())\n") == ["101.0"]


def test_what_is_not_loaded_stays_so(tmp_path: Path) -> None:
    program = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from mosec_asgi.inside.counting import share_after_fork
share_after_fork()
print("prometheus_client" in sys.modules)
"""
    assert run(program, str(tmp_path)) == ["False"]


def _remove(directory: str, told: bool) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    remove_if_orphaned(directory, theirs, told=told)
    theirs.close()


def test_the_directory_of_a_server_that_lives_is_left_alone(tmp_path: Path) -> None:
    """Though its pipe has ended: so it ends for a worker that the server lets go of."""
    context = multiprocessing.get_context("spawn")
    for told in (False, True):
        process = context.Process(target=_remove, args=(str(tmp_path), told))
        process.start()
        process.join(30)
        assert (process.exitcode, tmp_path.is_dir()) == (0, True)
