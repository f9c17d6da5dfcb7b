"""Load from `wrk`, and what it measured.

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

from problems import BenchmarkError

SCRIPT = Path(__file__).with_name("wrk.lua")
BODY = json.dumps({"id": 1, "text": "the quick brown fox", "scores": [0.25, 0.5, 0.75]})


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run of wrk saw; latencies in milliseconds."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float


def check_wrk() -> None:
    """Make sure that wrk can be run.

    Raises:
        BenchmarkError: it is not installed.
    """
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk makes the load and is not installed; on Debian and Ubuntu: apt-get install wrk")


def put_load_on(url: str, connections: int, seconds: int) -> Measurement:
    """Send POST requests with `BODY` over `connections` connections for `seconds` seconds.

    Raises:
        BenchmarkError: an answer was an error, a connection failed, or nothing was answered: what was measured is then
            not the service.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), url]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "BENCH_BODY": BODY})
    _, marker, report = finished.stdout.partition("REPORT ")
    if finished.returncode or not marker:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{finished.stdout}{finished.stderr}")
    return _checked(json.loads(report), " ".join(command))


def _checked(report: dict[str, int | dict[str, int]], command: str) -> Measurement:
    numbers = {name: value for name, value in report.items() if isinstance(value, int)}
    errors = report["errors"]
    assert isinstance(errors, dict)
    seen = ", ".join(f"{count} x {kind}" for kind, count in errors.items() if count)
    if seen or not numbers["requests"]:
        raise BenchmarkError(f"{command}: {seen or 'no answers'}, of {numbers['requests']} requests")
    return Measurement(
        requests_per_second=round(numbers["requests"] / (numbers["microseconds"] / 1e6), 1),
        p50_ms=numbers["p50_us"] / 1000,
        p99_ms=numbers["p99_us"] / 1000,
    )
