"""What OpenAI's API costs beside a plain route, and what a request of many texts costs the others: `make spoken`.

Both under uvicorn, in one run. First the same embedder, which takes no time, by its plain route and by `/v1/embeddings`
with one text, in turn: requests in a second. Then 32 clients that each send one text after the other to a model in
batches, without and with a client that sends requests of 256 texts all the time: their 99th percentile, and whether
each answer is the right one at its place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence

import servers
from connection import Connection, connected
from load import Posts
from problems import BenchmarkError

VECTOR = [0.25, 0.5, 0.75]
PLAIN = Posts(json.dumps("one text"), VECTOR)
OPENAI = Posts(json.dumps({"model": "quick", "input": "one text"}), None)
CONNECTIONS = 64
CLIENTS = 32
TEXTS = 256
# Of the plain route's requests in a second, at least.
LEAST_SHARE = 0.4
# Times the percentile without a client of many texts, at most.
MOST_TIMES = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure OpenAI's API beside a plain route.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="how long, each time (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        PLAIN.check()
        with servers.alone("embedders", under_uvicorn=True) as server:
            reached = [cost(server, options.rounds, options.seconds), kept(server, options.rounds, options.seconds)]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if all(reached) else 1


def cost(server: servers.RunningServer, rounds: int, seconds: int) -> bool:
    """Compare the requests in a second; whether the bar is reached."""
    plain, spoken = [], []
    url = server.url.replace(servers.ROUTE, "/v1/embeddings")
    for _ in range(rounds):
        plain.append(PLAIN.put_on(server.url, CONNECTIONS, seconds).per_second)
        spoken.append(OPENAI.put_on(url, CONNECTIONS, seconds).per_second)
    share = statistics.median(spoken) / statistics.median(plain)
    print(f"plain {statistics.median(plain):10,.0f} req/s\n/v1/embeddings {statistics.median(spoken):10,.0f} req/s")
    return _bar(
        f"/v1/embeddings gives {share:.2f} of the plain route's", share >= LEAST_SHARE, f"at least {LEAST_SHARE}"
    )


def kept(server: servers.RunningServer, rounds: int, seconds: int) -> bool:
    """Compare what clients of one text wait for; whether the bar is reached."""
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(asyncio.run(waited(server, seconds, many=False)))
        beside.append(asyncio.run(waited(server, seconds, many=True)))
    without, with_many = statistics.median(alone), statistics.median(beside)
    print(f"p99 of {CLIENTS} clients of one text: {without * 1000:.1f} ms; beside {TEXTS}: {with_many * 1000:.1f} ms")
    times = with_many / without
    return _bar(f"they wait {times:.1f} times as long", times <= MOST_TIMES, f"at most {MOST_TIMES}")


async def waited(server: servers.RunningServer, seconds: float, *, many: bool) -> float:
    """Return the 99th percentile of what the clients of one text have waited, in seconds."""
    until = time.perf_counter() + seconds
    took: list[float] = []

    async def ask(client: Connection, texts: list[str]) -> float:
        body = json.dumps({"model": "model", "input": texts}).encode()
        began = time.perf_counter()
        answer = await client.ask("/v1/embeddings", body)
        seconds = time.perf_counter() - began
        lengths = [row["embedding"][0] for row in json.loads(answer.body).get("data", ())]
        if lengths != [len(text) for text in texts]:
            raise BenchmarkError(f"{len(texts)} texts were answered {answer.status} {answer.text[:200]!r}")
        return seconds

    async def one_by_one(number: int) -> None:
        async with connected(server.port) as client:
            while time.perf_counter() < until:
                took.append(await ask(client, ["x" * (number + 1)]))

    async def all_together() -> None:
        async with connected(server.port) as client:
            while time.perf_counter() < until:
                await ask(client, ["x" * (place % 97 + 1) for place in range(TEXTS)])

    await asyncio.gather(*map(one_by_one, range(CLIENTS)), *([all_together()] if many else []))
    return statistics.quantiles(took, n=100)[98]


def _bar(what: str, reached: bool, bar: str) -> bool:
    print(f"  {what} ({bar}){'' if reached else ' MISSED'}", flush=True)
    return reached


if __name__ == "__main__":
    sys.exit(main())
