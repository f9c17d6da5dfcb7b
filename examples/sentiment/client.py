"""Ask the service of server.py for the sentiment of texts, all at once.

    python examples/sentiment/client.py "What a lovely day!" "I want my money back."

Exit status: 0 if every text has an answer, 1 if one has none or there is no server.
"""

import argparse
import asyncio
import sys

import httpx


async def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Ask a service for the sentiment of texts.")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
            return max(await asyncio.gather(*(tell(client, text) for text in options.text)))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/sentiment/server.py running?",
            file=sys.stderr,
        )
        return 1


async def tell(client: httpx.AsyncClient, text: str) -> int:
    """Print the sentiment of one text, or why there is none; return the exit status."""
    reply = await client.post("/inference", json={"text": text})
    if reply.is_error:
        print(f"{reply.status_code}: {reply.text}", file=sys.stderr)
        return 1
    answer = reply.json()
    print(f"{answer['label']:<10} {answer['score']:.4f}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
