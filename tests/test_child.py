from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from typing import Any

import pytest
from common import told
from fake_port import PATIENCE, ServerEnd, hang, json_tasks, spec_of, worker_of

from mosec_asgi.errors import MosecTimeoutError
from mosec_asgi.inside.async_runner import AsyncRunner
from mosec_asgi.inside.codec import examples
from mosec_asgi.inside.continuous_runner import ContinuousRunner
from mosec_asgi.inside.loading import load, runner_for, warm_up
from mosec_asgi.inside.plain_runner import PlainRunner
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.stream_runner import StreamRunner
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.messages import Results
from mosec_asgi.pool.process import child
from mosec_asgi.streaming import ContinuousWorker, SSEWorker
from mosec_asgi.worker import Worker

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2  # <linux/prctl.h>


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Counting(ContinuousWorker):
    """Streams the numbers from 1 to what it is asked for."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}

    def admit(self, item: int) -> int:
        slot = min(set(range(len(self.left) + 1)) - self.left.keys())
        self.left[slot] = item
        return slot

    def step(self) -> Iterable[tuple[Hashable, Any]]:
        for slot in self.left:
            yield slot, f"{self.left[slot]}"
            self.left[slot] -= 1
            if not self.left[slot]:
                yield slot, self.FINISHED

    def evict(self, slot: Hashable) -> None:
        del self.left[slot]  # type: ignore[arg-type]


class Pushing(SSEWorker):
    def forward(self, data: Any) -> None:
        self.send_stream_event(f"{data}")


class Yielding(SSEWorker):
    def forward(self, data: Any) -> Iterator[str]:
        yield f"{data}"


class Awaiting(Worker):
    async def forward(self, data: Any) -> Any:
        await asyncio.sleep(0)
        return data


class AwaitingStream(SSEWorker):
    async def forward(self, data: Any) -> AsyncIterator[str]:
        yield f"{data}"


# -- the worker --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "kind"),
    [
        (Echo, PlainRunner),
        (Pushing, StreamRunner),
        (Yielding, StreamRunner),
        (Awaiting, AsyncRunner),
        (AwaitingStream, AsyncRunner),
        (Counting, ContinuousRunner),
    ],
)
def test_the_class_of_a_worker_decides_what_runs_it(worker: type[Worker], kind: type) -> None:
    with ServerEnd() as server:
        spec = spec_of(worker)
        runner = runner_for(load(spec), spec, server.port)
        runner.close()
    assert type(runner) is kind


def test_a_worker_knows_its_number_stage_and_batch_size_in_its_init() -> None:
    class Curious(Worker):
        def __init__(self) -> None:
            self.seen = (self.worker_id, self.stage, self.max_batch_size)

        def forward(self, data: Any) -> Any:
            return data

    worker = load(WorkerSpec(Curious, "Curious_2", 5, 16, 1.0))
    assert isinstance(worker, Curious)
    assert worker.seen == (5, "Curious_2", 16)


class Rehearsing:
    """Stands in for what runs a worker; notes what it is to rehearse."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[Any] = []
        self._error = error

    def rehearse(self, example: Any) -> None:
        self.seen.append(example)
        if self._error is not None:
            raise self._error

    def serve(self) -> None:
        raise AssertionError("nothing comes")

    def close(self) -> None:
        raise AssertionError("it serves on")


def warmed_up(max_batch_size: int = 1, base: type[Worker] = Worker, **members: Any) -> list[Any]:
    runner = Rehearsing()
    spec = spec_of(worker_of(lambda data: data, base, **members), max_batch_size=max_batch_size)
    warm_up(runner, examples(spec.worker()), spec)
    return runner.seen


def test_without_an_example_nothing_is_run() -> None:
    assert warmed_up() == []


def test_the_example_is_run_once_in_the_form_that_forward_takes() -> None:
    assert warmed_up(example=7) == [7]
    assert warmed_up(max_batch_size=4, example=7) == [[7]]
    assert warmed_up(example=0) == [0]


def test_several_examples_are_run_in_order_and_win_over_one() -> None:
    assert warmed_up(max_batch_size=4, example=7, multi_examples=[1, [2, 3]]) == [[1], [2, 3]]


