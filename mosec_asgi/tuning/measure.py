"""One worker of each stage, driven with growing batches by the service's own engine.

Each stage is run by itself, on what the stages before it have returned for the sample: so that batches have the size
that they are meant to have. What is measured is what the worker says that it was at work, from decoding the first item
of a batch to encoding the last result; the difference of two `server.statistics()`.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mosec_asgi.errors import INTERNAL_ERROR_TEXT, MosecError
from mosec_asgi.labels import UNLABELLED, Label, Labels
from mosec_asgi.observing.statistics import StageReport
from mosec_asgi.offline.faults import Halted
from mosec_asgi.runtime import Runtime
from mosec_asgi.server import Server
from mosec_asgi.tuning.fit import Point

ROUTE = "/measured"
# Milliseconds in which items that are sent together become one batch.
TOGETHER = 20
# Items that are sent at a time to see what becomes of each.
_CHUNK = 8
# The share of a stage's time for that.
_PASS_SHARE = 0.3
# Measurements of each size, where there is time: the first one more, because much is loaded with it.
_REPEATS = 4
# Seconds at work of which processor time, counted in hundredths of a second, says something. A worker with less is so
# quick that under load it keeps a processor busy with its messages.
LEAST_BUSY = 0.2
# Seconds that `forward` may take at least and at most, and between these its part of a stage's time: what hangs ends in
# time, and a machine that is busy is not taken for a model that hangs. A call may take twice as long.
_FORWARD_SECONDS = (3.0, 60.0)
_FORWARD_SHARE = 0.5


@dataclass
class Measured:
    """What one stage came to.

    Attributes:
        by_items: the time of batches by their number of items.
        by_cost: the same by their cost; empty where the class defines none.
        labels: of each item of the sample that went through.
        outputs: what the stage returned for each.
        kept: the place of each among the items that it was given.
        most: the largest batch that was run.
        cpu: processors that the worker took while it was at work.
        memory: bytes that it had resident at the end.
        refused: items of the sample that failed here.
        why_refused: the first of them, in words.
        ended: why no larger batch was run.
    """

    by_items: list[Point] = field(default_factory=list)
    by_cost: list[Point] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    most: int = 1
    cpu: float = 0.0
    memory: int = 0
    refused: int = 0
    why_refused: str = ""
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a measurement goes.

    Attributes:
        seconds: of one stage, its start not included.
        most: items in a batch.
        batch_seconds: a batch that takes longer is the last of its stage.
    """

    seconds: float
    most: int
    batch_seconds: float

    @property
    def forward_seconds(self) -> float:
        """What `forward` may take."""
        least, most = _FORWARD_SECONDS
        return min(most, max(least, _FORWARD_SHARE * self.seconds))


async def measure(server: Server, runtime: Runtime, items: Sequence[Any], bounds: Bounds) -> Measured:
    """Measure a stage.

    Args:
        server: whose settings it runs with.
        runtime: the stage.
        items: what it is given.
        bounds: how far to go.

    Raises:
        StartupError: its worker does not start.
        Halted: it takes none of the items.
    """
    alone = Server(**server._keywords)
    alone._overrides = {
        **server._overrides,
        "admin_socket": "",
        # Its own workers are measured, and no others.
        "engine": "",
        "log_level": "warning",
        "capacity": max(1000, 2 * bounds.most),
        "timeout": round(2000 * bounds.forward_seconds),
        "load_shedding": False,
    }
    alone.register_runtime({ROUTE: [_alone(runtime, bounds)]})
    async with alone:
        return await _Driven(alone, runtime, bounds).run(items)


