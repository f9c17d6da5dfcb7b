"""Segment Anything: POST an image and where to look, as msgpack, get the outlines of what is there as masks.

    python examples/segment_anything/server.py --port 8000
    python examples/segment_anything/client.py photo.jpg --point 320,200 --output mask.png

Three stages. `Read` decodes the image, and makes of it and of the prompts what the model takes. `Encode` runs the heavy
part of the model, which sees the image only, for up to four images at once. `Segment` runs the light part, which sees
the prompts, and writes the masks as run lengths.

Two variables of the environment say what runs where. `SAM_MODEL` is a folder, or the id of a model on the hub.
`SAM_GPUS`, like `0,1`, gives each of these GPUs a worker of `Encode`; without it there is one, which takes the first
GPU that it finds, or else the processor. `Segment` always runs on the processor.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from PIL import Image

from mosec_asgi import Server, Worker, get_logger
from mosec_asgi.mixin import TypedMsgPackMixin

# The module of the model, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))
from sam import MODEL, Decoder, Encoder, Inputs, Processor, run_lengths

GPUS = [gpu for gpu in os.environ.get("SAM_GPUS", "").split(",") if gpu]
MAX_BATCH_SIZE = 4


class Point(msgspec.Struct, forbid_unknown_fields=True):
    """A place in the image, in pixels from its upper left corner."""

    x: float
    y: float
    inside: bool = True  # part of what is looked for; False for what is not


class Prompt(msgspec.Struct, forbid_unknown_fields=True):
    """An image, and where in it something is to be found: by points, by a box around it, or by both."""

    image: Annotated[bytes, msgspec.Meta(min_length=1, description="A file: JPEG, PNG or WebP.")]
    points: Annotated[list[Point], msgspec.Meta(max_length=32)] = []
    box: Annotated[
        tuple[float, float, float, float] | None, msgspec.Meta(description="Left, top, right and bottom, in pixels.")
    ] = None


class Mask(msgspec.Struct):
    """The pixels of a thing, as COCO has them uncompressed.

    The columns of the image one after the other are so many pixels outside, so many inside, so many outside, and so on.
    """

    score: float
    counts: list[int]


class Segmentation(msgspec.Struct):
    """Three masks for what the prompt may mean, like a button, a shirt, a man; the likeliest one first."""

    height: int
    width: int
    masks: list[Mask]


class Read(TypedMsgPackMixin):
    """Outline what is at some place of an image."""

    def __init__(self) -> None:
        self.process = Processor()
        file = io.BytesIO()
        Image.linear_gradient("L").save(file, "PNG")
        self.example = Prompt(file.getvalue(), [Point(128, 128)])

    def forward(self, data: Prompt) -> Inputs:
        """Return the image in the size that the model wants, and the prompts moved along with it."""
        points = [(point.x, point.y) for point in data.points]
        return self.process(data.image, points, [int(point.inside) for point in data.points], data.box)


class Encode(Worker):
    """See the images of a batch."""

    def __init__(self) -> None:
        self.encode = Encoder()
        side = self.encode.side
        self.example = [{"pixel_values": np.zeros((1, 3, side, side), np.float32)}] * MAX_BATCH_SIZE
        get_logger().info("%s runs on %s", MODEL, self.encode.device)

    def forward(self, data: list[Inputs]) -> list[Inputs]:
        """Put embeddings in the place of pixels."""
        embeddings = self.encode(np.concatenate([inputs["pixel_values"] for inputs in data]))
        rests = [{name: array for name, array in inputs.items() if name != "pixel_values"} for inputs in data]
        return [rest | {"image_embeddings": row[None]} for rest, row in zip(rests, embeddings, strict=True)]


class Segment(TypedMsgPackMixin):
    """Find what the prompts mean."""

    def __init__(self) -> None:
        self.decode = Decoder()

    def forward(self, data: Inputs) -> Segmentation:
        """Return the masks of one image, in its own size."""
        height, width = map(int, data["original_sizes"][0])
        return Segmentation(height, width, [Mask(score, run_lengths(mask)) for score, mask in self.decode(data)])


server = Server(timeout=60_000, max_request_size=20 << 20)
server.append_worker(Read)
server.append_worker(
    Encode,
    num=len(GPUS) or 1,
    max_batch_size=MAX_BATCH_SIZE,
    env=[{"CUDA_VISIBLE_DEVICES": gpu} for gpu in GPUS] or None,
)
server.append_worker(Segment)

if __name__ == "__main__":
    server.run()
