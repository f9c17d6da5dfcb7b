"""Call into the service of server.py, many times at once.

    python examples/echo/client.py "hello" --count 32

Exit status: 0 if every call was answered, 1 if not.
"""

import argparse
import asyncio
import sys
from collections import Counter

import httpx


async def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Call, and listen to the echo.")
    parser.add_argument("text")
    parser.add_argument("--count", type=int, default=1, help="calls at the same time (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    if options.count < 1:
        parser.error("--count must be at least 1")
    try:
        async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
            calls = [client.post("/inference", json={"text": options.text}) for _ in range(options.count)]
            answers = await asyncio.gather(*calls)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). Is examples/echo/server.py running?",
            file=sys.stderr,
        )
        return 1
    for answer in answers:
        if answer.is_error:
            print(f"{answer.status_code}: {answer.text}", file=sys.stderr)
            return 1
    print(answers[0].json()["echo"])
    for size, count in sorted(Counter(answer.json()["batch"] for answer in answers).items()):
        print(f"{count} answered in batches of {size}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
