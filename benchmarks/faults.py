"""Promises under faults: `make faults`, or `python benchmarks/faults.py --seconds 10 --only killed`.

For each promise 16 clients load one stage of two workers, each with one request after the other on a connection that it
keeps, while one of the workers that answer gets a signal, again and again. Every request has a body and a request id of
its own, and its answer must have both. The exit status is 1 where a promise is broken.

A worker that is still loading is left alone: it serves nobody, and one that dies at its start is a fault of another
kind, for which a stage may answer 503.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import servers
from connection import Answer, Connection, Lost, connected
from problems import BenchmarkError

CONNECTIONS = 16
SECONDS = 60.0
# The service's own limit, and what the client's side may add to it on a machine that is busy.
TIMEOUT_SECONDS = 10.0
LATE_SECONDS = 2.0
RECOVERY_SECONDS = 10.0
# What a client is told whose request was on too many dying workers.
WORKER_DIED = "the worker died"


@dataclass(frozen=True, slots=True)
class Promise:
    """A stage, what is done to its workers, and what clients may see of it.

    Attributes:
        name: to choose it by.
        route: the stage.
        fault: the signal that its workers get.
        interval: seconds between two of them.
        failures: the share of all answers that may have a status other than 200, for each that may occur at all.
        text: what it means.
    """

    name: str
    route: str
    fault: signal.Signals
    interval: float
    failures: Mapping[int, float]
    text: str


PROMISES = [
    Promise(
        f"{name}{suffix}",
        f"{route}{suffix.replace('-', '/')}",
        fault,
        interval,
        failures,
        text + (", in batches of 8" if suffix else ""),
    )
    for name, route, fault, interval, failures, text in (
        ("killed", "/five-attempts", signal.SIGKILL, 0.3, {}, "SIGKILL and max_attempts=5: nobody notices"),
        (
            "killed-default", "/two-attempts", signal.SIGKILL, 0.3, {500: 0.001},
            "SIGKILL and the default of 2 attempts: fewer than 1 in 1,000 are told that the worker died",
        ),
        (
            "stopped", "/stopped", signal.SIGSTOP, 2.0, {408: 1.0},
            "SIGSTOP and a stage timeout of 0.5 s: 200, or 408 in time",
        ),
    )
    for suffix in ("", "-batched")
]  # fmt: skip


@dataclass
class Outcome:
    """What the clients of a stage saw, and what was done to it meanwhile.

    Attributes:
        answers: by status.
        problems: what must not be, and how often.
        faults: signals that were sent.
        spared: times at which nobody could be hit, because no worker had answered since it was started.
        longest: seconds that a request took at most.
        seconds: from the first request to the last answer.
    """

    answers: Counter[int] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    spared: int = 0
    longest: float = 0.0
    seconds: float = 0.0


class Siege:
    """Clients that load a stage, and a hand that sends signals to its workers."""

    def __init__(self, port: int, promise: Promise, seconds: float, interval: float) -> None:
        self.outcome = Outcome()
        self._port = port
        self._promise = promise
        self._seconds = seconds
        self._interval = interval
        self._until = 0.0
        self._numbers = itertools.count(1)
        # Workers by process, as their answers name them.
        self._seen: set[int] = set()
        self._hit: set[int] = set()

    async def run(self) -> Outcome:
        """Load the stage for its time and return what was seen."""
        began = time.monotonic()
        self._until = began + self._seconds
        clients = [asyncio.ensure_future(self._client()) for _ in range(CONNECTIONS)]
        hand = asyncio.ensure_future(self._send_signals())
        # However slow the last answers are, they come within the service's time.
        _, waiting = await asyncio.wait(clients, timeout=self._seconds + TIMEOUT_SECONDS + RECOVERY_SECONDS)
        self.outcome.seconds = time.monotonic() - began
        if waiting:
            self.outcome.problems["a request was never answered"] += len(waiting)
        for task in (hand, *waiting):
            task.cancel()
        for ended in await asyncio.gather(hand, *clients, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        return self.outcome

    async def _client(self) -> None:
        while time.monotonic() < self._until:
            try:
                async with connected(self._port) as connection:
                    while time.monotonic() < self._until:
                        await self._ask(connection)
            except Lost as error:
                self.outcome.problems[f"a connection was lost {error}"] += 1
                await asyncio.sleep(0.05)

    async def _ask(self, connection: Connection) -> None:
        number = next(self._numbers)
        item = {"number": number, "text": "x" * (number % 1000)}
        request_id = f"{self._promise.name}-{number}"
        began = time.monotonic()
        answer = await connection.ask(self._promise.route, json.dumps(item).encode(), request_id)
        self.outcome.longest = max(self.outcome.longest, time.monotonic() - began)
        self.outcome.answers[answer.status] += 1
        if answer.headers.get("x-request-id") != request_id:
            self.outcome.problems["an answer has the request id of another"] += 1
        if answer.status == 200:
            self._check(answer, item)
        elif answer.status == 500 and WORKER_DIED not in answer.text:
            self.outcome.problems[f"500 with the text {answer.text!r}"] += 1

    def _check(self, answer: Answer, item: object) -> None:
        result = json.loads(answer.body)
        if result["item"] != item:
            self.outcome.problems["an answer is that of another request"] += 1
        self._seen.add(result["process"])

    async def _send_signals(self) -> None:
        while time.monotonic() + self._interval < self._until:
            await asyncio.sleep(self._interval)
            alive = sorted(self._seen - self._hit)
            if not alive:
                self.outcome.spared += 1
                continue
            worker = random.choice(alive)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, self._promise.fault)
            self._hit.add(worker)
            self.outcome.faults += 1


def besiege(server: servers.RunningServer, promise: Promise, seconds: float, interval: float | None = None) -> Outcome:
    """Put a promise to the test.

    Args:
        server: runs `services/besieged.py`.
        promise: what to test.
        seconds: how long.
        interval: seconds between two signals; None for the promise's own.
    """
    outcome = asyncio.run(Siege(server.port, promise, seconds, interval or promise.interval).run())
    if not _recovers(server, promise):
        outcome.problems[f"it does not answer {RECOVERY_SECONDS:.0f} s after the last signal"] += 1
    return outcome


def _recovers(server: servers.RunningServer, promise: Promise) -> bool:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if server.ask("GET", "/readyz")[0] == server.ask("POST", promise.route, "1")[0] == 200:
                return True
        time.sleep(0.05)
    return False


def broken(promise: Promise, outcome: Outcome) -> list[str]:
    """Return how a promise was broken; nothing where it was kept."""
    faults = [f"{what} ({count} times)" for what, count in outcome.problems.items()]
    total = outcome.answers.total()
    for status, count in sorted(outcome.answers.items()):
        if status != 200 and count >= promise.failures.get(status, 0.0) * total:
            faults.append(f"{count} of {total} answers are {status}")
    if outcome.longest > TIMEOUT_SECONDS + LATE_SECONDS:
        faults.append(f"a request took {outcome.longest:.1f} s, and {TIMEOUT_SECONDS:.0f} s are the service's limit")
    if not outcome.answers[200]:
        faults.append("no request was answered 200")
    if outcome.faults < max(1, outcome.spared):
        faults.append(f"{outcome.faults} signals were sent, and {outcome.spared} times no worker was there to be hit")
    return faults


HEADER = (
    f"{'promise':22}  {'req/s':>6}  {'200':>7}  {'408':>5}  {'500':>5}  {'503':>5}  {'other':>5}"
    f"  {'signals':>7}  {'spared':>6}  {'longest':>8}  verdict"
)


def row(promise: Promise, outcome: Outcome) -> str:
    """Return a line of the table."""
    answers = outcome.answers
    named = (200, 408, 500, 503)
    rate = answers.total() / outcome.seconds
    other = answers.total() - sum(answers[status] for status in named)
    verdict = "BROKEN" if broken(promise, outcome) else "kept"
    return (
        f"{promise.name:22}  {rate:>6,.0f}  {answers[200]:>7}  {answers[408]:>5}  {answers[500]:>5}"
        f"  {answers[503]:>5}  {other:>5}  {outcome.faults:>7}  {outcome.spared:>6}"
        f"  {outcome.longest * 1000:>5,.0f} ms  {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    chosen = [promise for promise in PROMISES if promise.name in (options.only or [promise.name])]
    results: list[tuple[Promise, Outcome]] = []
    try:
        with servers.alone("besieged") as server:
            print(f"{CONNECTIONS} connections, {options.seconds:g} s each\n\n{HEADER}\n{'-' * len(HEADER)}", flush=True)
            for promise in chosen:
                results.append((promise, besiege(server, promise, options.seconds, options.interval)))
                print(row(*results[-1]), flush=True)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print("\n" + "\n".join(f"{promise.name}: {promise.text}" for promise, _ in results))
    faults = [f"{promise.name}: {fault}" for promise, outcome in results for fault in broken(promise, outcome)]
    return verdict(faults)


def verdict(faults: Sequence[str]) -> int:
    """Print which promises are broken, and return the exit code."""
    print("\n" + ("\n".join(["broken promises:", *faults]) if faults else "all promises are kept"))
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send signals to workers under load, and see what clients notice.")
    names = [promise.name for promise in PROMISES]
    parser.add_argument("--only", action="append", choices=names, help="test this promise; may be given again")
    parser.add_argument("--seconds", type=positive, default=SECONDS, help="a promise's time (default: %(default)s)")
    parser.add_argument(
        "--interval", type=positive, help="seconds between two signals (default: 0.3 for SIGKILL, 2 for SIGSTOP)"
    )
    return parser


def positive(text: str) -> float:
    """Return a number of the command line that must be above 0."""
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
