"""What batches by cost save of padding: tokens in a second of all-MiniLM-L6-v2 with and without: `make padding`.

The texts are the paragraphs of this repository's files, of 5 to 250 tokens, in the order in which they stand there.
Some clients ask for one text after the other, until all are done: first a service with batches of 32 in order of
arrival, then one with `max_batch_cost` and `sort_by_cost`, in turn, so that both have the same machine. Each answer is
compared with the one of the other service.

It stands in a folder of its own: torch imports a module that one of the other benchmarks has the name of.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from padded import SIZE, load_tokenizer, make

ROOT = Path(__file__).parents[2]
LEAST, MOST = 5, 250
# Times the tokens in a second of batches in order of arrival, at least; and times their 99th percentile, at most.
LEAST_TIMES = 1.5
MOST_P99 = 1.0
# Of a vector's first number, between two batches with other padding.
TOLERANCE = 1e-4


@dataclass(slots=True)
class Measured:
    """One run.

    Attributes:
        per_second: tokens of texts, without padding.
        per_processor_second: the same for a second of the workers' processor time, which other programs do not change.
        p99: of the texts' latencies, in seconds.
        answers: in the order of the texts.
    """

    per_second: float
    per_processor_second: float
    p99: float
    answers: list[float]


def paragraphs() -> Iterator[str]:
    """Yield the paragraphs of this repository's files."""
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("mosec_asgi/**/*.py")]):
        yield from path.read_text().split("\n\n")


def texts(most: int) -> list[list[int]]:
    """Return the tokens of paragraphs that have a length to be measured."""
    tokenizer = load_tokenizer()
    found = (tokenizer.encode(text).ids for text in paragraphs())
    return [tokens for tokens in found if LEAST <= len(tokens) <= MOST][:most]


async def measure(items: Sequence[list[int]], clients: int, *, by_cost: bool) -> Measured:
    """Have all texts embedded by a service of its own."""
    latencies: list[float] = []
    processor: list[float] = []
    answers = [0.0] * len(items)
    places = iter(range(len(items)))
    async with make(by_cost=by_cost) as server:

        async def client() -> None:
            for place in places:
                began = time.perf_counter()
                answers[place], spent = await server.infer(items[place])
                processor.append(spent)
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - began
    p99 = statistics.quantiles(latencies, n=100)[98]
    tokens = sum(map(len, items))
    return Measured(tokens / seconds, tokens / sum(processor), p99, answers)


def check(one: Measured, other: Measured) -> None:
    """Refuse a comparison of services that do not compute the same."""
    differ = sum(abs(a - b) > TOLERANCE for a, b in zip(one.answers, other.answers, strict=True))
    if differ:
        raise SystemExit(f"error: {differ} answers differ between the two services")


def compare(rounds: int, count: int, clients: int) -> bool:
    """Measure both in turn; whether the bars are reached."""
    items = texts(count)
    lengths = [len(item) for item in items]
    print(f"{len(items)} texts, {statistics.median(lengths):.0f} tokens at the median, {clients} clients")
    plain, sorted_ = [], []
    for number in range(1, rounds + 1):
        plain.append(asyncio.run(measure(items, clients, by_cost=False)))
        sorted_.append(asyncio.run(measure(items, clients, by_cost=True)))
        check(plain[-1], sorted_[-1])
        for name, run in ((f"batches of {SIZE}", plain[-1]), ("by cost, sorted", sorted_[-1])):
            print(
                f"  {number}: {name:16} {run.per_second:8,.0f} tokens/s   99 % within {run.p99:5.2f} s   "
                f"{run.per_processor_second:8,.0f} tokens per processor second"
            )
    times = statistics.median(b.per_second / a.per_second for a, b in zip(plain, sorted_, strict=True))
    tail = statistics.median(b.p99 / a.p99 for a, b in zip(plain, sorted_, strict=True))
    print(f"{times:.2f} times the tokens (at least {LEAST_TIMES}), {tail:.2f} times the p99 (at most {MOST_P99})")
    return times >= LEAST_TIMES and tail <= MOST_P99


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure what batches by cost save of padding.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=1500, help="how many texts (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=256, help="texts that wait at one time (default: %(default)s)")
    options = parser.parse_args(arguments)
    return 0 if compare(options.rounds, options.texts, options.clients) else 1


if __name__ == "__main__":
    sys.exit(main())
