"""Ask the service of server.py for what is at a place of an image, and save it as a picture.

    python examples/segment_anything/client.py photo.jpg --point 320,200 --not-point 10,10 --output mask.png
    python examples/segment_anything/client.py photo.jpg --box 100,50,400,300

Exit status: 0 if there is an answer, 1 if there is none or no server.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
from PIL import Image


def main() -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args()
    try:
        prompt = _prompt(options)
        reply = httpx.post(f"{options.url}/inference", content=msgspec.msgpack.encode(prompt), timeout=120)
    except OSError as error:
        print(f"{options.image} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    except (httpx.TransportError, httpx.InvalidURL) as error:
        print(
            f"No answer from {options.url} ({str(error) or type(error).__name__}). "
            "Is examples/segment_anything/server.py running?",
            file=sys.stderr,
        )
        return 1
    if reply.is_error:
        print(f"{reply.status_code}: {reply.text}", file=sys.stderr)
        return 1
    answer = msgspec.msgpack.decode(reply.content)
    for number, mask in enumerate(answer["masks"], 1):
        print(f"mask {number}: score {mask['score']:.3f}, {sum(mask['counts'][1::2])} pixels")
    if options.output:
        try:
            picture(answer["masks"][0]["counts"], answer["width"], answer["height"]).save(options.output)
        except (OSError, ValueError) as error:
            print(f"{options.output} cannot be written: {error}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask a service for what is at a place of an image.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--point", type=_numbers(2), action="append", default=[], metavar="X,Y", help="is part of it")
    parser.add_argument("--not-point", type=_numbers(2), action="append", default=[], metavar="X,Y", help="is not")
    parser.add_argument("--box", type=_numbers(4), metavar="LEFT,TOP,RIGHT,BOTTOM", help="is around it")
    parser.add_argument("--output", type=Path, help="where to save the first mask, white on black")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    return parser


def _numbers(count: int) -> Any:
    def numbers(text: str) -> list[float]:
        parts = list(map(float, text.split(",")))
        if len(parts) != count:
            raise argparse.ArgumentTypeError(f"{count} numbers with commas between them are needed, not {text!r}")
        return parts

    return numbers


def _prompt(options: argparse.Namespace) -> dict[str, Any]:
    points = [{"x": x, "y": y, "inside": True} for x, y in options.point]
    points += [{"x": x, "y": y, "inside": False} for x, y in options.not_point]
    return {"image": options.image.read_bytes(), "points": points, "box": options.box}


def picture(counts: list[int], width: int, height: int) -> Image.Image:
    """Return a mask as a picture.

    Args:
        counts: how many pixels, column by column, are in turn outside and inside.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """
    runs = zip(itertools.cycle([b"\x00", b"\xff"]), counts)
    columns = b"".join(pixel * count for pixel, count in runs)
    return Image.frombytes("L", (height, width), columns).transpose(Image.Transpose.TRANSPOSE)


if __name__ == "__main__":
    sys.exit(main())
