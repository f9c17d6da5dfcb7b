"""The models: a file becomes pixels, pixels become lines, lines become texts."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mosec_asgi import DecodingError, ValidationError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Of an image as it comes; a camera's have 12 to 24 million. A file of some kilobytes can claim billions.
MAX_PIXELS = 25_000_000
# Of what the models see; RapidOCR reduces its images to that as well.
LONGEST_SIDE = 2000
# The detector enlarges the shorter side to 736: of a strip it would make gigabytes.
MOST_STRETCHED = 4
SHORTEST_SIDE = 32
# Lines in one run of the recognition; they are sorted by width, and filled up to the widest.
LINES_AT_A_TIME = 16
# Per worker: there are three that work at a time, and onnxruntime's threads turn in circles while they wait.
MODEL_THREADS = 1

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Page:
    """An image as the models take it.

    Attributes:
        pixels: height, width, and blue, green, red.
        scale: how many of the image's own pixels one of them is.
    """

    pixels: Pixels
    scale: float


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of an image, not yet read.

    Attributes:
        boxes: the four corners of each, in the image's own pixels, clockwise from the upper left.
        crops: the pixels of each, lying flat.
    """

    boxes: npt.NDArray[np.float32]
    crops: list[Pixels]


def page_of(data: bytes) -> Page:
    """Return the image in a file, upright, on white, and in a size that the models can take.

    Raises:
        DecodingError: it is no image, or a damaged one.
        ValidationError: it is larger than `MAX_PIXELS`.
    """
    # The bound is our own, below; Pillow's is for each process as a whole, and a warning.
    Image.MAX_IMAGE_PIXELS = None
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    # Not only `UnidentifiedImageError`: a plugin that fails at the file's head raises what it likes.
    except Exception as error:
        raise DecodingError(f"the body is no image that can be read; send one of {', '.join(FORMATS)}") from error
    width, height = image.size
    # The head of the file says so; nothing has been unpacked yet.
    if width * height > MAX_PIXELS:
        raise ValidationError(f"the image has {width} x {height} pixels, and {MAX_PIXELS} at most are read; reduce it")
    try:
        image = on_white(ImageOps.exif_transpose(image))
    except Exception as error:
        raise DecodingError(f"the image is damaged: {error}") from error
    longest = max(image.size)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return Page(np.asarray(widened(image))[..., ::-1].copy(), longest / max(image.size))


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of any mode in red, green and blue; what is transparent is white."""
    if image.mode.startswith("I"):
        # 16 bits a pixel, of which Pillow would keep the lower ones.
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def widened(image: Image.Image) -> Image.Image:
    """Return an image that is no strip: white is added to the right or below, so that no place in it changes."""
    width, height = image.size
    least = max(SHORTEST_SIDE, max(width, height) // MOST_STRETCHED)
    if min(width, height) >= least:
        return image
    canvas = Image.new("RGB", (max(width, least), max(height, least)), "white")
    canvas.paste(image)
    return canvas


class Detector:
    """Finds the lines of an image."""

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR

        self._models = RapidOCR(intra_op_num_threads=MODEL_THREADS)

    def __call__(self, page: Page) -> Lines:
        """Return the lines of an image, cut out."""
        found, _ = self._models(page.pixels, use_det=True, use_cls=False, use_rec=False)
        boxes = np.array(found or [], np.float32).reshape(-1, 4, 2)
        crops = self._models.get_crop_img_list(page.pixels, boxes)
        return Lines(boxes * page.scale, [np.ascontiguousarray(crop) for crop in crops])


class Reader:
    """Reads lines."""

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR

        self._models = RapidOCR(
            intra_op_num_threads=MODEL_THREADS, cls_batch_num=LINES_AT_A_TIME, rec_batch_num=LINES_AT_A_TIME
        )

    def __call__(self, crops: list[Pixels]) -> list[tuple[str, float]]:
        """Return the text and the confidence of each line; one that is upside down is turned before."""
        if not crops:
            return []
        upright, _, _ = self._models.text_cls(crops)
        texts: list[tuple[str, float]] = self._models.text_rec(upright)[0]
        return texts
