"""Promises under faults, on Ray: `make ray-faults`, or `python benchmarks/ray_faults.py --seconds 20 --interval 1`.

Clients load a stage of six actors on two nodes of Ray, both on this machine, while one that answers is killed by
SIGKILL, again and again, as in `faults.py`. One that is still starting is left alone. Every request has to be answered
by 200, and with its own answer, and of the service nothing may be left when it has ended. The exit status is 1 where
one of these is not so.

A new process costs Ray half a second of processor time and more, so on two processors the kills have to wait for that.
Each node therefore begins with some processes that wait for actors (`on_ray/waiting.py`); what is killed beyond them
waits for new ones. The usual ones are enough for 200 kills in 60 s on two processors: they take a minute to start, and
6 GB of memory. With `--idle 0` there are none.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

import faults
import servers
from on_ray import ways
from problems import BenchmarkError

AIM, AIM_SECONDS = 200, 60
# Processes of each node that wait for actors.
IDLE = 75
# Seconds in which the actors of a service have ended, once it has.
END_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    options = _parser().parse_args(arguments)
    promise = faults.Promise(
        "killed", "/five-attempts", signal.SIGKILL, options.interval, {}, "SIGKILL and max_attempts=5: nobody notices"
    )
    try:
        if options.idle:
            print(f"Ray starts {2 * options.idle} processes", flush=True)
        with ways.cluster(serves=False, idle=options.idle) as ray:
            os.environ["RAY_ADDRESS"] = ray.address
            with servers.alone("besieged_ray") as server:
                print(f"{faults.CONNECTIONS} connections, {options.seconds:g} s\n\n{faults.HEADER}", flush=True)
                outcome = faults.besiege(server, promise, options.seconds)
            if left := _left(ray):
                outcome.problems["an actor is left of the service that has ended"] += left
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Nobody was there to be hit: no promise, and as many times as the machine is slow to start actors.
    spared, outcome.spared = outcome.spared, 0
    print(faults.row(promise, outcome))
    killed = f"{outcome.faults} actors were killed in {outcome.seconds:.0f} s; the aim is {AIM} in {AIM_SECONDS} s"
    print(f"\n{killed}; {spared} times none was there that had answered")
    return faults.verdict(faults.broken(promise, outcome))


def _left(ray: ways.Cluster) -> int:
    """Return how many actors are left some time after their service has ended."""
    deadline = time.monotonic() + END_SECONDS
    while (left := len(ways.actors(ray))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Kill actors of Ray under load, and see what clients notice.")
    parser.add_argument("--seconds", type=faults.positive, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--interval", type=faults.positive, default=0.25, help="seconds between two kills (default: %(default)s)"
    )
    parser.add_argument(
        "--idle",
        type=int,
        default=IDLE,
        help="processes of each node that wait for actors when the clients begin (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
