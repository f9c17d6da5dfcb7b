"""Have the service of server.py make the index of a file, and see what compression saves on the way.

    python examples/compression/client.py README.md

Exit status: 0 if there is an index, 1 if not.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the index of a text, sent and received compressed.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--encoding", default="gzip", choices=["gzip", "zstd", "identity"], help="of the answer")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    options = parser.parse_args()
    try:
        body = json.dumps(options.file.read_text(errors="replace")).encode()
    except OSError as error:
        print(f"{options.file} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    packed = gzip.compress(body)
    headers = {"content-encoding": "gzip", "accept-encoding": options.encoding}
    try:
        with httpx.stream("POST", f"{options.url}/inference", content=packed, headers=headers, timeout=60) as answer:
            received = b"".join(answer.iter_raw())
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/compression/server.py running?",
            file=sys.stderr,
        )
        return 1
    if answer.is_error:
        print(f"{answer.status_code}: {received.decode(errors='replace')}", file=sys.stderr)
        return 1
    print(f"sent      {len(packed):>9,} bytes for {len(body):,}")
    print(f"received  {len(received):>9,} bytes, {answer.headers.get('content-encoding', 'not compressed')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
