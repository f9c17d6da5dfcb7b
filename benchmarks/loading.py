"""How long `/readyz` takes to answer while a model loads for eight seconds: `make loading`.

Each ask is a connection of its own, as those of probes are. The exit status is 1 where one takes longer than 100 ms.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import servers
from problems import BenchmarkError

# Milliseconds.
MOST = 100.0
PAUSE = 0.01


def main() -> int:
    """Measure; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        server = servers.start("slow_to_load", "mosec_asgi", Path(folder))
        began = time.monotonic()
        try:
            first, took = measure(server, began)
            loaded = time.monotonic() - began
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            servers.stop([server])
    took.sort()
    middle, last = took[len(took) // 2], took[-1]
    print(f"/readyz answers {first:.2f} s after the start, and the model {loaded:.2f} s after it")
    print(f"{len(took)} times meanwhile: median {middle:.1f} ms, 99 % {took[len(took) * 99 // 100]:.1f} ms, ", end="")
    print(f"most {last:.1f} ms{'' if last <= MOST else f': MISSED, {MOST:.0f} ms'}")
    return int(last > MOST)


def measure(server: servers.RunningServer, began: float) -> tuple[float, list[float]]:
    """Return the seconds until the first answer, and the milliseconds of each answer until the model is loaded."""
    first = 0.0
    took: list[float] = []
    while time.monotonic() < began + servers.SECONDS_TO_START:
        if server.process.poll() is not None:
            raise server.failure(f"ended with {server.process.returncode} at its start")
        asked = time.perf_counter()
        try:
            status, body = server.ask("GET", "/readyz")
        except OSError:
            time.sleep(PAUSE)
            continue
        milliseconds = (time.perf_counter() - asked) * 1000
        if status == 200:
            return first, took
        if json.loads(body)["status"] != "loading":
            raise server.failure(f"GET /readyz is answered {body!r}")
        if first:
            took.append(milliseconds)
        else:
            # The connection may have waited for the server to come to it.
            first = time.monotonic() - began
        time.sleep(PAUSE)
    raise server.failure("the model is not loaded in time")


if __name__ == "__main__":
    sys.exit(main())
