"""Workers for the tests of `preload`: their template imports this module, and should be quick."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from typing import Any

from mosec_asgi.worker import Worker


def target(descriptor: int) -> str | None:
    """Return what kind of thing a descriptor of this process stands for."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0]
    except FileNotFoundError:
        return None


class Loaded(Worker):
    """Knows where it was loaded, and does what it is told."""

    def __init__(self) -> None:
        self.loaded = (os.getpid(), self.worker_id)
        self.forked = 0

    def after_fork(self) -> None:
        self.forked = os.getpid()

    def forward(self, data: Any) -> Any:
        match data:
            case "who":
                return {"loaded": self.loaded, "forked": self.forked, "pid": os.getpid(), "id": self.worker_id}
            case ["exit", status]:
                os._exit(status)
            case "descriptors":
                return sorted(filter(None, map(target, range(3, 256))))
        return data


class Helped(Loaded):
    """Has a process beside it, which its template has started."""

    def __init__(self) -> None:
        self.helper = subprocess.Popen(["sleep", "600"]).pid

    def forward(self, data: Any) -> Any:
        return self.helper


class Unable(Loaded):
    """Cannot be loaded."""

    def __init__(self) -> None:
        raise OSError("no weights")


class Stubborn(Loaded):
    """Cannot be made one of several."""

    def after_fork(self) -> None:
        raise OSError("no connection")


class Endless(Loaded):
    """Is never done with loading."""

    def __init__(self) -> None:
        threading.Event().wait()


class Random(Loaded):
    """Answers random numbers, which would be the same in each run."""

    def __init__(self) -> None:
        import numpy

        self.numpy = numpy.random
        random.seed(1)
        numpy.random.seed(1)

    def forward(self, data: Any) -> list[float]:
        return [random.random(), float(self.numpy.random())]


class Heavy(Worker):
    """Holds as many megabytes as the environment says, and counts them each time that it is asked, and how often."""

    def __init__(self) -> None:
        from prometheus_client import Counter

        self.asked = Counter("asked", "how often")
        self.model = bytearray(int(os.environ["HEAVY"]) << 20)
        for page in range(0, len(self.model), 4096):
            self.model[page] = 1

    def forward(self, data: Any) -> Any:
        self.asked.inc()
        return sum(self.model[::4096]) >> 8
