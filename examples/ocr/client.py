"""Read the text in images, several at once, with the service of server.py.

    python examples/ocr/client.py receipt.jpg page-*.png
    python examples/ocr/client.py receipt.jpg --json     # with confidences and places

Exit status: 0 if every image has an answer, 1 if one has none or there is no server.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

TIMEOUT = 120.0  # seconds


def read(client: httpx.Client, path: Path) -> dict[str, Any]:
    """Return what the service says of an image: its lines, or the error that kept it from them.

    Raises:
        httpx.TransportError: there is no server.
    """
    try:
        image = path.read_bytes()
    except OSError as error:
        return {"error": f"cannot be read: {error.strerror}"}
    reply = client.post("/inference", content=image)
    if reply.is_error:
        return {"error": f"{reply.status_code}: {reply.text}"}
    answer: dict[str, Any] = reply.json()
    return answer


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Read the text in images.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="images at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, with confidences and boxes")
    options = parser.parse_args()
    if options.concurrency < 1:
        parser.error("--concurrency must be at least 1")
    failed = 0
    try:
        with (
            httpx.Client(base_url=options.url, timeout=TIMEOUT) as client,
            ThreadPoolExecutor(options.concurrency) as threads,
        ):
            answers = threads.map(lambda path: read(client, path), options.images)
            for path, answer in zip(options.images, answers, strict=True):
                failed += "error" in answer
                show(path, answer, as_json=options.json)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({error}). Start the server: python examples/ocr/server.py", file=sys.stderr
        )
        return 1
    return 1 if failed else 0


def show(path: Path, answer: dict[str, Any], *, as_json: bool) -> None:
    """Print what is known of an image."""
    if as_json:
        print(json.dumps({"path": str(path), **answer}, ensure_ascii=False))
    elif "error" in answer:
        print(f"{path}: {answer['error']}", file=sys.stderr)
    else:
        print(f"{path}:")
        for line in answer["lines"]:
            print(f"    {line['text']}")


if __name__ == "__main__":
    sys.exit(main())
