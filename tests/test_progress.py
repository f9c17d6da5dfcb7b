from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from fake_port import PATIENCE

from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.messages import Progress


@pytest.fixture
def page() -> Iterator[ProgressPage]:
    with contextlib.closing(ProgressPage()) as page:
        yield page


def test_a_worker_that_has_done_nothing_has_begun_nothing(page: ProgressPage) -> None:
    assert page.read() == Progress(begun=0, beats=0)


def test_begun_tasks_and_steps_add_up(page: ProgressPage) -> None:
    page.begin()
    page.begin(5)
    page.beat()
    assert page.read() == Progress(begun=6, beats=3)


def test_the_numbers_do_not_end_at_32_bits(page: ProgressPage) -> None:
    page.begin(2**40)
    page.begin(2**40)
    assert page.read().begun == 2**41


def step(page: ProgressPage) -> None:
    """In another process; it dies in the middle of its work."""
    page.begin(3)
    page.beat()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_worker_has_noted_outlives_it(page: ProgressPage, method: str) -> None:
    process = multiprocessing.get_context(method).Process(target=step, args=(page,))  # type: ignore[attr-defined]
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert page.read() == Progress(begun=3, beats=2)


def test_pages_are_apart(page: ProgressPage) -> None:
    with contextlib.closing(ProgressPage()) as other:
        other.begin()
        assert page.read().begun == 0


def test_steps_of_several_threads_never_stand_still(page: ProgressPage) -> None:
    """One may be lost where two come at once; what counts is that the number changes."""
    threads = [threading.Thread(target=lambda: [page.beat() for _ in range(1000)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = page.read().beats
    assert before > 0
    page.beat()
    assert page.read().beats == before + 1


def test_closing_twice_is_closing_once() -> None:
    page = ProgressPage()
    page.close()
    page.close()
    with pytest.raises(ValueError, match="released"):
        page.read()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted there")
def test_a_page_that_is_closed_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        page = ProgressPage()
        page.begin()
        page.close()
    assert len(os.listdir("/proc/self/fd")) == before
