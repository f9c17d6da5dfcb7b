"""Let the service of server.py paint a picture.

    python examples/stable_diffusion/client.py "a lighthouse at dusk" --seed 7 --size 512x512 --output lighthouse.png

Exit status: 0 if there is a picture, 1 if there is none or no server.
"""

import argparse
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args()
    width, height = options.size
    body = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "steps": options.steps,
        "width": width,
        "height": height,
        "seed": options.seed,
    }
    try:
        reply = httpx.post(f"{options.url}/inference", json=body, timeout=600)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/stable_diffusion/server.py running?",
            file=sys.stderr,
        )
        return 1
    if reply.is_error:
        print(f"{reply.status_code}: {reply.text}", file=sys.stderr)
        return 1
    try:
        options.output.write_bytes(reply.content)
    except OSError as error:
        print(f"{options.output} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Let a service paint a picture.")
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="", help="what not to paint")
    parser.add_argument("--steps", type=int, default=25, help="(default: %(default)s)")
    parser.add_argument("--size", type=_size, default=(None, None), metavar="WIDTHxHEIGHT", help="in pixels")
    parser.add_argument("--seed", type=int, help="the same seed gives the same picture")
    parser.add_argument("--output", type=Path, default=Path("picture.png"), help="where to (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    return parser


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
