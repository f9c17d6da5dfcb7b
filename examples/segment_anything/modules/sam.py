"""The model: an image and places in it become what Segment Anything takes, and what it finds becomes masks.

The process that speaks HTTP imports this module too, and runs no model: what takes seconds and hundreds of megabytes to
import stands where it is used.
"""

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mosec_asgi import ValidationError

MODEL = os.environ.get("SAM_MODEL", "facebook/sam-vit-base")
MAX_PIXELS = 4096 * 4096
# Of the longer side to the shorter one: nothing would be left of that in the size that the model wants.
MAX_RATIO = 50
# Some that PIL reads besides these start other programs, or are no pictures of anything.
FORMATS = ("JPEG", "PNG", "WEBP")

# What goes from stage to stage: the names are those of the model's arguments.
Inputs = dict[str, npt.NDArray[Any]]
Box = tuple[float, float, float, float]


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
    if os.environ.get("SAM_GPUS"):
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


def check(points: list[tuple[float, float]], box: Box | None, width: int, height: int) -> None:
    """Refuse a prompt that says nothing, or points outside of its image."""
    if not points and box is None:
        raise ValidationError("send one of 'points' at least, or a 'box'")
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValidationError(f"the point {x:g}, {y:g} is not in the image of {width} x {height}")
    if box is not None:
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValidationError(f"'box' must be left < right and top < bottom in the image of {width} x {height}")


class Processor:
    """Make the model's arguments of an image and a prompt."""

    def __init__(self) -> None:
        from transformers import SamImageProcessorPil, SamProcessor

        # Named outright, because the processor would rather take one that needs torchvision.
        self._processor = SamProcessor(load(SamImageProcessorPil))

    def __call__(self, file: bytes, points: list[tuple[float, float]], labels: list[int], box: Box | None) -> Inputs:
        """Return the image in the size that the model wants, and the prompt moved along with it."""
        image = decode(file)
        check(points, box, image.width, image.height)
        # One image with one thing in it.
        places = [[[list(point) for point in points]]] if points else None
        boxes = [[list(box)]] if box is not None else None
        of_places = [[labels]] if points else None
        return dict(
            self._processor(image, input_points=places, input_labels=of_places, input_boxes=boxes, return_tensors="np")
        )


class Encoder:
    """The heavy part of the model, which sees images."""

    def __init__(self) -> None:
        from transformers import SamModel

        self.device = device()
        self._model = load(SamModel).vision_encoder.to(self.device).eval()
        self.side: int = self._model.config.image_size

    def __call__(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an embedding for each image."""
        import torch

        with torch.inference_mode():
            embeddings: npt.NDArray[Any] = (
                self._model(torch.from_numpy(pixels).to(self.device)).last_hidden_state.cpu().numpy()
            )
        return embeddings


class Decoder:
    """The light part of the model, which sees prompts."""

    def __init__(self) -> None:
        from transformers import SamImageProcessorPil, SamModel

        self._processor = load(SamImageProcessorPil)
        self._model = load(SamModel).eval()
        # Most of the model, which the encoder has run.
        del self._model.vision_encoder

    def __call__(self, inputs: Inputs) -> list[tuple[float, npt.NDArray[np.bool_]]]:
        """Return three masks in the size of the image, each with its score, the best one first."""
        import torch

        sizes, resized = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        arguments = inputs.keys() - {"original_sizes", "reshaped_input_sizes"}
        tensors = {name: torch.from_numpy(inputs[name]) for name in arguments}
        with torch.inference_mode():
            found = self._model(**tensors, multimask_output=True)
            masks = self._processor.post_process_masks(found.pred_masks, sizes, resized)[0][0].numpy()
        scored = zip(found.iou_scores[0, 0].tolist(), masks, strict=True)
        return sorted(scored, key=lambda pair: -pair[0])


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return how many pixels, column by column, are in turn outside and inside of a mask."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *counts] if pixels[0] else counts
