"""What a load is, and the one that `wrk` makes.

wrk runs one thread, and leaves the other processors to the servers. One is enough: its requests are constant bytes, and
at 39,000 requests/s, more than any of the services gives, that thread was busy for 46 % of the time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from problems import BenchmarkError

SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the clients saw.

    Attributes:
        per_second: answers or events.
        p50_ms: the median latency, to the end of an answer, in milliseconds.
        p99_ms: its 99th percentile.
        done: all answers or events of the load, also those that came after the seconds that are counted above.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    done: int


class Load(Protocol):
    """Clients that each send their next request when the last one is answered.

    Attributes:
        unit: what they count in a second.
        example: the body of a request.
    """

    unit: str
    example: str

    def check(self) -> None:
        """Make sure that this load can be made.

        Raises:
            BenchmarkError: something is not installed.
        """

    def is_right(self, answer: bytes) -> bool:
        """Whether `answer` is the body of the answer to `example`."""

    def put_on(self, url: str, connections: int, seconds: int) -> Measurement:
        """Send requests over `connections` connections for `seconds` seconds.

        Raises:
            BenchmarkError: an answer was an error, a connection failed, or nothing was answered: what was measured is
                then not the service.
        """


class Posts:
    """POST requests with one body, and the JSON that is to come back."""

    unit = "req/s"

    def __init__(self, example: str, answer: Any, *, patience: int = 2) -> None:
        """Describe the load.

        Args:
            example: the body of a request, which is JSON as well.
            answer: what the answer says.
            patience: seconds after which a client takes a request for lost.
        """
        self.example = example
        self._answer = answer
        self._patience = patience

    def check(self) -> None:
        """Make sure that wrk is installed; see `Load.check`."""
        if shutil.which("wrk") is None:
            raise BenchmarkError("wrk makes the load and is not installed; on Debian and Ubuntu: apt-get install wrk")

    def is_right(self, answer: bytes) -> bool:
        """Whether `answer` is the JSON that was to come back."""
        return bool(json.loads(answer) == self._answer)

    def put_on(self, url: str, connections: int, seconds: int) -> Measurement:
        """Run wrk; see `Load.put_on`."""
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            f"--timeout={self._patience}s",
            "-s",
            str(SCRIPT),
            url,
        ]
        environment = {**os.environ, "BENCH_BODY": self.example}
        finished = subprocess.run(command, capture_output=True, text=True, env=environment)
        _, marker, report = finished.stdout.partition("REPORT ")
        if finished.returncode or not marker:
            raise BenchmarkError(f"{' '.join(command)} failed:\n{finished.stdout}{finished.stderr}")
        return _checked(json.loads(report), " ".join(command))


ITEM = {"id": 1, "text": "the quick brown fox", "scores": [0.25, 0.5, 0.75]}
ECHOES = Posts(json.dumps(ITEM), ITEM)
# wrk has the body from an environment variable, which holds no more than 128 KiB.
_TEXT = "x" * (100_000 - 2)
LARGE_ECHOES = Posts(json.dumps(_TEXT), _TEXT)


def arrays(size: int) -> Posts:
    """Return requests for an array of `size` bytes, which are answered by its mean."""
    return Posts(json.dumps({"length": size // 4, "value": 1.5}), {"mean": 1.5})


def _checked(report: dict[str, int | dict[str, int]], command: str) -> Measurement:
    numbers = {name: value for name, value in report.items() if isinstance(value, int)}
    errors = report["errors"]
    assert isinstance(errors, dict)
    seen = ", ".join(f"{count} x {kind}" for kind, count in errors.items() if count)
    if seen or not numbers["requests"]:
        raise BenchmarkError(f"{command}: {seen or 'no answers'}, of {numbers['requests']} requests")
    return Measurement(
        per_second=round(numbers["requests"] / (numbers["microseconds"] / 1e6), 1),
        p50_ms=numbers["p50_us"] / 1000,
        p99_ms=numbers["p99_us"] / 1000,
        done=numbers["requests"],
    )
