"""An image classifier in ONNX by the open inference protocol, over HTTP and gRPC: what Triton and KServe speak.

python examples/onnx_classifier/server.py --port 8000
python examples/onnx_classifier/client.py --count 5
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mosec_asgi import Server, ValidationError, Worker
from mosec_asgi.protocols import OpenInference, Tensor

# The module beside this one, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))

from digits import BRIGHTEST, SIZE, made

# The port of gRPC.
GRPC_PORT = int(os.environ.get("GRPC_PORT", "8001"))


class Classify(Worker):
    """Say which digit an image shows. One row of a request is an item, and up to 64 of all requests are run at once."""

    inputs = [Tensor("image", "FP32", [-1, SIZE, SIZE])]
    outputs = [Tensor("digit", "INT64", [-1]), Tensor("probabilities", "FP32", [-1, 10])]
    example = [{"image": np.zeros((SIZE, SIZE), np.float32)}] * 64

    def __init__(self) -> None:
        # Here, not above: of the processes, only workers need it.
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Its parts take microseconds: more threads would only wait for each other.
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(made()), options, providers=["CPUExecutionProvider"])

    def forward(self, data: list[Any]) -> list[Any]:
        """Run the images that are right as one batch; the others are refused alone."""
        results = [image_of(item) for item in data]
        right = [place for place, image in enumerate(results) if isinstance(image, np.ndarray)]
        if right:
            images = np.stack([results[place] for place in right])
            digits, probabilities = self.session.run(["digit", "probabilities"], {"image": images})
            for place, digit, row in zip(right, digits, probabilities, strict=True):
                results[place] = {"digit": digit, "probabilities": row}
        return results


def image_of(item: Any) -> Any:
    """Return an item's image, or what is wrong with it: by the plain route it is JSON, and may be anything."""
    try:
        image = np.asarray(item["image"], np.float32)
    except (LookupError, TypeError, ValueError, OverflowError):
        return ValidationError(f'an item is such as {{"image": [[0.0, ...], ...]}}, {SIZE} rows of {SIZE} pixels')
    if image.shape != (SIZE, SIZE) or not 0 <= image.min() <= image.max() <= BRIGHTEST:
        return ValidationError(f"image: it is {SIZE} rows of {SIZE} pixels, each from 0 to {BRIGHTEST:g}")
    return image


server = Server()
server.append_worker(Classify, max_batch_size=64, route="/classify")
server.add_protocol(OpenInference({"digits": "/classify"}, grpc_port=GRPC_PORT))

if __name__ == "__main__":
    server.run()
