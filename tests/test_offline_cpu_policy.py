"""The CPU policy of the process that maps a file."""

import os
import subprocess
import sys
import threading

import pytest

from mosec_asgi.offline.cpu_policy import batch_work

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the policies are Linux's")


def test_every_thread_that_runs_is_batch_work_until_the_end_of_the_block() -> None:
    running, end = threading.Event(), threading.Event()

    def wait() -> None:
        running.set()
        end.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    running.wait()
    assert thread.native_id is not None
    try:
        with batch_work():
            assert os.sched_getscheduler(0) == os.sched_getscheduler(thread.native_id) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.sched_getscheduler(thread.native_id) == os.SCHED_OTHER
    finally:
        end.set()
        thread.join()


def test_workers_that_run_already_keep_the_usual_policy() -> None:
    program = "import os; print(flush=True); input(); print(os.sched_getscheduler(0))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with batch_work():
            said, _ = process.communicate("\n")
    assert int(said) == os.SCHED_OTHER


def test_a_thread_that_has_another_policy_keeps_it() -> None:
    kept: list[int] = []

    def idle() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with batch_work():
            kept.append(os.sched_getscheduler(0))
        kept.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=idle)
    thread.start()
    thread.join()
    assert kept == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_a_change_that_is_not_allowed_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with batch_work():
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
