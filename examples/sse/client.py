"""Let the service of server.py say a text.

    python examples/sse/client.py "To be, or not to be" --route /yielded

Exit status: 0 if the text was said to its end, 1 if not.
"""

import argparse
import sys

import httpx
from httpx_sse import SSEError, connect_sse


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Let a service say a text.")
    parser.add_argument("text")
    parser.add_argument("--route", default="/pushed", choices=["/pushed", "/yielded"], help="(default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        return say(options.url + options.route, options.text)
    except (httpx.HTTPError, SSEError) as error:
        print(f"No answer from {options.url} ({error}). Is examples/sse/server.py running?", file=sys.stderr)
        return 1


def say(url: str, text: str) -> int:
    """Print the words of a text as they come; return the exit status."""
    with httpx.Client(timeout=60) as client, connect_sse(client, "POST", url, json={"text": text}) as source:
        for event in source.iter_sse():
            if event.event == "error":
                print(event.data, file=sys.stderr)
                return 1
            if event.event == "end":
                print(f"\n{event.json()['words']} words", file=sys.stderr)
                return 0
            print(event.data, end=" ", flush=True)
    print("\nthe stream has ended before the text", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
