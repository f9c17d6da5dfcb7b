"""Find the passages of some files that are closest to a question, with the service of server.py and OpenAI's client.

    python examples/embedding/client.py "How are batches made?" README.md docs/testing.md

Exit status: 0 if there is an answer, 1 if not.
"""

import argparse
import asyncio
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from openai import APIConnectionError, APIError, AsyncOpenAI

MODEL = "all-MiniLM-L6-v2"
# Characters; a token has one at least, and so a passage never more tokens than the model reads.
LONGEST = 250
PASSAGES_A_REQUEST = 16
REQUESTS_AT_A_TIME = 32


@dataclass(frozen=True)
class Passage:
    """A piece of a file."""

    path: Path
    text: str


def passages_of(path: Path) -> Iterator[Passage]:
    """Yield the paragraphs of a file, long ones in pieces."""
    for paragraph in re.split(r"\n\s*\n", path.read_text(errors="replace")):
        for piece in textwrap.wrap(paragraph, LONGEST):
            yield Passage(path, piece)


async def embed(client: AsyncOpenAI, texts: list[str]) -> npt.NDArray[np.float32]:
    """Return one row for each text, asked for in several requests at a time."""
    free = asyncio.Semaphore(REQUESTS_AT_A_TIME)

    async def ask(some: list[str]) -> list[list[float]]:
        async with free:
            answer = await client.embeddings.create(model=MODEL, input=some)
        return [row.embedding for row in answer.data]

    starts = range(0, len(texts), PASSAGES_A_REQUEST)
    answers = await asyncio.gather(*(ask(texts[start : start + PASSAGES_A_REQUEST]) for start in starts))
    return np.array([row for rows in answers for row in rows], np.float32)


async def search(url: str, question: str, passages: list[Passage], best: int) -> None:
    """Print the passages that are closest to a question."""
    began = time.perf_counter()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        vectors = await embed(client, [question, *(passage.text for passage in passages)])
    seconds = time.perf_counter() - began
    scores = vectors[1:] @ vectors[0]
    for place in scores.argsort()[::-1][:best]:
        print(f"{scores[place]:.3f}  {passages[place].path}\n{textwrap.indent(passages[place].text, '       ')}\n")
    print(f"{len(vectors)} texts in {seconds:.2f} s, {len(vectors) / seconds:.0f} texts/s", file=sys.stderr)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Find the passages that are closest to a question.")
    parser.add_argument("question")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--best", type=int, default=3, help="passages to print (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        passages = [passage for path in options.files for passage in passages_of(path)]
        asyncio.run(search(options.url, options.question, passages, options.best))
    except OSError as error:
        print(f"{error.filename} cannot be read: {error.strerror}", file=sys.stderr)
    except APIConnectionError:
        print(f"No server at {options.url}. Start one: python examples/embedding/server.py", file=sys.stderr)
    except APIError as error:
        told = error.body["message"] if isinstance(error.body, dict) and "message" in error.body else error.message
        print(f"error: {told}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
