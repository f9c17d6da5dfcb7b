"""Put texts into the queue of consumer.py, and wait for what comes of them.

    python examples/jobs/submit.py "To be, or not to be" "Tomorrow, and tomorrow"

Exit status: 0 if each text has a result, 1 if not.
"""

import argparse
import os
import sys
import time

from redis import Redis
from redis.exceptions import ConnectionError

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
# Jobs that redis keeps: of more, the oldest are dropped.
MOST_KEPT = 100_000


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Put texts into the queue, and wait for their results.")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--wait", type=float, default=30.0, help="seconds to wait (%(default)s)")
    options = parser.parse_args()
    with Redis.from_url(REDIS_URL, decode_responses=True) as redis:
        try:
            jobs = [redis.xadd("jobs", {"text": text}, maxlen=MOST_KEPT) for text in options.texts]
        except ConnectionError as error:
            print(f"No redis at {REDIS_URL} ({error}). Start one: redis-server", file=sys.stderr)
            return 1
        until, results = time.monotonic() + options.wait, [None] * len(jobs)
        while not all(results) and time.monotonic() < until:
            time.sleep(0.05)
            results = redis.mget([f"result:{job}" for job in jobs])
    for job, result in zip(jobs, results, strict=True):
        print(f"{job}  {result or 'no result yet'}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
