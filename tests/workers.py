"""Workers for the tests whose server runs in the test's own process: a spawned worker imports its class by name."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mosec_asgi import ValidationError, Worker
from mosec_asgi.ipc import frames
from mosec_asgi.messages import Results, Tasks


def say(text: str) -> None:
    """Print a line in one piece: several workers print into the same file."""
    os.write(1, f"{text}\n".encode())


class Echo(Worker):
    """Answers what it is asked, and which process it is."""

    def forward(self, data: Any) -> dict[str, Any]:
        if data == "invalid":
            raise ValidationError("not this")
        return {"echo": data, "pid": os.getpid()}


class Raw(Worker):
    """Answers the bytes that it was sent."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data


class Gate(Worker):
    """Answers once the file exists that the request names."""

    def forward(self, data: str) -> str:
        say("waiting at the gate")
        while not Path(data).exists():
            time.sleep(0.005)
        return "opened"


class Counted(Worker):
    """Adds a byte to the file that a request names, each time it is run."""

    def forward(self, data: str) -> None:
        with open(data, "ab", buffering=0) as file:
            file.write(b".")


class Modules(Worker):
    """Answers the names of the modules that its process has loaded."""

    def forward(self, data: Any) -> list[str]:
        return sorted(sys.modules)


class Broken(Worker):
    """Cannot be started."""

    def __init__(self) -> None:
        raise RuntimeError("the weights are missing")

    def forward(self, data: Any) -> Any:
        return data


class Loading(Worker):
    """Says that it has begun to load, and does not come to an end with it."""

    def __init__(self) -> None:
        say("loading has begun")
        time.sleep(600)

    def forward(self, data: Any) -> Any:
        return data


class BusyLoading(Worker):
    """Loads until the file exists that it is given the path of: computes for a while, and sleeps for a while."""

    def __init__(self, gate: str) -> None:
        say("loading has begun")
        while not Path(gate).exists():
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                pass
            time.sleep(0.01)

    def forward(self, data: Any) -> Any:
        return data


class Parent(Worker):
    """Has a process of its own do the work, as a data loader does; answers its exit code."""

    def forward(self, data: int) -> int | None:
        process = multiprocessing.get_context("fork").Process(target=sys.exit, args=(data,))
        process.start()
        process.join()
        return process.exitcode


class Stuck(Worker):
    """Does not come back from what it is asked, as a call into C that hangs does not; answers who it is if asked 0."""

    def forward(self, data: int) -> int:
        if data:
            say("stuck")
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(data)
        return os.getpid()


class Closing(Worker):
    """Says that it has been closed."""

    def forward(self, data: Any) -> Any:
        return data

    def close(self) -> None:
        say(f"closed worker {self.worker_id}")


class BadExample(Worker):
    """Has an example that its model does not take."""

    example = {"x": "text"}

    def forward(self, data: dict[str, Any]) -> float:
        return data["x"] / 2


class GoodExample(BadExample):
    """Has an example that its model takes."""

    example = {"x": 3}


class Halve(Worker):
    """A last stage."""

    def forward(self, data: float) -> float:
        return data / 2


class Cut(Worker):
    """A first stage: bytes as they came, and their beginning."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> tuple[bytes, bytes]:
        return data[:16], data


class Digest(Worker):
    """A middle stage, in batches."""

    def forward(self, data: list[tuple[bytes, bytes]]) -> list[tuple[bytes, str]]:
        return [(beginning, hashlib.sha256(whole).hexdigest()) for beginning, whole in data]


class Join(Worker):
    """A last stage: the beginning and the digest as bytes."""

    resp_mime_type = "application/octet-stream"

    def forward(self, data: tuple[bytes, str]) -> bytes:
        beginning, digest = data
        return beginning + b" " + digest.encode()

    def serialize(self, data: bytes) -> bytes:
        return data


# -- workers that break what they are told to break --------------------------------------------------------------------


def own_pipes() -> list[int]:
    """Return the descriptors of this worker's sockets: its pipe to the server is the only one that it has."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.append(int(name))
    return found


