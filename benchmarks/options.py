"""Options that the commands which measure in turn have in common."""

from __future__ import annotations

import argparse

SECONDS = 3


def add_measuring(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add how often and how long to measure, and beside what; `rounds` is the default."""
    parser.add_argument("--rounds", type=_at_least_one, default=rounds, help="pairs a scenario (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=_at_least_one, default=SECONDS, help="length of a measurement (default: %(default)s)"
    )
    parser.add_argument("--busy", action="store_true", help="measure beside a program that keeps one processor busy")


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
