"""Rank documents by how well they answer a query, with the service of server.py.

    python examples/rerank/client.py "Who barks?" "Cats purr." "Dogs bark."
    ls docs | python examples/rerank/client.py "testing" -

`-` reads a document from each line of the standard input. Exit status: 0 if there is an answer, 1 if not.
"""

import argparse
import sys

import httpx
import msgspec


class Scores(msgspec.Struct):
    """What the service answers."""

    scores: list[float]


def rank(url: str, query: str, documents: list[str]) -> list[tuple[float, str]]:
    """Return the documents with their scores, the best one first.

    Raises:
        httpx.HTTPError: there is no answer.
    """
    body = msgspec.msgpack.encode({"query": query, "documents": documents})
    reply = httpx.post(f"{url}/rerank", content=body, timeout=60, headers={"content-type": "application/msgpack"})
    reply.raise_for_status()
    scores = msgspec.msgpack.decode(reply.content, type=Scores).scores
    return sorted(zip(scores, documents, strict=True), key=lambda pair: -pair[0])


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Rank documents by how well they answer a query.")
    parser.add_argument("query")
    parser.add_argument("documents", nargs="+", metavar="DOCUMENT", help="text, or - for the lines of standard input")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    documents = options.documents
    if documents == ["-"]:
        documents = [line for line in sys.stdin.read().splitlines() if line.strip()]
    try:
        for score, document in rank(options.url, options.query, documents):
            print(f"{score:.3f}  {document}")
    except httpx.HTTPStatusError as error:
        print(f"error: {error.response.status_code}: {error.response.text}", file=sys.stderr)
        return 1
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"No server at {options.url} ({error}). Start one: python examples/rerank/server.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