def say_to_the_server(data: bytes) -> None:
    """Write bytes to the server behind the back of the child's own code."""
    for descriptor in own_pipes():
        os.write(descriptor, data)


def close_the_pipe() -> None:
    """Hang up, and go on working."""
    for descriptor in own_pipes():
        os.close(descriptor)


def tasks_at_work() -> Tasks:
    """Return the frame that the child's code is at work on, which `forward` is not told: a caller of it holds it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            if isinstance(value, Tasks):
                return value
        frame = frame.f_back
    raise LookupError("no caller has the tasks")


def answer_by_hand(ids: Sequence[int], payloads: Sequence[bytes]) -> None:
    """Answer tasks with 200 before the child's own code does."""
    say_to_the_server(frames.encode_results(Results(ids, [200] * len(ids), payloads, 0.0)))


def answer_twice() -> None:
    """Answer the first task, which asks for this; the child's own code does it again."""
    tasks = tasks_at_work()
    answer_by_hand(tasks.ids[:1], tasks.payloads[:1])


def answer_in_reverse() -> None:
    """Answer all tasks of the batch from the last to the first, each with a result that is not its own."""
    ids = tasks_at_work().ids[::-1]
    if len(ids) > 1:
        answer_by_hand(ids, [b'"forged"'] * len(ids))


def wait_to_be_killed() -> None:
    """Say who this is, and do not come back."""
    say(f"to be killed: {os.getpid()}")
    time.sleep(600)


class Sabotage(Worker):
    """Answers a batch of items, and breaks its process in the way that one of them names.

    An invalid item makes the whole batch raise, so that the others are run again in parts.
    """

    WAYS: dict[str, Callable[[], object]] = {
        "exit": lambda: os._exit(3),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segfault": lambda: ctypes.string_at(0),
        "memory": lambda: bytearray(1 << 60),
        "close": close_the_pipe,
        "garbage": lambda: say_to_the_server(b"\xff" * 1000),
        "unknown": lambda: answer_by_hand([1 << 60], [b"1"]),
        "twice": answer_twice,
        "reverse": answer_in_reverse,
        "outside": wait_to_be_killed,
    }

    def forward(self, data: list[Any]) -> list[Any]:
        if "invalid" in data:
            raise ValidationError("not this")
        for item in data:
            if item in self.WAYS:
                self.WAYS[item]()
        return data


class Deadlock(Worker):
    """Locks a mutex of the C library twice, if asked to: no signal ends that, as long as Python has to handle it.

    Asked for "held" it keeps Python's lock meanwhile, so that no other thread of its process runs either. Asked for
    anything else it answers who it is.
    """

    def forward(self, data: str) -> int:
        if data in ("held", "released"):
            say(f"locked in {os.getpid()}")
            library = ctypes.PyDLL(None) if data == "held" else ctypes.CDLL(None)
            mutex = ctypes.create_string_buffer(256)
            for _ in range(2):
                library.pthread_mutex_lock(mutex)
        return os.getpid()


class Relapse(Worker):
    """Starts well unless a file in TESTS_FOLDER keeps it from it: `raise` or `hang`. Dies if asked to."""

    def __init__(self) -> None:
        folder = Path(os.environ["TESTS_FOLDER"])
        if (folder / "raise").exists():
            raise RuntimeError("the weights are missing")
        if (folder / "hang").exists():
            time.sleep(600)

    def forward(self, data: str) -> str:
        if data == "die":
            os._exit(1)
        return data


class Nap(Worker):
    """Takes its time, and adds a byte for each item to the file that the items name."""

    def forward(self, data: list[str]) -> list[int]:
        time.sleep(0.3)
        for name in data:
            with open(name, "ab", buffering=0) as file:
                file.write(b".")
        return [os.getpid()] * len(data)


class Abandon(Worker):
    """Starts a process that ends when the file exists that a request names, and dies before it. Answers "stay".

    The process has a session of its own, or it would end with the worker.
    """

    def forward(self, data: str) -> int:
        if data != "stay":
            wait = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
            say(f"abandoned {subprocess.Popen([sys.executable, '-c', wait, data], start_new_session=True).pid}")
            os._exit(1)
        return os.getpid()
