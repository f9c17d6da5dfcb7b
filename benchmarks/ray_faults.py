"""Promises under faults, on Ray: `make ray-faults`, or `python benchmarks/ray_faults.py --seconds 20 --interval 1`.

Clients load a stage of six actors on two nodes of Ray, both on this machine, while one that answers is killed by
SIGKILL, again and again, as in `faults.py`. An actor takes Ray about a second of processor time to start, so how many
can be killed in a minute depends on the machine: one that is still starting is left alone. Every request has to be
answered by 200, and with its own answer. The exit status is 1 where one is not.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import faults
import servers
from on_ray import ways
from problems import BenchmarkError

AIM = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(description="Kill actors of Ray under load, and see what clients notice.")
    parser.add_argument("--seconds", type=faults.positive, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--interval", type=faults.positive, default=0.3, help="seconds between two kills (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    promise = faults.Promise(
        "killed", "/five-attempts", signal.SIGKILL, options.interval, {}, "SIGKILL and max_attempts=5: nobody notices"
    )
    try:
        with ways.cluster(serves=False) as ray:
            os.environ["RAY_ADDRESS"] = ray.address
            with servers.alone("besieged_ray") as server:
                print(f"{faults.CONNECTIONS} connections, {options.seconds:g} s\n\n{faults.HEADER}", flush=True)
                outcome = faults.besiege(server, promise, options.seconds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Nobody was there to be hit: no promise, and as many times as the machine is slow to start actors.
    spared, outcome.spared = outcome.spared, 0
    print(faults.row(promise, outcome))
    killed = f"{outcome.faults} actors were killed in {outcome.seconds:.0f} s; the aim is {AIM} in 60 s"
    print(f"\n{killed}; {spared} times none was there that had answered")
    return faults.verdict(faults.broken(promise, outcome))


if __name__ == "__main__":
    sys.exit(main())
