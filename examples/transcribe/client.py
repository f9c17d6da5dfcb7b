"""Have recordings transcribed by the service of server.py.

    python examples/transcribe/client.py speech.wav

Exit status: 0 if all were transcribed, 1 if not.
"""

import argparse
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Have recordings transcribed.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    failed = 0
    for file in options.files:
        try:
            answer = httpx.post(
                f"{options.url}/inference", files={"audio": (file.name, file.read_bytes())}, timeout=120
            )
        except OSError as error:
            print(f"{file}: {error.strerror}", file=sys.stderr)
            failed = 1
            continue
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            print(
                f"No server at {options.url} ({error}). Start one: python examples/transcribe/server.py",
                file=sys.stderr,
            )
            return 1
        if answer.is_error:
            print(f"{file}: {answer.status_code}: {answer.text}", file=sys.stderr)
            failed = 1
            continue
        print(f"{file}: {answer.json()['text']}")
        for each in answer.json()["words"]:
            print(f"  {each['start']:6.2f} s  {each['word']}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
