"""Five minutes at full speed, with everything that goes wrong in a year: `make soak`.

16 clients send one request after the other: small and large ones, broken JSON, items that are refused and items that
fail, streams; some clients leave in the middle. All the while workers are killed. Every answer must be the right one,
and what the service holds must not grow: memory, descriptors, threads, files in shared memory. The exit status is 1
where it is otherwise.

Memory is the resident set (RSS) of the server and of a worker that is not killed, looked at every second; a sample is
the median of five looks. The first fifth of the time is the warm-up. Of the rest, the median of the last third is
compared with that of the first: single looks go up and down with the requests that happen to be under way. The service
runs with a setting of glibc's allocator by which memory that was freed shows as free, see `MALLOC`. Descriptors and
threads are counted at rest, after the first seconds of load and after the last, and must not be more. Linux only, by
/proc.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import servers
from connection import Answer, Connection, Lost, connected
from faults import positive
from leftovers import SHARED_MEMORY, leftovers
from problems import BenchmarkError

CONNECTIONS = 16
SECONDS = 300.0
INTERVAL = 1.0
# A sample is the median of so many looks, which are so far apart.
LOOKS = 5
LOOK_SECONDS = 1.0
FIRST_SECONDS = 3.0
# For the last answers, for workers to be replaced, for connections to be closed.
REST_SECONDS = 20.0
GROWTH = 0.02
LIVES, DIES = 1, 2
# What a client does next, by how often; the numbers are shares of their sum.
KINDS = {"small": 60, "large": 3, "garbled": 8, "refuse": 8, "fail": 4, "leave": 8, "stream": 6, "leave stream": 3}
# Bytes of a large body, drawn between the two.
LARGE = (100_000, 1_000_000)
# glibc keeps large blocks that are freed in its heap, with holes between them that fill or not as chance has it: a
# worker that had nothing but large bodies went from 35 to 38 MB in three minutes, and others up and down by 6 MB, while
# nothing was kept. With this setting large blocks go back to the system at once, the same worker stayed at 25 MB, and
# what is measured is what is held.
MALLOC = ("MALLOC_MMAP_THRESHOLD_", "65536")
STATUS = {"garbled": 400, "refuse": 422, "fail": 500}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds: kilobytes of memory, all of it and its share of what others have too; counts."""

    rss: int
    pss: int
    descriptors: int
    threads: int


