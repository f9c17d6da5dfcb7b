from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_port import PATIENCE, ServerEnd, hang, json_tasks, runner_of, served, until, worker_of

from mosec_asgi.errors import MosecTimeoutError
from mosec_asgi.inside.timer import FORSAKEN_SECONDS, Timer
from mosec_asgi.streaming import FINISHED, ContinuousWorker, SSEWorker
from mosec_asgi.worker import Worker

LONG = 1000.0


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Leave no alarm and no handler behind."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class FakeKernel:
    """Stands in for a `KernelTimer`, and knows when it would kill."""

    def __init__(self) -> None:
        self.until: float | None = None

    def set(self, seconds: float) -> None:
        self.until = time.perf_counter() + seconds if seconds else None


def blink(timer: Timer) -> None:
    """Pause a block for a moment, as what is called from within `forward` does."""
    if timer.pause():
        timer.resume()


# -- the exception -----------------------------------------------------------------------------------------------------


def test_a_block_that_takes_too_long_is_interrupted() -> None:
    timer = Timer(0.02)
    with pytest.raises(MosecTimeoutError, match=r"`forward` took longer than 0.02 s"), timer:
        hang()


def test_a_block_within_its_time_is_left_alone() -> None:
    timer = Timer(LONG)
    with timer:
        hang(0.02)


def test_a_block_that_sleeps_or_waits_for_a_lock_is_interrupted() -> None:
    timer = Timer(0.02)
    with pytest.raises(MosecTimeoutError), timer:
        time.sleep(LONG)
    with pytest.raises(MosecTimeoutError), timer:
        threading.Event().wait(LONG)


def test_an_exception_of_the_block_passes_and_ends_its_time() -> None:
    timer = Timer(0.02)
    with pytest.raises(KeyError), timer:
        raise KeyError
    hang(0.06)


def test_the_alarm_of_a_block_that_is_over_interrupts_nothing() -> None:
    timer = Timer(0.02)
    with timer:
        pass
    hang(0.06)


def test_each_block_has_its_whole_time_though_the_alarm_was_set_for_one_before() -> None:
    timer = Timer(1.2)
    with timer:
        pass
    hang(0.7)
    with timer:
        hang(0.7)
    with pytest.raises(MosecTimeoutError), timer:
        hang()


def test_a_paused_block_is_not_interrupted_before_it_goes_on() -> None:
    timer = Timer(0.02)
    reached: list[bool] = []

    def block() -> None:
        assert timer.pause()
        hang(0.1)
        reached.append(True)
        timer.resume()
        hang()

    with pytest.raises(MosecTimeoutError), timer:
        block()
    assert reached


def test_pausing_gives_a_block_no_more_time() -> None:
    timer = Timer(0.2)
    began = time.monotonic()

    def block() -> None:
        while time.monotonic() < began + PATIENCE:
            blink(timer)

    with pytest.raises(MosecTimeoutError), timer:
        block()
    assert time.monotonic() - began < PATIENCE / 2


def test_a_pause_within_a_pause_is_one() -> None:
    timer = Timer(0.02)
    reached: list[bool] = []

    def block() -> None:
        assert timer.pause()
        blink(timer)
        hang(0.1)
        reached.append(True)
        timer.resume()
        hang()

    with pytest.raises(MosecTimeoutError), timer:
        block()
    assert reached


def test_resuming_what_did_not_run_starts_nothing() -> None:
    timer = Timer(0.02)
    blink(timer)
    with timer:
        pass
    blink(timer)
    hang(0.06)


def test_a_block_that_is_restarted_has_its_whole_time_again() -> None:
    timer = Timer(0.3)
    with timer:
        for _ in range(5):
            hang(0.1)
            timer.restart()
    with pytest.raises(MosecTimeoutError), timer:
        hang()


def test_the_exception_comes_in_the_block_and_nowhere_else() -> None:
    """Whichever bytecode the signal falls upon."""
    timer = Timer(0.00002)
    interrupted = outside = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        try:
            with timer:
                for _ in range(3):
                    blink(timer)
        except MosecTimeoutError:
            interrupted += 1
        # Here it would end the test.
        outside += 1
    assert outside > interrupted
    assert interrupted > 100


def test_on_another_thread_nothing_is_interrupted() -> None:
    raised: list[BaseException] = []

    def work() -> None:
        timer = Timer(0.01)
        try:
            with timer:
                hang(0.05)
                blink(timer)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []


def test_a_timeout_passes_a_handler_of_exceptions_and_runs_the_cleaning_up() -> None:
    cleaned: list[str] = []

    def block() -> None:
        try:
            hang()
        except Exception:
            cleaned.append("swallowed")
        finally:
            cleaned.append("cleaned up")

    with pytest.raises(MosecTimeoutError), Timer(0.02):
        block()
    assert cleaned == ["cleaned up"]


