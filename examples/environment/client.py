"""Ask the service of server.py which worker answers, and with which GPU.

    python examples/environment/client.py --count 20

Exit status: 0 if every request was answered, 1 if not.
"""

import argparse
import asyncio
import sys
from collections import Counter

import httpx


async def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="See which worker has which GPU.")
    parser.add_argument("--count", type=int, default=20, help="requests at the same time (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
            answers = await asyncio.gather(*(ask(client) for _ in range(options.count)))
    except httpx.HTTPStatusError as error:
        print(f"{error.response.status_code}: {error.response.text}", file=sys.stderr)
        return 1
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/environment/server.py running?",
            file=sys.stderr,
        )
        return 1
    for (worker, gpu), count in sorted(Counter(answers).items()):
        print(f"worker {worker} has GPU {gpu} and has answered {count}")
    return 0


async def ask(client: httpx.AsyncClient) -> tuple[int, str]:
    """Return the number and the GPU of the worker that answers."""
    answer = (await client.post("/inference", json={})).raise_for_status().json()
    return answer["worker"], answer["gpu"]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
