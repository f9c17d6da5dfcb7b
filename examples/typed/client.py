"""Find the passages that are closest to a question, with the service of server.py, in JSON or in msgpack.

    python examples/typed/client.py "who barks?" "Cats purr." "Dogs bark." --route /rank/msgpack

Exit status: 0 if there is an answer, 1 if not.
"""

import argparse
import json
import sys
from typing import Any

import httpx
import msgspec


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Find the passages that are closest to a question.")
    parser.add_argument("question")
    parser.add_argument("passage", nargs="+")
    parser.add_argument("--route", default="/rank", choices=["/rank", "/rank/msgpack"], help="(default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    query = {"question": options.question, "passages": options.passage}
    try:
        matches = ask(options.url, options.route, query)
    except httpx.HTTPStatusError as error:
        print(f"{error.response.status_code}: {error.response.text}", file=sys.stderr)
        return 1
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/typed/server.py running?",
            file=sys.stderr,
        )
        return 1
    for match in matches:
        print(f"{match['score']:.4f}  {options.passage[match['place']]}")
    return 0


def ask(url: str, route: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the matches in the format of a route.

    Raises:
        httpx.HTTPError: there is no answer.
    """
    packed = route == "/rank/msgpack"
    body = msgspec.msgpack.encode(query) if packed else json.dumps(query).encode()
    answer = httpx.post(url + route, content=body, timeout=60).raise_for_status().content
    matches: list[dict[str, Any]] = (msgspec.msgpack.decode(answer) if packed else json.loads(answer))["matches"]
    return matches


if __name__ == "__main__":
    sys.exit(main())
