"""Ask the app of server.py: its own route for its books, and the model inside it for a text.

    python examples/fastapi_app/client.py "To be, or not to be" --key sesame

Exit status: 0 if both have answered, 1 if not.
"""

import argparse
import sys

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Ask an app and the model inside it.")
    parser.add_argument("text")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the app (%(default)s)")
    parser.add_argument("--key", help="the app's API_KEY, if it has one")
    options = parser.parse_args()
    headers = {"x-api-key": options.key} if options.key else {}
    try:
        with httpx.Client(base_url=options.url, timeout=60, headers=headers) as client:
            answer = client.post("/ml/inference", json=options.text).raise_for_status().json()
            print(f"{answer['seconds']:6} s  {options.text}")
            for name in client.get("/books").raise_for_status().json():
                book = client.get(f"/books/{name}").raise_for_status().json()
                print(f"{book['seconds']:6} s  {name}")
    except httpx.HTTPStatusError as error:
        print(f"{error.response.status_code}: {error.response.text}", file=sys.stderr)
        return 1
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/fastapi_app/server.py running?",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
