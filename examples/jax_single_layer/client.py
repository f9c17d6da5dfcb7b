"""Let the service of server.py classify random vectors, many at once.

    python examples/jax_single_layer/client.py --count 200

Exit status: 0 if every vector was classified, 1 if not.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter

import httpx

INPUTS = 64


async def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Let a service classify random vectors.")
    parser.add_argument("--count", type=int, default=100, help="how many, all at the same time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same vectors (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    source = random.Random(options.seed)
    vectors = [[source.gauss(0, 1) for _ in range(INPUTS)] for _ in range(options.count)]
    try:
        async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
            classes = Counter(await asyncio.gather(*(classify(client, vector) for vector in vectors)))
    except httpx.HTTPStatusError as error:
        print(f"{error.response.status_code}: {error.response.text}", file=sys.stderr)
        return 1
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/jax_single_layer/server.py running?",
            file=sys.stderr,
        )
        return 1
    for number, count in sorted(classes.items()):
        print(f"class {number}: {count}")
    return 0


async def classify(client: httpx.AsyncClient, vector: list[float]) -> int:
    """Return the likeliest class of a vector."""
    reply = await client.post("/inference", json={"inputs": vector})
    reply.raise_for_status()
    likelihoods: list[float] = reply.json()["likelihoods"]
    return likelihoods.index(max(likelihoods))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