def _alone(runtime: Runtime, bounds: Bounds) -> Runtime:
    """Return a stage with one worker, that takes batches as large as are sent."""
    other = copy.copy(runtime)
    other.num, other.most_workers = 1, 1
    other.env = runtime.env[:1] if runtime.env else None
    if runtime.max_batch_size > 1:
        other.max_batch_size, other.max_wait_time = bounds.most, TOGETHER
    other.max_batch_cost, other.sort_by_cost, other.labels = 0, False, None
    other.max_calls = other.max_memory = 0
    # What kills its worker is to fail, and not to be run again in another one.
    other.max_attempts = 1
    other.latency_target = 0.0
    other.timeout = min(runtime.timeout or math.inf, bounds.forward_seconds)
    # A batch that is too large is to fail, and not to be run again in parts that pass.
    other.isolation_calls = 0
    other.methods = None
    return other


class _Driven:
    """A stage that runs."""

    def __init__(self, server: Server, runtime: Runtime, bounds: Bounds) -> None:
        self._server = server
        self._runtime = runtime
        self._bounds = bounds
        self._result = Measured()
        self._rng = random.Random(0)
        self._worker, self._began, self._cpu_before = 0, 0.0, (0.0, 0.0)
        self._before = self._report()
        worker = runtime.worker
        self._counts, groups = hasattr(worker, "cost"), hasattr(worker, "batch_key")
        self._labels = Labels(worker, counts=self._counts, groups=groups) if self._counts or groups else None

    async def run(self, items: Sequence[Any]) -> Measured:
        self._worker, self._began = self._pid(), time.monotonic()
        self._cpu_before = _cpu_seconds(self._worker)
        good = await self._passed(items, self._began + _PASS_SHARE * self._bounds.seconds)
        self._note_use()
        await self._grow(good, self._over)
        if not self._result.by_items:
            raise Halted(
                f"{self._runtime.worker.__name__} could not be measured: {self._result.ended}. It has answered the "
                "same items once before; see why it fails now and then"
            )
        return self._result

    @property
    def _over(self) -> float:
        """When the time is over."""
        return self._began + self._bounds.seconds

    def _note_use(self) -> None:
        """Note what the worker has taken of the machine; what one takes that has replaced it is not comparable."""
        busy = self._report().process.since(self._before.process).total
        if self._pid() == self._worker:
            then, before = _cpu_seconds(self._worker), self._cpu_before
            self._result.cpu = processors_of(then[0] - before[0], then[1] - before[1], busy)
        self._result.memory = _resident_bytes(self._pid()) or self._result.memory

    async def _passed(self, items: Sequence[Any], until: float) -> list[tuple[Any, Label]]:
        """Send each item once; return those that were answered, and keep what became of them."""
        result, good = self._result, []
        for first in range(0, len(items), _CHUNK):
            part = items[first : first + _CHUNK]
            for place, (item, answer) in enumerate(zip(part, await self._sent_apart(part), strict=True), first):
                label = self._label(item)
                failure = next((each for each in (answer, label) if isinstance(each, BaseException)), None)
                if failure is not None:
                    result.refused += 1
                    result.why_refused = result.why_refused or f"{type(failure).__name__}: {failure}"
                elif isinstance(label, Label):
                    good.append((item, label))
                    result.labels.append(label)
                    result.outputs.append(answer)
                    result.kept.append(place)
            if time.monotonic() > until:
                break
        if not good:
            raise Halted(self._why_none())
        return good

    def _why_none(self) -> str:
        """Return what to tell where no item was answered."""
        name, why = self._runtime.worker.__name__, self._result.why_refused
        if why.endswith(INTERNAL_ERROR_TEXT):
            why += " (the log above says where)"
        if time.monotonic() > self._began + _PASS_SHARE * self._bounds.seconds:
            return (
                f"{name} has answered none of the first {self._result.refused} items of the sample in "
                f"{time.monotonic() - self._began:.0f} s: {why}. Take items that it cannot do out of the sample; if it "
                "takes that long, give it more time by --seconds"
            )
        return (
            f"{name} takes none of the sample's items: {why}. Items are what `server.infer` takes: write into the "
            "sample what `deserialize` returns"
        )

    async def _grow(self, good: Sequence[tuple[Any, Label]], until: float) -> None:
        result, bounds = self._result, self._bounds
        for size in _sizes(bounds.most if self._runtime.max_batch_size > 1 else 1):
            seconds = 0.0
            for repeat in range(2 * _REPEATS if size <= 2 else _REPEATS):
                if repeat and time.monotonic() > until:
                    break
                point = await self._timed([self._rng.choice(good) for _ in range(size)])
                if point is None and size == 1 and time.monotonic() < until:
                    # Of a single item, which was answered before: a failure says nothing of the size.
                    continue
                if point is None:
                    return
                seconds = point.seconds
            if not result.by_items:
                return
            result.most = size
            if seconds > bounds.batch_seconds:
                result.ended = f"a batch of {size} took {seconds * 1000:.0f} ms"
                return
            if time.monotonic() + 3 * seconds > until:
                result.ended = f"the time was over with batches of {size}"
                return

    async def _timed(self, batch: Sequence[tuple[Any, Label]]) -> Point | None:
        """Run a batch; None where it failed."""
        result = self._result
        before = self._report()
        answers = await self._sent([item for item, _ in batch])
        failure = next((answer for answer in answers if isinstance(answer, BaseException)), None)
        if failure is not None:
            result.ended = f"a batch of {len(batch)} failed: {' '.join(str(failure).split())}"
            return None
        result.ended = ""
        after = self._report()
        process = after.process.since(before.process)
        self._note_use()
        # Where the engine has made several batches of it, a line goes through their mean as well.
        point = Point(len(batch) / process.count, process.total / process.count)
        result.by_items.append(point)
        if self._counts:
            costs = [label.cost for _, label in batch]
            load = max(costs) * len(costs) if self._runtime.sort_by_cost else sum(costs)
            result.by_cost.append(Point(load / process.count, point.seconds))
        return point

    async def _sent_apart(self, items: Sequence[Any]) -> list[Any]:
        """Send items together, and those that fail once more by themselves: one may have failed the others."""
        answers = await self._sent(items)
        if len(items) > 1:
            for place, answer in enumerate(answers):
                if isinstance(answer, BaseException) and time.monotonic() < self._over:
                    [answers[place]] = await self._sent([items[place]])
        return answers

    async def _sent(self, items: Sequence[Any]) -> list[Any]:
        calls = (self._server.infer(item, ROUTE) for item in items)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, MosecError):
                raise answer
        return answers

    def _label(self, item: Any) -> Label | MosecError:
        if self._labels is None:
            return UNLABELLED
        try:
            return self._labels.of(item)
        except MosecError as error:
            return error

    def _report(self) -> StageReport:
        return self._server.statistics().stages[0]

    def _pid(self) -> int:
        workers = self._report().workers
        number = workers[0].name.rpartition(" ")[2] if workers else ""
        return int(number) if number.isdigit() else 0


def _sizes(most: int) -> list[int]:
    doubled = [2**power for power in range(most.bit_length())]
    return sorted({size for each in doubled for size in (each, each * 3 // 2) if size <= most} | {most})


def processors_of(main: float, others: float, busy: float) -> float:
    """Return the processors that a worker takes while it is at work.

    Args:
        main: processor seconds of the thread that runs `forward`. What it takes for its messages can be more than a
            quick `forward` does.
        others: those of all other threads.
        busy: seconds that the worker was at work.
    """
    if busy < LEAST_BUSY:
        return 1.0
    return min(1.0, max(0.0, main) / busy) + max(0.0, others) / busy


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """Return the processor time of a process's first thread, and of all others; 0 where that is not known."""
    try:
        whole, first = (_ticks(f"/proc/{pid}/{of}stat") for of in ("", f"task/{pid}/"))
    except OSError:
        return 0.0, 0.0
    second = os.sysconf("SC_CLK_TCK")
    return first / second, max(0, whole - first) / second


def _ticks(path: str) -> int:
    with open(path, "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
