"""Loads for services that call themselves (`services/calling.py`), and for large arrays over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import statistics
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from load import ECHOES, Measurement, Posts
from problems import BenchmarkError

SECONDS_BEYOND = 30.0


class Calls(Posts):
    """Callers in the server's own program, each of which makes its next call when the last one is answered."""

    unit = "calls/s"

    def check(self) -> None:
        """Need nothing."""

    def put_on(self, url: str, connections: int, seconds: int) -> Measurement:
        """Have the service call itself; see `Load.put_on`."""
        where = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(where.netloc, timeout=seconds + SECONDS_BEYOND)
        with contextlib.closing(connection):
            connection.request("POST", "/calls", json.dumps({"callers": connections, "seconds": seconds}))
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise BenchmarkError(f"POST /calls is answered {answer.status} {body!r}")
        told = json.loads(body)
        return Measurement(told["per_second"], told["p50_ms"], told["p99_ms"], told["done"])


class Arrays:
    """POST requests with an array in msgpack, which comes back as long as it was sent; from threads of this program.

    They do as little as clients can: they send bytes that are there, read into memory that is there, decode nothing.
    """

    unit = "req/s"
    example = ""

    def __init__(self, length: int) -> None:
        """Describe the load: arrays of `length` numbers of float32."""
        import msgpack  # type: ignore[import-untyped]
        import numpy as np

        self._body: bytes = msgpack.packb({"data": np.ones(length, np.float32).tobytes()})

    def check(self) -> None:
        """Need nothing."""

    def is_right(self, answer: bytes) -> bool:
        """Whether an answer is as long as what was sent."""
        return len(answer) == len(self._body)

    def put_on(self, url: str, connections: int, seconds: int) -> Measurement:
        """Send arrays; see `Load.put_on`."""
        where = urllib.parse.urlsplit(url)
        until = time.perf_counter() + seconds
        began = time.perf_counter()

        def client(_: int) -> list[float]:
            connection = http.client.HTTPConnection(where.netloc, timeout=SECONDS_BEYOND)
            room = memoryview(bytearray(len(self._body)))
            durations = []
            with contextlib.closing(connection):
                while (start := time.perf_counter()) < until:
                    connection.request("POST", where.path, self._body)
                    answer = connection.getresponse()
                    read = 0
                    while (more := answer.readinto(room[read:])) > 0:
                        read += more
                    if answer.status != 200 or read != len(self._body):
                        raise BenchmarkError(f"an array is answered {answer.status} with {read} bytes")
                    answer.close()
                    durations.append(time.perf_counter() - start)
            return durations

        with ThreadPoolExecutor(connections) as threads:
            durations = list(itertools.chain.from_iterable(threads.map(client, range(connections))))
        passed = time.perf_counter() - began
        p50, p99 = (statistics.quantiles(durations, n=100)[place] * 1000 for place in (49, 98))
        return Measurement(len(durations) / passed, p50, p99, len(durations))


def calls() -> Calls:
    """Return the calls of a small dictionary; `ECHOES` are the same over HTTP."""
    return Calls(ECHOES.example, json.loads(ECHOES.example))