def test_examples_may_be_an_array() -> None:
    numpy = pytest.importorskip("numpy")
    (example,) = warmed_up(example=numpy.zeros(3))
    assert example.shape == (3,)
    assert len(warmed_up(multi_examples=numpy.zeros((2, 3)))) == 2


def test_a_continuous_worker_rehearses_one_request_whatever_the_number_of_its_slots() -> None:
    assert warmed_up(max_batch_size=4, base=Counting, example=7) == [7]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no such layer"),
        pytest.param(
            MosecTimeoutError("no such layer"),
        ),
    ],
    ids=repr,
)
def test_a_warm_up_that_fails_is_logged_and_the_worker_serves(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    warm_up(Rehearsing(error), [1, 2], spec_of(Echo))
    (record,) = caplog.records
    assert (record.levelname, *told(record, "stage", "worker")) == ("ERROR", "Made_1", 3)
    assert "warm-up failed" in record.getMessage()
    assert record.exc_info is not None
    assert "no such layer" in str(record.exc_info[1])


@pytest.mark.parametrize(("max_batch_size", "hint"), [(1, False), (4, True)])
def test_a_failed_warm_up_says_what_an_example_must_be(
    max_batch_size: int, hint: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warm_up(Rehearsing(TypeError("x")), [1], spec_of(Echo, max_batch_size=max_batch_size))
    (record,) = caplog.records
    assert ("a list of items" in record.getMessage()) is hint


# -- the process -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Ended:
    """What a worker process has left behind.

    Attributes:
        said: the frames that it has sent.
        notes: what its worker has noted.
        code: its exit code.
    """

    said: list[frames.Frame]
    notes: list[str]
    code: int | None


class Noting(Worker):
    """Notes for the test what happens to it."""

    pipe: int

    def note(self, text: str) -> None:
        os.write(self.pipe, f"{text}\n".encode())

    def forward(self, data: Any) -> Any:
        return data + 1

    def close(self) -> None:
        self.note("closed")


def talk(worker: type[Noting], sent: bytes = b"", **options: Any) -> Ended:
    """Run a worker in a process that is sent `sent` and then the end of the stream."""
    ours, theirs = socket.socketpair()
    reading, worker.pipe = os.pipe()
    with ours, theirs, contextlib.closing(ProgressPage()) as page, os.fdopen(reading) as notes:
        process = multiprocessing.get_context("fork").Process(
            target=_only_theirs, args=(ours, spec_of(worker, **options), theirs, page)
        )
        process.start()
        theirs.close()
        os.close(worker.pipe)
        with contextlib.suppress(BrokenPipeError):
            ours.sendall(sent)
            ours.shutdown(socket.SHUT_WR)
        process.join(PATIENCE)
        decoder = frames.Decoder()
        with contextlib.suppress(ConnectionResetError):
            while data := ours.recv(65536):
                decoder.receive_data(data)
        said = list(iter(decoder.next_frame, None))
        return Ended(said, notes.read().splitlines(), process.exitcode)


def _only_theirs(ours: socket.socket, *args: Any) -> None:
    """Run a worker that has not inherited the server's end."""
    ours.close()
    child.main(*args)


def answers(ended: Ended) -> list[tuple[list[int], list[bytes]]]:
    return [(list(frame.codes), list(frame.payloads)) for frame in ended.said if isinstance(frame, Results)]


def test_a_worker_says_that_it_is_ready_answers_what_it_is_sent_and_closes_at_the_end() -> None:
    ended = talk(Noting, b"".join(frames.encode_tasks(work) for work in (json_tasks(1), json_tasks(10, first=2))))
    assert ended.said[0] == frames.Ready()
    assert answers(ended) == [([200], [b"2"]), ([200], [b"11"])]
    assert (ended.notes, ended.code) == (["closed"], 0)


def test_a_worker_warms_up_before_it_is_ready() -> None:
    class Warm(Noting):
        example = 1

        def forward(self, data: Any) -> Any:
            self.note(f"ran {data}")
            return data

    ended = talk(Warm, frames.encode_tasks(json_tasks(2)))
    assert ended.said[0] == frames.Ready()
    assert ended.notes == ["ran 1", "ran 2", "closed"]


@pytest.mark.parametrize("kind", [Worker, SSEWorker, ContinuousWorker], ids=lambda kind: kind.__name__)
def test_what_a_worker_sends_while_it_warms_up_goes_nowhere(kind: type[Worker]) -> None:
    class Plain(Noting):
        example = 1

    class Streaming(Noting, SSEWorker):
        example = 1

        def forward(self, data: Any) -> None:
            self.send_stream_event("warm")

    class Stepping(Noting, Counting):
        example = 1

        def forward(self, data: Any) -> Any:
            return ContinuousWorker.forward(self, data)

    worker = {Worker: Plain, SSEWorker: Streaming, ContinuousWorker: Stepping}[kind]
    ended = talk(worker)
    assert (ended.said, ended.notes, ended.code) == ([frames.Ready()], ["closed"], 0)


def test_a_worker_that_cannot_start_sends_its_traceback_and_exits_with_1() -> None:
    class Failing(Noting):
        def __init__(self) -> None:
            raise OSError("no weights here")

    ended = talk(Failing)
    (frame,) = ended.said
    assert isinstance(frame, frames.Failed)
    assert "Traceback" in frame.text
    assert "OSError: no weights here" in frame.text
    assert (ended.notes, ended.code) == ([], 1)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, type("Panic", (BaseException,), {})])
