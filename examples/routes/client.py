"""Send a text to routes of the service of server.py.

    python examples/routes/client.py /count /frequent --text "to be or not to be"

Exit status: 0 if every route has answered, 1 if not.
"""

import argparse
import sys

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Send a text to routes of a service.")
    parser.add_argument("route", nargs="+", help="/count or /frequent")
    parser.add_argument("--text", required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    failed = 0
    try:
        with httpx.Client(base_url=options.url, timeout=60) as client:
            for route in options.route:
                answer = client.post(route, json={"text": options.text})
                failed |= answer.is_error
                print(f"{route}: {answer.text}" if answer.is_success else f"{route}: {answer.status_code}")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/routes/server.py running?",
            file=sys.stderr,
        )
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
