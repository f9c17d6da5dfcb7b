"""What a guess at an API key tells by the time of its refusal: `make keys`.

Guesses with more and more of the right key's beginning are refused in turn, many times, among 100 keys; the right key
stands beside them. Printed is the median time of each, and by how much it differs from that of a guess without anything
right. The exit status is 1 where one differs by more than chance explains: five times the scatter of two groups of the
same guess.
"""

from __future__ import annotations

import statistics
import sys
import time

from mosec_asgi.web.keys import Keys, read_keys

KEY = "kV3sYc0pQ9wZ7hJ2mX5tB8nL4rD6fG1aU_eiO-qTyWs"
ROUNDS = 4000
# Calls between two looks at the clock.
CALLS = 20
SHARES = (0, 1, 10, 20, 30, 40, 42)


def guess(right: int) -> bytes:
    """Return a guess with so many of the key's first characters, and others behind them."""
    return KEY[:right].encode() + b"!" * (len(KEY) - right)


def main() -> int:
    """Measure; return the exit code."""
    others = [f"{KEY[::-1]}{number}" for number in range(99)]
    keys = Keys(read_keys(",".join([*others[:50], KEY, *others[50:]]), "the benchmark")[0])
    # The first stands there twice: so much two times of the same guess differ.
    guesses = [guess(0), *(guess(right) for right in SHARES)]
    times: list[list[float]] = [[] for _ in guesses]
    for round_ in range(ROUNDS):
        for place in range(len(guesses)):
            # Each is first as often as the others.
            number = (place + round_) % len(guesses)
            headers = {b"x-api-key": guesses[number]}
            began = time.perf_counter()
            for _ in range(CALLS):
                keys.refusal(headers, "/inference")
            times[number].append((time.perf_counter() - began) / CALLS * 1e6)
    same, first, *more = map(statistics.median, times)
    # Of the medians of parts of the rounds.
    parts = [statistics.median(times[0][part::40]) - statistics.median(times[1][part::40]) for part in range(40)]
    scatter = 5 * max(abs(first - same), statistics.stdev(parts) / len(parts) ** 0.5)
    print(f"nothing right: {first:.3f} µs; by chance the same guess differs by up to {scatter:.3f} µs")
    failed = False
    for right, median in zip(SHARES[1:], more, strict=True):
        missed = abs(median - first) > scatter
        failed |= missed
        print(f"{right:2} of {len(KEY)} right: {median:.3f} µs, {median - first:+.3f}{'  MISSED' if missed else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