def test_a_worker_that_cannot_start_tells_why_whatever_it_raises(error: type[BaseException]) -> None:
    class Failing(Noting):
        def __init__(self) -> None:
            raise error("no weights here")

    ended = talk(Failing)
    (frame,) = ended.said
    assert isinstance(frame, frames.Failed)
    assert f"{error.__name__}: no weights here" in frame.text
    assert ended.code == 1


def test_a_worker_whose_server_is_gone_stops_without_a_fuss() -> None:
    ended = talk(Noting)
    assert (ended.notes, ended.code) == (["closed"], 0)


def test_a_worker_ignores_the_signals_that_are_meant_for_its_server() -> None:
    class Interrupted(Noting):
        def forward(self, data: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            return data

    ended = talk(Interrupted, frames.encode_tasks(json_tasks(1)))
    assert (answers(ended), ended.notes, ended.code) == ([([200], [b"1"])], ["closed"], 0)


def death_signal() -> int:
    """Return the signal that this process gets when its parent dies; 0 for none."""
    number = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0)
    return number.value


linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system can do it")


@linux
def test_a_worker_at_work_whose_server_dies_is_told_by_the_system_and_closes() -> None:
    class Loaded(Noting):
        def __init__(self) -> None:
            # Known before the model is loaded, which may take long.
            self.told = death_signal()

        def forward(self, data: Any) -> Any:
            try:
                signal.raise_signal(self.told)
                hang()
            except Exception:
                self.note("swallowed")

    ended = talk(Loaded, frames.encode_tasks(json_tasks(1)))
    assert (ended.notes, ended.code) == (["closed"], 1)


@pytest.mark.parametrize("sent", [b"garbage" * 10, frames.encode_ready()], ids=["garbage", "no tasks"])
def test_a_worker_that_is_sent_no_tasks_ends_after_closing(sent: bytes) -> None:
    ended = talk(Noting, sent)
    assert (ended.notes, ended.code) == (["closed"], 1)


ALONE = """
import asyncio, ctypes, os, signal, socket, sys, threading, time
from mosec_asgi import Worker
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.messages import Tasks
from mosec_asgi.pool.process import child
from mosec_asgi.inside.spec import WorkerSpec

def server_dies():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGRTMAX - 1)).start()

def never():
    # No signal interrupts it, and it holds the interpreter.
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)

timeout = 600.0
ours, theirs = socket.socketpair()
ours.sendall(frames.encode_tasks(Tasks([1], [3], ["r1"], [b"1"])))
"""
SERVE = """
child.main(WorkerSpec(Made, "Made_1", 1, 1, timeout), theirs, ProgressPage())
"""


def alone(program: str) -> subprocess.CompletedProcess[str]:
    """Run a worker as the main program of a process whose server's end is `ours`."""
    command = [sys.executable, "-c", ALONE + program + SERVE]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@linux
