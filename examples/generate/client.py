"""Ask the language model of server.py, with OpenAI's own client.

    python examples/generate/client.py "Why is the sky blue?"
    python examples/generate/client.py "Name three colours." "Tell me a joke." "Who wrote Hamlet?"

One question is answered as the tokens come. Several are asked at the same time, and printed as they are done. Exit
status: 0 if all were answered, 1 if not.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator

from openai import APIConnectionError, AsyncOpenAI, OpenAIError

MODEL = "smollm2-135m-instruct"


async def main() -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args()
    began = time.perf_counter()
    try:
        async with AsyncOpenAI(base_url=f"{options.url}/v1", api_key="none", max_retries=0) as client:
            if len(options.question) == 1:
                tokens = await _print_as_it_comes(_answer(client, options.question[0], options))
            else:
                asked = [_print_when_done(client, question, options) for question in options.question]
                tokens = sum(await asyncio.gather(*asked))
    except APIConnectionError:
        print(f"No server at {options.url}. Start one: python examples/generate/server.py", file=sys.stderr)
        return 1
    except OpenAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - began
    print(f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask a small language model.")
    parser.add_argument("question", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="the longest answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 for the likeliest words (%(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    return parser


async def _answer(client: AsyncOpenAI, question: str, options: argparse.Namespace) -> AsyncIterator[str | int]:
    """Yield an answer's text piece by piece, and at last how many tokens it has."""
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    async with stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content
            if chunk.usage:
                yield chunk.usage.completion_tokens


async def _print_as_it_comes(answer: AsyncIterator[str | int]) -> int:
    tokens = 0
    async for piece in answer:
        if isinstance(piece, int):
            tokens = piece
        else:
            print(piece, end="", flush=True)
    print()
    return tokens


async def _print_when_done(client: AsyncOpenAI, question: str, options: argparse.Namespace) -> int:
    *text, tokens = [piece async for piece in _answer(client, question, options)]
    print(f"{question}\n    {''.join(map(str, text))}\n")
    return int(tokens)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
