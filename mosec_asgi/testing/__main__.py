"""`python -m mosec_asgi.testing simulate`: histories of the simulation, by their seeds."""

from __future__ import annotations

import argparse
import sys

from mosec_asgi.testing.simulation import Violation, campaign, simulate


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mosec_asgi.testing")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("simulate", help="run histories of a simulated service, and check its contracts")
    command.add_argument("--seed", type=int, default=0, help="of the first history (default: 0)")
    command.add_argument("--histories", type=int, default=1, help="how many to run (default: 1)")
    command.add_argument("--processes", type=int, help="processes to run them in (default: one for each core)")
    command.add_argument("--verbose", action="store_true", help="print all that happens, in one process")
    options = parser.parse_args()
    if options.histories > 1 and not options.verbose:
        return campaign.main(options.seed, options.histories, options.processes)
    try:
        print(simulate(seed=options.seed, histories=options.histories, verbose=options.verbose))
    except Violation as violation:
        print(violation)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
