"""What `server.infer` costs beside the same call over HTTP: `make calls`.

Both ways are measured in turn, in one run, and the medians compared. A small dictionary: the processor time of the
server's process for each call, by what the system counts (Linux), with that of whoever calls where it is `infer`. An
array of 10 MB through two stages and back: calls in a second, over HTTP as bytes in msgpack.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cost
import processes
import servers
from call_load import Arrays, calls
from load import ECHOES, Load
from problems import BenchmarkError

WARM_UP_SECONDS = 1
# At most this share of the processor time, and at least so many times the calls in a second.
MOST_TIME = 0.6
LEAST_RATIO = 5.0
SMALL_CALLERS = 64
ARRAY_CALLERS = 4
ARRAY_LENGTH = 2_500_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured of one way in one round.

    Attributes:
        per_second: calls that were answered.
        server: microseconds of processor time of the server's process for each.
        workers: the same of the workers, together.
    """

    per_second: float
    server: float
    workers: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare `infer` with the same calls over HTTP.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="how long, each time (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        _small(options.rounds, options.seconds)
        _arrays(options.rounds, options.seconds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _small(rounds: int, seconds: int) -> None:
    ECHOES.check()
    over_http: list[Seen] = []
    within: list[Seen] = []
    with (
        servers.running("echo", ["mosec_asgi"], ECHOES) as (plain,),
        servers.running("called", ["mosec_asgi"], calls()) as (called,),
    ):
        for _ in range(rounds):
            over_http.append(_measure(plain, ECHOES, SMALL_CALLERS, seconds))
            within.append(_measure(called, calls(), SMALL_CALLERS, seconds))
    _print("a small dictionary, 64 callers", over_http, within)
    share = _median(within, "server") / _median(over_http, "server")
    _print_bar(f"infer takes {share:.2f} of the server's processor time", share <= MOST_TIME, f"at most {MOST_TIME}")


def _arrays(rounds: int, seconds: int) -> None:
    load = Arrays(ARRAY_LENGTH)
    over_http: list[Seen] = []
    within: list[Seen] = []
    # Both loads look at the answers themselves.
    with servers.alone("called_arrays") as server:
        for _ in range(rounds):
            over_http.append(_measure(server, load, ARRAY_CALLERS, seconds))
            within.append(_measure(server, calls(), ARRAY_CALLERS, seconds))
    _print("float32 of 10 MB through two stages and back, 4 callers", over_http, within)
    ratio = _median(within, "per_second") / _median(over_http, "per_second")
    _print_bar(f"infer gives {ratio:.1f} times the calls in a second", ratio >= LEAST_RATIO, f"at least {LEAST_RATIO}")


def _measure(server: servers.RunningServer, load: Load, callers: int, seconds: int) -> Seen:
    load.put_on(server.url, callers, WARM_UP_SECONDS)
    before = cost.read(server.process.pid)
    measurement = load.put_on(server.url, callers, seconds)
    after = cost.read(server.process.pid)
    if before is None or after is None:
        return Seen(measurement.per_second, float("nan"), float("nan"))
    taken = cost.cost(before, after, measurement.done)
    return Seen(measurement.per_second, taken.server, taken.workers)


def _median(seen: Sequence[Seen], what: str) -> float:
    median: float = statistics.median(getattr(each, what) for each in seen)
    return median


def _print(title: str, over_http: Sequence[Seen], within: Sequence[Seen]) -> None:
    print(f"\n{title}; medians of {len(within)}")
    for name, seen in (("over HTTP", over_http), ("infer", within)):
        text = f"  {name:10} {_median(seen, 'per_second'):10,.0f} /s"
        if processes.KNOWN:
            text += (
                f" {_median(seen, 'server'):10,.1f} µs of the server {_median(seen, 'workers'):10,.1f} µs of workers"
            )
        print(text, flush=True)


def _print_bar(what: str, reached: bool, bar: str) -> None:
    print(f"  {what} ({bar}){'' if reached else ' MISSED'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
