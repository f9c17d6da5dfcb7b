"""Text in images as a service: POST an image to /inference, get its lines with their places as JSON.

    python examples/ocr/server.py --port 8000
    curl --data-binary @receipt.jpg http://127.0.0.1:8000/inference

Three stages: `Decode` makes pixels of a file, `Detect` finds the lines and cuts them out, `Recognize` reads those of
all images that wait. The models are those of RapidOCR (PP-OCRv4, English and Chinese), from its wheel.
"""

import io
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from mosec_asgi import Server, Worker

# The module of the model, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))
from lines import Detector, Lines, Page, Reader, page_of

# Below it a line is left out, as RapidOCR does.
LEAST_CONFIDENCE = 0.5
MAX_BATCH_SIZE = 8


class Line(TypedDict):
    """A line of text."""

    text: str
    confidence: float
    box: list[list[float]]


class Answer(TypedDict):
    """The lines of an image, from top to bottom; none where it has no text."""

    lines: list[Line]


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
        self.detect = Detector()

    def forward(self, data: Page) -> Lines:
        """Find the lines of one image; the detector takes images of one size only, and so no batch."""
        return self.detect(data)


class Recognize(Worker):
    """Read the lines."""

    example = [Lines(np.zeros((1, 4, 2), np.float32), [np.full((48, 320, 3), 255, np.uint8)])] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        self.read = Reader()

    def forward(self, data: list[Lines]) -> list[Answer]:
        """Read the lines of all images of a batch together."""
        texts = iter(self.read([crop for lines in data for crop in lines.crops]))
        return [answer_of(lines, [next(texts) for _ in lines.crops]) for lines in data]


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
