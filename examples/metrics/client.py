"""Send sentences to the service of server.py, then show what its workers have counted.

    python examples/metrics/client.py "Is it raining?" "It is raining."

Exit status: 0 if all were answered, 1 if not.
"""

import argparse
import sys

import httpx

OWN = ("texts_", "cache_lookups_", "cached_texts", "text_words_")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Have sentences told apart, and see the workers' own metrics.")
    parser.add_argument("sentence", nargs="*")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        with httpx.Client(base_url=options.url, timeout=60) as client:
            for sentence in options.sentence:
                answer = client.post("/inference", json=sentence).raise_for_status()
                print(f"{answer.json()['kind']:12} {sentence}")
            lines = client.get("/metrics").raise_for_status().text.splitlines()
    except httpx.HTTPStatusError as error:
        print(f"{error.response.status_code}: {error.response.text}", file=sys.stderr)
        return 1
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/metrics/server.py running?",
            file=sys.stderr,
        )
        return 1
    print(*(line for line in lines if line.startswith(OWN)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
