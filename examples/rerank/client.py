"""Rank documents by how well they answer a query, with the service of server.py.

    python examples/rerank/client.py "Who barks?" "Cats purr." "Dogs bark."

Exit status: 0 if there is an answer, 1 if not.
"""

import argparse
import sys

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Rank documents by how well they answer a query.")
    parser.add_argument("query")
    parser.add_argument("documents", nargs="+", metavar="DOCUMENT")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    body = {"model": "all-MiniLM-L6-v2", "query": options.query, "documents": options.documents}
    try:
        answer = httpx.post(f"{options.url}/v1/rerank", json=body, timeout=60)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"No server at {options.url} ({error}). Start one: python examples/rerank/server.py", file=sys.stderr)
        return 1
    if answer.is_error:
        print(f"error: {answer.status_code}: {answer.text}", file=sys.stderr)
        return 1
    for row in answer.json()["results"]:
        print(f"{row['relevance_score']:.3f}  {options.documents[row['index']]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
