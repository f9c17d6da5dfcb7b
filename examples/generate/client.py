"""Ask the language model of server.py, with OpenAI's own client.

    python examples/generate/client.py "Why is the sky blue?"
    python examples/generate/client.py "Name three colours." "Tell me a joke." "Who wrote Hamlet?"

One question is answered as the tokens come. Several are asked at the same time, and printed as they are done. Exit
status: 0 if all were answered, 1 if not.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import APIConnectionError, OpenAI, OpenAIError


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Ask a small language model.")
    parser.add_argument("question", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="the longest answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 for the likeliest words (%(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    options = vars(parser.parse_args())
    url, questions = options.pop("url"), options.pop("question")
    began = time.perf_counter()
    try:
        with (
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            ThreadPoolExecutor(len(questions)) as threads,
        ):
            several = len(questions) > 1
            tokens = sum(threads.map(lambda each: answered(client, each, options, several=several), questions))
    except APIConnectionError:
        print(f"No server at {url}. Start one: python examples/generate/server.py", file=sys.stderr)
        return 1
    except OpenAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - began
    print(f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s", file=sys.stderr)
    return 0


def answered(client: OpenAI, question: str, options: dict[str, Any], *, several: bool) -> int:
    """Print the answer to a question, one of several as a whole; return how many tokens it has."""
    chunks = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        **options,
    )
    pieces, tokens = [], 0
    for chunk in chunks:
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        if not several:
            print(pieces[-1] if chunk.choices else "\n", end="", flush=True)
    if several:
        print(f"{question}\n    {''.join(pieces)}\n")
    return tokens


if __name__ == "__main__":
    sys.exit(main())
