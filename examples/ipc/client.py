"""Have the service of server.py pass pictures from stage to stage, and see how long each way takes.

    python examples/ipc/client.py --side 1024

Exit status: 0 if /default and /numbin have answered, 1 if not.
"""

import argparse
import statistics
import sys
import time

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="See how long large arrays take between two stages.")
    parser.add_argument("--side", type=int, default=1024, help="of a picture, in pixels (%(default)s)")
    parser.add_argument("--count", type=int, default=10, help="pictures for each way (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        with httpx.Client(base_url=options.url, timeout=60) as client:
            return max(
                measure(client, route, options.side, options.count) for route in ("/default", "/numbin", "/redis")
            )
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). Is examples/ipc/server.py running?",
            file=sys.stderr,
        )
        return 1


def measure(client: httpx.Client, route: str, side: int, count: int) -> int:
    """Print how long a route takes for a picture; return the exit status."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        answer = client.post(route, json={"side": side})
        seconds.append(time.perf_counter() - began)
        if answer.status_code == httpx.codes.NOT_FOUND and route == "/redis":
            print(f"{route:9} is not served: the server's environment has no REDIS_URL")
            return 0
        if answer.is_error:
            print(f"{answer.status_code}: {answer.text}", file=sys.stderr)
            return 1
    size = answer.json()["bytes"] / 1e6
    print(f"{route:9} {size:.1f} MB, {statistics.median(seconds) * 1000:.1f} ms with all that is around it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
