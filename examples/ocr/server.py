"""Text in images as a service: POST an image to /inference, get its lines with their places as JSON.

    python examples/ocr/server.py --port 8000
    curl --data-binary @receipt.jpg http://127.0.0.1:8000/inference

Three stages: `Decode` makes pixels of a file, `Detect` finds the lines and cuts them out, `Recognize` reads those of
all images that wait. The models are those of RapidOCR (PP-OCRv4, English and Chinese), from its wheel.
"""

import io
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mosec_asgi import DecodingError, Server, ValidationError, Worker

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Of an image as it comes; a camera's have 12 to 24 million. A file of some kilobytes can claim billions.
MAX_PIXELS = 25_000_000
# Of what the models see; RapidOCR reduces its images to that as well.
LONGEST_SIDE = 2000
# The detector enlarges the shorter side to 736: of a strip it would make gigabytes.
MOST_STRETCHED = 4
SHORTEST_SIDE = 32
# Below it a line is left out, as RapidOCR does.
LEAST_CONFIDENCE = 0.5
MAX_BATCH_SIZE = 8
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


class Line(TypedDict):
    """A line of text."""

    text: str
    confidence: float
    box: list[list[float]]


class Answer(TypedDict):
    """The lines of an image, from top to bottom; none where it has no text."""

    lines: list[Line]


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


class Decode(Worker):
    """Read the lines of text in an image.

    PNG, JPEG, WebP, GIF (its first picture) or BMP, up to 25 million pixels.
    """

    req_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        example = io.BytesIO()
        Image.new("RGB", (64, 64), "white").save(example, "PNG")
        self.example = example.getvalue()

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is: unpacking it is this stage's work, and takes its time."""
        return data

    def forward(self, data: bytes) -> Page:
        """Unpack an image."""
        return page_of(data)


class Detect(Worker):
    """Find the lines and cut them out."""

    example = Page(np.full((736, 736, 3), 255, np.uint8), 1.0)

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR

        self.models = RapidOCR(intra_op_num_threads=MODEL_THREADS)

    def forward(self, data: Page) -> Lines:
        """Find the lines of one image; the detector takes images of one size only, and so no batch."""
        found, _ = self.models(data.pixels, use_det=True, use_cls=False, use_rec=False)
        boxes = np.array(found or [], np.float32).reshape(-1, 4, 2)
        crops = self.models.get_crop_img_list(data.pixels, boxes)
        return Lines(boxes * data.scale, [np.ascontiguousarray(crop) for crop in crops])


class Recognize(Worker):
    """Read the lines."""

    example = [Lines(np.zeros((1, 4, 2), np.float32), [np.full((48, 320, 3), 255, np.uint8)])] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR

        self.models = RapidOCR(
            intra_op_num_threads=MODEL_THREADS, cls_batch_num=LINES_AT_A_TIME, rec_batch_num=LINES_AT_A_TIME
        )

    def forward(self, data: list[Lines]) -> list[Answer]:
        """Read the lines of all images of a batch together."""
        texts = iter(self.read([crop for lines in data for crop in lines.crops]))
        return [answer_of(lines, [next(texts) for _ in lines.crops]) for lines in data]

    def read(self, crops: list[Pixels]) -> list[tuple[str, float]]:
        """Return the text and the confidence of each line; one that is upside down is turned before."""
        if not crops:
            return []
        upright, _, _ = self.models.text_cls(crops)
        texts: list[tuple[str, float]] = self.models.text_rec(upright)[0]
        return texts


def answer_of(lines: Lines, texts: list[tuple[str, float]]) -> Answer:
    """Return what is read of an image."""
    rows = zip(texts, lines.boxes.round(1).tolist(), strict=True)
    return {
        "lines": [
            {"text": text, "confidence": round(float(confidence), 3), "box": box}
            for (text, confidence), box in rows
            if confidence >= LEAST_CONFIDENCE
        ]
    }


server = Server(timeout=60_000)
server.append_worker(Decode)
server.append_worker(Detect, num=2)
server.append_worker(Recognize, max_batch_size=MAX_BATCH_SIZE)

if __name__ == "__main__":
    server.run()