def test_a_forward_that_sends_events_is_interrupted_only_between_them() -> None:
    """In the middle of one the frame would be torn, which the server's end would notice."""
    sent = [0]

    class Chatty(SSEWorker):
        def forward(self, data: Any) -> None:
            while True:
                self.send_stream_event("x" * 100)
                sent[0] += 1
                self.is_cancelled()

    count = 400
    server = served(Chatty, json_tasks(*range(count)), timeout=0.00003)
    assert {code for code, _ in server.answers.values()} == {408}
    # Each was told as sent before it was counted.
    assert sum(map(len, server.events.values())) >= sent[0]


@pytest.fixture
def quick_switching() -> Iterator[None]:
    """Have threads take turns much more often than they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Slow(str):
    """A text that is some time on its way out, and says when."""

    on_its_way: threading.Event

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self.on_its_way.set()
        time.sleep(0.1)
        return super().encode(encoding, errors)


def test_an_event_that_a_thread_sends_late_does_not_start_the_timer_again() -> None:
    threads: list[threading.Thread] = []

    class Late(SSEWorker):
        def forward(self, data: Any) -> None:
            text = Slow("late")
            text.on_its_way = threading.Event()
            threads.append(threading.Thread(target=self.send_stream_event, args=(text,)))
            threads[-1].start()
            assert text.on_its_way.wait(PATIENCE)

    # The worker is idle for longer than a block may take, before its stream ends.
    server = served(Late, json_tasks(1), server=ServerEnd(on_answer=lambda number: time.sleep(1.0)), timeout=0.6)
    threads[0].join()
    assert server.answers == {1: (200, b"")}


@pytest.mark.usefixtures("quick_switching")
def test_threads_that_ask_and_send_do_not_have_the_main_thread_tear_its_frames() -> None:
    class Chatty(SSEWorker):
        def forward(self, data: Any) -> None:
            for _ in range(6):
                self.send_stream_event("x" * 150_000)

    def ask() -> None:
        while not over.is_set():
            worker.is_cancelled()

    def push() -> None:
        while not over.wait(0.001):
            worker.send_stream_event("y")

    over = threading.Event()
    threads = [threading.Thread(target=work) for work in (ask, ask, push)]
    with ServerEnd() as server, runner_of(Chatty, server, timeout=0.0005) as runner:
        worker = runner._worker  # type: ignore[attr-defined]
        for thread in threads:
            thread.start()
        try:
            server.send(json_tasks(*range(20)))
            runner.serve()
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert len(server.answers) == 20


# -- the kernel --------------------------------------------------------------------------------------------------------


def test_the_kernel_leaves_a_block_its_whole_time_and_more() -> None:
    kernel = FakeKernel()
    timer = Timer(1.0, kernel)  # type: ignore[arg-type]
    for _ in range(4):
        began = time.perf_counter()
        with timer:
            assert kernel.until is not None
            assert kernel.until > began + 1.0
        hang(0.03)


def test_a_block_that_is_one_long_call_is_not_killed_within_its_time() -> None:
    """It cannot put the kernel off: that is for the alarm's handler, which does not run during the call."""
    kernel = FakeKernel()
    timer = Timer(30.0, kernel)  # type: ignore[arg-type]
    with timer:
        pass
    hang(0.05)
    began = time.perf_counter()
    with timer:
        assert kernel.until is not None
        assert kernel.until >= began + 30.0 + FORSAKEN_SECONDS


def test_a_restarted_block_is_left_its_whole_time_once_the_alarm_has_been_heard() -> None:
    kernel = FakeKernel()
    timer = Timer(1.0, kernel)  # type: ignore[arg-type]
    with timer:
        for _ in range(6):
            hang(0.2)
            timer.restart()
        assert kernel.until is not None
        assert kernel.until > time.perf_counter() + 1.0


def test_the_kernel_is_told_when_no_block_runs() -> None:
    kernel = FakeKernel()
    timer = Timer(0.02, kernel)  # type: ignore[arg-type]
    with timer:
        assert kernel.until is not None
    until(lambda: kernel.until is None, "the kernel would kill an idle process")


def test_a_block_that_goes_on_though_it_was_interrupted_is_not_the_kernels_for_ever() -> None:
    kernel = FakeKernel()
    timer = Timer(0.02, kernel)  # type: ignore[arg-type]
    with timer:
        with pytest.raises(MosecTimeoutError):
            hang()
        # Still inside: if it does not come back, the kernel ends it.
        assert kernel.until is not None
    timer.check()
    assert kernel.until is None


