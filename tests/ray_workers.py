"""Workers of the tests that need Ray; an actor imports them by name."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy

from mosec_asgi import Worker
from mosec_asgi.pool.ray.store import RayStore


class Where(Worker):
    """Answers with its process, its node, and its variable `COLOR`."""

    def forward(self, data: Any) -> list[Any]:
        import ray

        return [os.getpid(), ray.get_runtime_context().get_node_id(), os.environ.get("COLOR")]


class Dies(Worker):
    """Ends its process where it is asked to, and answers anything else with its process after a moment."""

    def forward(self, data: Any) -> list[Any]:
        if data == "die":
            os._exit(1)
        time.sleep(0.002)
        return [data, os.getpid()]


class Adds(Worker):
    """Adds its process to what it is given."""

    def forward(self, data: list[Any]) -> list[Any]:
        return [*data, os.getpid()]


class Makes(Worker):
    """Makes an array of so many numbers; of "kept", one number: of objects that it keeps in the store for others."""

    def forward(self, data: Any) -> Any:
        if data == "kept":
            (store,) = [each for each in gc.get_objects() if type(each) is RayStore]
            return numpy.array([store.kept])
        return {"pid": os.getpid(), "array": numpy.arange(data, dtype=numpy.float64)}


class Sums(Worker):
    """Sums an array up, once the file is there that the name of its length says, if it is a special one."""

    gate = 100_003

    def forward(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return data.tolist()
        array = data["array"]
        if len(array) == self.gate:
            path = Path(os.environ["GATE"])
            path.with_suffix(".begun").touch()
            while not path.exists():
                time.sleep(0.005)
        return [float(array.sum()), array.flags.writeable, data["pid"], os.getpid()]


class Counts(Worker):
    """Counts its calls, and itself as long as it lives; answers with its process."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.asked = Counter("asked", "calls")
        self.took = Histogram("took", "seconds")
        Gauge("working", "workers", multiprocess_mode="livesum").set(1)

    def forward(self, data: Any) -> int:
        self.asked.inc()
        self.took.observe(0.1)
        return os.getpid()