@pytest.mark.parametrize("waits", ["time.sleep(600)", "await asyncio.sleep(600)"])
def test_an_asynchronous_worker_at_work_whose_server_dies_cleans_up_and_closes(waits: str) -> None:
    done = alone(f"""
class Made(Worker):
    async def forward(self, data):
        server_dies()
        try:
            {waits}
        finally:
            print("cleaned up")

    async def close(self):
        await asyncio.sleep(0)
        print("closed")
""")
    assert (done.returncode, done.stdout.splitlines()) == (1, ["cleaned up", "closed"])


@linux
@pytest.mark.parametrize(
    "close",
    ["never()", "threading.Thread(target=time.sleep, args=(600,)).start()", "threading.Event().wait()"],
    ids=["held", "thread", "waits"],
)
def test_a_worker_that_does_not_end_once_its_server_has_died_is_ended(close: str) -> None:
    done = alone(f"""
child.END_SECONDS = 0.5
ours.close()

class Made(Worker):
    def forward(self, data):
        return data

    def close(self):
        {close}
""")
    assert done.returncode == -signal.SIGKILL


@linux
def test_an_alarm_that_a_request_has_left_does_not_keep_the_worker_from_being_ended() -> None:
    done = alone("""
child.END_SECONDS, timeout = 1.5, 0.5

class Made(Worker):
    def __init__(self):
        threading.Thread(target=time.sleep, args=(600,)).start()

    def forward(self, data):
        ours.close()
        return data
""")
    assert done.returncode == -signal.SIGKILL


@linux
@pytest.mark.parametrize("close", ["", "self.tell()"], ids=["at work", "closing"])
def test_a_worker_that_goes_on_though_it_was_told_of_the_death_of_its_server_is_ended(close: str) -> None:
    """What tells it is an exception, that may be raised in a `finally`, and get lost there."""
    done = alone(f"""
child.END_SECONDS = 0.5

class Made(Worker):
    def tell(self):
        try:
            signal.raise_signal(signal.SIGRTMAX - 1)
        except BaseException:
            print("lost", flush=True)

    def forward(self, data):
        {"ours.close()" if close else "self.tell()"}
        {"return data" if close else "time.sleep(600)"}

    def close(self):
        {close or "pass"}
        time.sleep(600)
""")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "" if close else "lost\n")


@linux
def test_an_asynchronous_worker_whose_loop_is_held_when_its_server_has_died_is_ended() -> None:
    done = alone("""
from mosec_asgi.inside import async_runner as concurrent
concurrent.FORSAKEN_SECONDS = timeout = 0.2

class Made(Worker):
    async def forward(self, data):
        never()
""")
    assert done.returncode == -signal.SIGKILL


@linux
def test_an_asynchronous_worker_whose_closing_does_not_end_is_ended() -> None:
    done = alone("""
child.END_SECONDS = 0.5

class Made(Worker):
    async def forward(self, data):
        ours.close()

    async def close(self):
        await asyncio.sleep(600)
""")
    assert done.returncode == -signal.SIGKILL


class Made(Worker):
    def __init__(self, path: str, *, size: int) -> None:
        self.made = (path, size, self.worker_id, self.stage, self.max_batch_size)

    def forward(self, data: Any) -> Any:
        return data


def test_a_worker_is_made_with_its_arguments_and_knows_itself_meanwhile() -> None:
    spec = dataclasses.replace(spec_of(Made, max_batch_size=4), args=("weights",), kwargs={"size": 2})
    worker = load(spec)
    assert isinstance(worker, Made)
    assert worker.made == ("weights", 2, 3, "Made_1", 4)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps the name")
@pytest.mark.parametrize(
    ("stage", "number", "name"),
    [
        ("Echo_1", 2, "Echo_1:2"),
        ("Preprocessing_12", 34, "Preproces_12:34"),
        ("Größenänderung_1", 1, "Größenän_1:1"),
        ("A_123456789", 123456, "_123456789:1234"),
    ],
)
def test_ps_shows_stage_and_number_of_a_worker(stage: str, number: int, name: str) -> None:
    program = "import sys; from mosec_asgi.pool.process.child import name_process; "
    program += "name_process(sys.argv[1], int(sys.argv[2])); "
    program += "print(open('/proc/self/comm').read())"
    done = subprocess.run(
        [sys.executable, "-c", program, stage, str(number)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == name