def usage(pid: int) -> Usage:
    """Look at a process.

    Raises:
        OSError: it is not there.
    """
    process = Path("/proc", str(pid))
    rollup = dict(re.findall(r"^(\w+): +(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE))
    return Usage(
        int(rollup["Rss"]), int(rollup["Pss"]), len(os.listdir(process / "fd")), len(os.listdir(process / "task"))
    )


def median_usage(looks: Sequence[Usage]) -> Usage:
    """Return the median of each number."""
    columns = zip(*map(dataclasses.astuple, looks), strict=True)
    return Usage(*map(statistics.median_low, columns))


@dataclass(frozen=True, slots=True)
class Sample:
    """The service at one moment, and the requests a second since the sample before."""

    seconds: float
    rate: float
    server: Usage
    worker: Usage
    files: int


@dataclass
class Findings:
    """What was seen.

    Attributes:
        answers: requests by what they were and what came of them.
        problems: what must not be, and how often.
        killed: workers.
        samples: one every few seconds.
    """

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    samples: list[Sample] = field(default_factory=list)


class Soak:
    """Clients that load the service, a hand that kills workers, and an eye on what the processes hold."""

    def __init__(self, server: servers.RunningServer, interval: float, *, streams: bool) -> None:
        self.findings = Findings()
        self._server = server
        self._interval = interval
        self._kinds = [kind for kind in KINDS if streams or "stream" not in kind]
        self._weights = [KINDS[kind] for kind in self._kinds]
        self._numbers = itertools.count(1)
        self._until = 0.0
        # The worker that lives and is measured, and those that are to be killed, as their answers name them.
        self.worker: int | None = None
        self._victims: set[int] = set()
        self._killed: set[int] = set()

    async def load(self, seconds: float, *, kill: bool = True, report: Callable[[Sample], None] | None = None) -> None:
        """Load the service for a time; kill workers and take samples meanwhile, if asked to."""
        self._until = time.monotonic() + seconds
        others = [asyncio.ensure_future(self._kill())] if kill else []
        if report is not None:
            others.append(asyncio.ensure_future(self._watch(report)))
        clients = [asyncio.ensure_future(self._client()) for _ in range(CONNECTIONS)]
        _, waiting = await asyncio.wait(clients, timeout=seconds + REST_SECONDS)
        if waiting:
            self.findings.problems["a request was never answered"] += len(waiting)
        for task in (*others, *waiting):
            task.cancel()
        for ended in await asyncio.gather(*others, *clients, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def _client(self) -> None:
        while time.monotonic() < self._until:
            try:
                async with connected(self._server.port) as connection:
                    while time.monotonic() < self._until:
                        kind = random.choices(self._kinds, self._weights)[0]
                        if kind.startswith("leave"):
                            await self._leave(kind)
                        elif kind == "stream":
                            await self._stream(connection)
                        else:
                            await self._ask(connection, kind)
            except Lost as error:
                self.findings.problems[f"a connection was lost {error}"] += 1
                await asyncio.sleep(0.05)

    async def _ask(self, connection: Connection, kind: str) -> None:
        number = next(self._numbers)
        size = random.randrange(*LARGE) if kind == "large" else number % 1000
        item = {"number": number, "do": kind, "text": "x" * size}
        body = json.dumps(item).encode()
        request_id = f"soak-{number}"
        answer = await connection.ask(random.choice(("/one", "/many")), body[kind == "garbled" :], request_id)
        self.findings.answers[kind, str(answer.status)] += 1
        if answer.headers.get("x-request-id") != request_id:
            self.findings.problems["an answer has the request id of another"] += 1
        if answer.status != STATUS.get(kind, 200):
            self.findings.problems[f"{kind}: {answer.status} {answer.text[:100]!r}"] += 1
        elif answer.status == 200:
            result = json.loads(answer.body)
            if result["item"] != item:
                self.findings.problems["an answer is that of another request"] += 1
            self._meet(result["process"], result["worker"], measure=True)

    def _meet(self, process: int, worker: int, *, measure: bool = False) -> None:
        if worker == DIES:
            self._victims.add(process)
        elif measure and self.worker is None:
            self.worker = process

    async def _leave(self, kind: str) -> None:
        """Send a request, or a part of one, on a connection of its own and hang up."""
        item = {"number": next(self._numbers), "do": "leave", "text": "x" * random.randrange(10_000), "events": 1000}
        body = json.dumps(item).encode()
        path = "/stream" if kind == "leave stream" else random.choice(("/one", "/many"))
        async with connected(self._server.port) as connection:
            if random.random() < 0.3:
                await connection.send_part(path, body)
            else:
                await connection.send(path, body)
            await asyncio.sleep(random.random() * 0.02)
        self.findings.answers[kind, "-"] += 1

    async def _stream(self, connection: Connection) -> None:
        """Read a whole stream: its own events in order, and an error where its worker was killed."""
        number, events = next(self._numbers), random.randrange(1, 50)
        body = json.dumps({"number": number, "events": events}).encode()
        answer = await connection.ask("/stream", body)
        if answer.status != 200:
            self.findings.answers["stream", str(answer.status)] += 1
            self.findings.problems[f"stream: {answer.status} {answer.text[:100]!r}"] += 1
            return
        self.findings.answers["stream", self._check_events(answer, number, events)] += 1

    def _check_events(self, answer: Answer, number: int, events: int) -> str:
        blocks = [block for block in answer.text.split("\n\n") if block]
        error = bool(blocks) and blocks[-1].startswith("event: error")
        place = -1
        for place, block in enumerate(blocks[:-1] if error else blocks):
            found = re.fullmatch(r"data: (\d+) (\d+) (\d+) (\d)", block)
            if found is None or (int(found[1]), int(found[2])) != (number, place):
                self.findings.problems[f"a stream has the event {block!r} in the place of another"] += 1
                return "wrong"
            self._meet(int(found[3]), int(found[4]))
        if error:
            return "200, cut short"
        if place + 1 != events:
            self.findings.problems["a stream ended early and did not say so"] += 1
        return "200"

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            alive = sorted(self._victims - self._killed)
            if alive:
                victim = random.choice(alive)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                self._killed.add(victim)
                self.findings.killed += 1

    async def _watch(self, report: Callable[[Sample], None]) -> None:
        assert self.worker is not None
        began = before = time.monotonic()
        files = leftovers()
        count = self.findings.answers.total()
        while True:
            looks: list[tuple[Usage, Usage]] = []
            for _ in range(LOOKS):
                await asyncio.sleep(LOOK_SECONDS)
                looks.append((usage(self._server.process.pid), usage(self.worker)))
            now, total = time.monotonic(), self.findings.answers.total()
            sample = Sample(
                now - began,
                (total - count) / (now - before),
                median_usage([server for server, _ in looks]),
                median_usage([worker for _, worker in looks]),
                len(leftovers() - files),
            )
            before, count = now, total
            self.findings.samples.append(sample)
            report(sample)


HEADER = (
    f"{'':>6}  {'':>6}  {'server':^30}  {'a worker that lives':^30}  {'new in':>8}\n"
    f"{'s':>6}  {'req/s':>6}  {'RSS kB':>8} {'PSS kB':>8} {'fds':>5} {'thrds':>6}"
    f"  {'RSS kB':>8} {'PSS kB':>8} {'fds':>5} {'thrds':>6}  /dev/shm"
)


def row(sample: Sample) -> str:
    """Return a line of the table."""
    columns = "  ".join(
        f"{one.rss:>8} {one.pss:>8} {one.descriptors:>5} {one.threads:>6}" for one in (sample.server, sample.worker)
    )
    return f"{sample.seconds:>6.0f}  {sample.rate:>6,.0f}  {columns}  {sample.files:>8}"


def growth(values: Sequence[int]) -> float:
    """Return by what share the median of the last third of `values` is above that of the first third."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) / statistics.median(values[:third]) - 1


def verdict(findings: Findings) -> list[str]:
    """Print how memory has grown; return what is wrong with it."""
    samples = findings.samples[len(findings.samples) // 5 :]
    if len(samples) < 3:
        return ["the time was too short to tell whether memory grows"]
    faults = []
    for name, series in (
        ("server", [sample.server.rss for sample in samples]),
        ("worker", [sample.worker.rss for sample in samples]),
    ):
        grown = growth(series)
        print(f"memory of the {name}: {grown:+.1%} from the first third to the last, after {samples[0].seconds:.0f} s")
        if grown > GROWTH:
            faults.append(f"the memory of the {name} has grown by {grown:.1%}, and {GROWTH:.0%} are flat")
    return faults


def rest(server: servers.RunningServer, pid: int, before: Usage | None = None) -> Usage:
    """Wait until the service is at rest, and return what a process of it holds then.

    Args:
        server: the service.
        pid: the process.
        before: what it held when it was at rest before; it is given time to come down to that.
    """
    deadline = time.monotonic() + REST_SECONDS
    last: Usage | None = None
    while True:
        idle, now = _is_idle(server), usage(pid)
        steady = last is not None and _counts(now) == _counts(last)
        if (idle and steady and (before is None or _counts(now) <= _counts(before))) or time.monotonic() > deadline:
            return now
        last = now
        time.sleep(0.5)


def _counts(one: Usage) -> tuple[int, int]:
    return one.descriptors, one.threads


def _is_idle(server: servers.RunningServer) -> bool:
    """Whether nothing waits or runs and all workers are there."""
    text = server.ask("GET", "/metrics")[1].decode()
    at_work = re.findall(r"^mosec_service_(?:remaining_task|queue_length)\S* (\S+)", text, re.MULTILINE)
    ready = re.findall(r"^mosec_service_workers_ready\S* (\S+)", text, re.MULTILINE)
    return not any(map(float, at_work)) and [float(count) for count in ready] == [1, 2, 2, 2]


def soak(server: servers.RunningServer, seconds: float, interval: float, *, streams: bool) -> list[str]:
    """Load a service, print what is seen, and return what is wrong.

    Args:
        server: runs `services/soaked.py`.
        seconds: how long.
        interval: seconds between two kills.
        streams: ask for streams too.
    """
    run = Soak(server, interval, streams=streams)
    files = leftovers()
    # Everything once, so that what is loaded or opened at its first use is there.
    asyncio.run(run.load(FIRST_SECONDS, kill=False))
    if run.worker is None:
        return ["no worker answers"]
    watched = {"server": server.process.pid, "worker": run.worker}
    before = {name: rest(server, pid) for name, pid in watched.items()}
    print(f"{HEADER}\n{'-' * len(HEADER.splitlines()[-1])}", flush=True)
    asyncio.run(run.load(seconds, report=lambda sample: print(row(sample), flush=True)))
    after = {name: rest(server, pid, before[name]) for name, pid in watched.items()}

    findings = run.findings
    print(f"\n{findings.killed} workers were killed; requests by what they were and what came of them:")
    for (kind, outcome), count in sorted(findings.answers.items()):
        print(f"  {kind:12}  {outcome:14}  {count:>8}")
    faults = [f"{what} ({count} times)" for what, count in findings.problems.items()]
    if not findings.killed:
        faults.append("no worker was killed")
    faults += verdict(findings)
    for name in watched:
        for what in ("descriptors", "threads"):
            then, now = getattr(before[name], what), getattr(after[name], what)
            print(f"{what} of the {name} at rest: {then} before, {now} after")
            if now > then:
                faults.append(f"the {name} has {now} {what} at rest, and had {then}")
    if not _is_idle(server):
        faults.append(f"it is not at rest {REST_SECONDS:.0f} s after the last request")
    left = leftovers() - files
    if left:
        faults.append(f"{len(left)} files are left in {SHARED_MEMORY}: {', '.join(sorted(left)[:5])}")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault(*MALLOC)
    try:
        with servers.alone("soaked") as server:
            try:
                faults = soak(server, options.seconds, options.interval, streams=options.streams)
            except OSError as error:
                # Of all that is looked at only a process that is gone cannot be read.
                raise server.failure(f"{error}; the server's exit status is {server.process.poll()}") from error
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print("\n" + ("\n".join(["what is wrong:", *faults]) if faults else "nothing is lost, and nothing grows"))
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Load a service for a long time, and see whether it lasts.")
    parser.add_argument("--seconds", type=positive, default=SECONDS, help="how long (default: %(default)s)")
    parser.add_argument(
        "--interval", type=positive, default=INTERVAL, help="seconds between two kills (default: %(default)s)"
    )
    parser.add_argument(
        "--streams", action=argparse.BooleanOptionalAction, default=True, help="ask for streams too (default: yes)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
