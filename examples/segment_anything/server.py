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
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mosec_asgi import Server, ValidationError, Worker, get_logger
from mosec_asgi.mixin import TypedMsgPackMixin

MODEL = os.environ.get("SAM_MODEL", "facebook/sam-vit-base")
GPUS = [gpu for gpu in os.environ.get("SAM_GPUS", "").split(",") if gpu]
MAX_BATCH_SIZE = 4
MAX_PIXELS = 4096 * 4096
# Of the longer side to the shorter one: nothing would be left of that in the size that the model wants.
MAX_RATIO = 50
# Some that PIL reads besides these start other programs, or are no pictures of anything.
FORMATS = ("JPEG", "PNG", "WEBP")

# What goes from stage to stage: the names are those of the model's arguments.
Inputs = dict[str, npt.NDArray[Any]]


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


# The process that speaks HTTP imports this module too, and runs no model: what takes seconds and hundreds of megabytes
# to import stands where it is used.
def load(kind: Any) -> Any:
    """Return what `kind.from_pretrained` makes of MODEL; raise an error that names the variable to set."""
    try:
        return kind.from_pretrained(MODEL)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"SAM_MODEL={MODEL} cannot be loaded: it must be a folder with a SamModel and its image processor, "
            "or the id of one on the hub, which must be in reach"
        ) from error


def device() -> str:
    """Return where the encoder runs; raise an error where a GPU was asked for and is not there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if GPUS:
        raise RuntimeError(
            f"SAM_GPUS names GPU {os.environ['CUDA_VISIBLE_DEVICES']}, which torch {torch.__version__} cannot "
            "use: see what nvidia-smi lists, or unset it to run on the processor"
        )
    return "cpu"


def decode(file: bytes) -> Image.Image:
    """Return an image as it is meant to be looked at; refuse what is none, is too large or too narrow."""
    try:
        image = Image.open(io.BytesIO(file), formats=FORMATS)
        check_size(*image.size)
        return ImageOps.exif_transpose(image).convert("RGB")
    except ValidationError:
        raise
    # PIL raises a dozen types, and nothing but the bytes can be the cause.
    except Exception as error:
        raise ValidationError(f"'image' is no {', '.join(FORMATS)} file that can be read") from error


def check_size(width: int, height: int) -> None:
    """Refuse an image by its size, before its pixels are decoded."""
    if width * height > MAX_PIXELS:
        raise ValidationError(f"'image' has {width} x {height} pixels, and {MAX_PIXELS} are the most")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValidationError(f"'image' has {width} x {height} pixels: one side is over {MAX_RATIO} times the other")


def check(prompt: Prompt, width: int, height: int) -> None:
    """Refuse a prompt that says nothing, or points outside of its image."""
    if not prompt.points and prompt.box is None:
        raise ValidationError("send one of 'points' at least, or a 'box'")
    for point in prompt.points:
        if not (0 <= point.x < width and 0 <= point.y < height):
            raise ValidationError(f"the point {point.x:g}, {point.y:g} is not in the image of {width} x {height}")
    if prompt.box is not None:
        left, top, right, bottom = prompt.box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValidationError(f"'box' must be left < right and top < bottom in the image of {width} x {height}")


class Read(TypedMsgPackMixin):
    """Outline what is at some place of an image."""

    def __init__(self) -> None:
        from transformers import SamImageProcessorPil, SamProcessor

        # Named outright, because the processor would rather take one that needs torchvision.
        self.processor = SamProcessor(load(SamImageProcessorPil))
        file = io.BytesIO()
        Image.linear_gradient("L").save(file, "PNG")
        self.example = Prompt(file.getvalue(), [Point(128, 128)])

    def forward(self, data: Prompt) -> Inputs:
        """Return the image in the size that the model wants, and the prompts moved along with it."""
        image = decode(data.image)
        check(data, image.width, image.height)
        # One image with one thing in it.
        points = [[[[point.x, point.y] for point in data.points]]] if data.points else None
        labels = [[[int(point.inside) for point in data.points]]] if data.points else None
        boxes = [[list(data.box)]] if data.box is not None else None
        return dict(
            self.processor(image, input_points=points, input_labels=labels, input_boxes=boxes, return_tensors="np")
        )


class Encode(Worker):
    """See the images of a batch."""

    def __init__(self) -> None:
        from transformers import SamModel

        self.device = device()
        # The part that sees images, and no other.
        self.encoder = load(SamModel).vision_encoder.to(self.device).eval()
        side = self.encoder.config.image_size
        self.example = [{"pixel_values": np.zeros((1, 3, side, side), np.float32)}] * MAX_BATCH_SIZE
        get_logger().info("%s runs on %s", MODEL, self.device)

    def forward(self, data: list[Inputs]) -> list[Inputs]:
        """Put embeddings in the place of pixels."""
        import torch

        pixels = torch.from_numpy(np.concatenate([inputs["pixel_values"] for inputs in data]))
        with torch.inference_mode():
            embeddings = self.encoder(pixels.to(self.device)).last_hidden_state.cpu().numpy()
        return [
            {name: array for name, array in inputs.items() if name != "pixel_values"} | {"image_embeddings": row[None]}
            for inputs, row in zip(data, embeddings, strict=True)
        ]


class Segment(TypedMsgPackMixin):
    """Find what the prompts mean."""

    def __init__(self) -> None:
        from transformers import SamImageProcessorPil, SamModel

        self.processor = load(SamImageProcessorPil)
        self.model = load(SamModel).eval()
        # Most of the model, which the stage before has run.
        del self.model.vision_encoder

    def forward(self, data: Inputs) -> Segmentation:
        """Return the masks of one image, in its own size."""
        import torch

        sizes, resized = data["original_sizes"], data["reshaped_input_sizes"]
        arguments = data.keys() - {"original_sizes", "reshaped_input_sizes"}
        tensors = {name: torch.from_numpy(data[name]) for name in arguments}
        with torch.inference_mode():
            found = self.model(**tensors, multimask_output=True)
            masks = self.processor.post_process_masks(found.pred_masks, sizes, resized)[0][0].numpy()
        scored = zip(found.iou_scores[0, 0].tolist(), masks, strict=True)
        best_first = sorted(scored, key=lambda pair: -pair[0])
        height, width = map(int, sizes[0])
        return Segmentation(height, width, [Mask(score, run_lengths(mask)) for score, mask in best_first])


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return how many pixels, column by column, are in turn outside and inside of a mask."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *counts] if pixels[0] else counts


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