@pytest.mark.parametrize("max_batch_size", [1, 2])
@pytest.mark.parametrize("base", [Worker, SSEWorker])
def test_a_worker_that_is_idle_after_an_interrupted_forward_is_not_killed(
    base: type[Worker], max_batch_size: int
) -> None:
    kernel = FakeKernel()
    worker = worker_of(lambda item: hang(), base)
    with (
        ServerEnd() as server,
        runner_of(worker, server, kernel, timeout=0.05, max_batch_size=max_batch_size) as runner,  # type: ignore[arg-type]
    ):
        server.send(json_tasks(1, 2))
        runner.serve()
        assert [code for code, _ in server.answers.values()] == [408, 408]
        assert kernel.until is None


@pytest.mark.parametrize("slow", ["admit", "step", "evict"])
def test_a_continuous_worker_that_is_idle_after_an_interrupted_call_is_not_killed(slow: str) -> None:
    class Made(ContinuousWorker):
        def admit(self, item: Any) -> int:
            if slow == "admit":
                hang()
            return 0

        def step(self) -> list[Any]:
            if slow == "step":
                hang()
            return [(0, FINISHED)]

        def evict(self, slot: Any) -> None:
            if slow == "evict":
                hang()

    kernel = FakeKernel()
    with ServerEnd() as server, runner_of(Made, server, kernel, timeout=0.05) as runner:  # type: ignore[arg-type]
        server.send(json_tasks(1))
        runner.serve()
        assert [code for code, _ in server.answers.values()] == [200 if slow == "evict" else 408]
        until(lambda: kernel.until is None, "the kernel would kill an idle process")


def test_an_idle_worker_whose_code_has_cleared_the_alarm_is_not_killed() -> None:
    """A process has one such alarm, and libraries use it for time limits of their own."""

    def forward(data: Any) -> Any:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return data

    kernel = FakeKernel()
    with ServerEnd() as server, runner_of(worker_of(forward), server, kernel, timeout=0.05) as runner:  # type: ignore[arg-type]
        server.send(json_tasks(1))
        runner.serve()
        hang(0.1)
        assert kernel.until is None


def test_an_alarm_that_code_has_cleared_is_set_again_for_the_next_tasks() -> None:
    def forward(data: int) -> int:
        if data == 1:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            hang(1.0)
        return data

    server = ServerEnd(on_answer=lambda number: server.send(json_tasks(2, first=2)) if number == 1 else None)
    answers = served(worker_of(forward), json_tasks(1), server=server, timeout=0.05).answers
    assert [code for code, _ in answers.values()] == [200, 408]


def exit_of(program: str) -> tuple[int, float]:
    """Return the exit code of a Python program, and the seconds it took."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    return done.returncode, time.monotonic() - began


HELD = """
import ctypes
from mosec_asgi.inside.timer import KernelTimer, Timer

class Sooner(KernelTimer):
    def set(self, seconds):
        super().set(seconds and seconds - 2.9)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system has it")


@linux
def test_the_kernel_ends_a_process_whose_interpreter_is_held_by_a_call() -> None:
    code, seconds = exit_of(f"{HELD}\nkernel = KernelTimer()\nkernel.set(0.2)\nctypes.PyDLL(None).sleep(40)")
    assert code == -signal.SIGKILL
    assert seconds < 30


@linux
def test_a_block_whose_call_never_returns_is_ended_by_the_kernel() -> None:
    # No signal interrupts this one.
    lock = "mutex = ctypes.create_string_buffer(64)\nlock = ctypes.PyDLL(None).pthread_mutex_lock\nlock(mutex)\n"
    code, seconds = exit_of(f"{HELD}\n{lock}with Timer(0.1, Sooner()):\n    lock(mutex)")
    assert code == -signal.SIGKILL
    assert seconds < 30


@linux
def test_the_last_time_that_was_set_counts_and_none_is_for_ever() -> None:
    program = f"{HELD}\nimport time\nkernel = KernelTimer()\nkernel.set(0.1)\nkernel.set(30)\nkernel.set(0.0)"
    assert exit_of(f"{program}\ntime.sleep(0.4)")[0] == 0


@linux
def test_an_idle_process_lives_on_after_its_blocks() -> None:
    program = f"{HELD}\nimport socket\ntimer = Timer(0.05, Sooner())\nwith timer:\n    pass\n"
    # As a worker waits for its next task.
    wait = (
        "ours, theirs = socket.socketpair()\nours.settimeout(1.0)\ntry:\n    ours.recv(1)\nexcept TimeoutError:\n    "
    )
    assert exit_of(f"{program}{wait}print('lives')")[0] == 0


@linux
def test_a_timer_of_the_kernel_is_not_inherited() -> None:
    program = f"{HELD}\nimport os, time\nkernel = KernelTimer()\nkernel.set(0.1)\n"
    child = "if os.fork() == 0:\n    time.sleep(0.5)\n    print('lives', flush=True)\n    os._exit(0)\ntime.sleep(40)"
    done = subprocess.run([sys.executable, "-c", program + child], timeout=60, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"lives\n")
