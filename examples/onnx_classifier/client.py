"""Show images of digits to the service of server.py, with Triton's own client.

    python examples/onnx_classifier/client.py --count 5
    python examples/onnx_classifier/client.py --count 450 --grpc 127.0.0.1:8001

Exit status: 0 if there is an answer, 1 if not.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

sys.path.insert(0, str(Path(__file__).parent / "modules"))

from digits import images

SHADES = " .:-=+*#%@"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Have images of digits classified.")
    parser.add_argument("--count", type=int, default=3, help="how many images, of the 450 to test with (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="ask by gRPC, at this address")
    options = parser.parse_args()
    _, shown, _, right = images()
    shown, right = shown[: options.count], right[: options.count]
    try:
        digits, probabilities = classify(shown, options.url, options.grpc)
    except (InferenceServerException, OSError) as error:
        where = options.grpc or options.url
        told = str(error).partition("\n")[0]
        print(f"No answer of {where} ({told}). A server: python examples/onnx_classifier/server.py", file=sys.stderr)
        return 1
    if options.count <= 5:
        for image, digit, row in zip(shown, digits, probabilities, strict=True):
            print(drawn(image), f"{digit} ({row[digit]:.0%})", sep="\n", end="\n\n")
    print(f"{int((digits == right).sum())} of {len(right)} are right")
    return 0


def classify(shown: Any, url: str, grpc: str | None) -> tuple[Any, Any]:
    """Return which digits images show, and how probable each of the ten is: in one request."""
    module = tritonclient.grpc if grpc else tritonclient.http
    tensor = module.InferInput("image", shown.shape, "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(shown))
    with module.InferenceServerClient(grpc or url.partition("://")[2]) as client:
        answer = client.infer("digits", [tensor])
    return answer.as_numpy("digit"), answer.as_numpy("probabilities")


def drawn(image: Any) -> str:
    """Return an image as text."""
    levels = (image / 16 * (len(SHADES) - 1)).astype(int)
    return "\n".join("".join(SHADES[level] * 2 for level in row) for row in levels)


if __name__ == "__main__":
    sys.exit(main())
