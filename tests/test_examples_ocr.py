"""The reader of images from end to end: words that the tests draw, in many forms and many at once; what it refuses."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Program, free_port, running, skip_module_without

np = pytest.importorskip("numpy")
skip_module_without("rapidocr_onnxruntime")
Image = pytest.importorskip("PIL.Image")
ImageDraw = pytest.importorskip("PIL.ImageDraw")
ImageFont = pytest.importorskip("PIL.ImageFont")

EXAMPLE = ROOT / "examples" / "ocr"
DEADLINE = 240.0  # seconds; far above what is needed, so that only a hang reaches it
SIZE = 40
MARGIN = 30


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "200000"}) as program:
        program.wait_ready(seconds=DEADLINE)
        program.client.timeout = DEADLINE
        yield program


def drawn(*lines: str, mode: str = "RGB", ink: Any = "black", paper: Any = "white") -> Any:
    """Return an image with lines of text, in Pillow's own TrueType font."""
    # Not narrower: the detector enlarges the shorter side, and would take four times as long.
    image = Image.new(mode, (640, max(480, MARGIN + 2 * SIZE * len(lines))), paper)
    font = ImageFont.load_default(SIZE)
    for place, line in enumerate(lines):
        ImageDraw.Draw(image).text((MARGIN, MARGIN + 2 * SIZE * place), line, fill=ink, font=font)
    return image


def saved(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def lines_of(program: Program, image: bytes) -> list[dict[str, Any]]:
    answer = program.client.post("/inference", content=image)
    assert answer.status_code == 200, answer.text
    lines: list[dict[str, Any]] = answer.json()["lines"]
    return lines


def words_of(program: Program, image: bytes) -> str:
    """Return the letters of an image; gaps between words, and which letters are capitals, the model often misses."""
    return "".join(line["text"] for line in lines_of(program, image)).replace(" ", "").lower()


def upside_down(image: Any) -> bytes:
    """Return an image as a camera saves it that was held upside down: turned, and with a note of that."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return saved(image.rotate(180), "JPEG", exif=exif)


# What is drawn, and the file that is made of it.
FORMS = {
    "rgb": saved(drawn("Colour", "Photograph")),
    "jpeg": saved(drawn("Invoice 12345", "Total 678"), "JPEG"),
    "webp": saved(drawn("Weather", "Report"), "WEBP"),
    "grey": saved(drawn("Grey", "Scale", mode="L")),
    "bilevel": saved(drawn("Fax", "Machine", mode="1", ink=0, paper=1)),
    "deep": saved(Image.fromarray(np.asarray(drawn("Sixteen", "Bits", mode="L")).astype(np.uint16) * 257)),
    "palette": saved(drawn("Palette", "Colours").quantize(8), "GIF"),
    "transparent": saved(drawn("Clear", "Ground", mode="RGBA", paper=(0, 0, 0, 0))),
    "dark": saved(drawn("Night", "Screen", ink="white", paper="black"), "BMP"),
    "exif": upside_down(drawn("Camera", "Turned")),
}
WORDS = {
    "rgb": "colourphotograph",
    "jpeg": "invoice12345total678",
    "webp": "weatherreport",
    "grey": "greyscale",
    "bilevel": "faxmachine",
    "deep": "sixteenbits",
    "palette": "palettecolours",
    "transparent": "clearground",
    "dark": "nightscreen",
    "exif": "cameraturned",
}


def test_each_of_several_clients_gets_the_words_of_its_image_whatever_its_form(program: Program) -> None:
    with ThreadPoolExecutor(len(FORMS)) as threads:
        answers = dict(zip(FORMS, threads.map(lambda image: words_of(program, image), FORMS.values()), strict=True))
    assert answers == WORDS


def test_the_lines_of_several_images_are_read_together_and_each_client_gets_its_own(program: Program) -> None:
    animals = ("Horse", "Tiger", "Eagle", "Mouse", "Whale", "Zebra")
    colours = ("Red", "Green", "Brown", "White", "Black", "Orange", "Grey", "Purple", "Amber", "Pink")
    pages = [drawn(*(f"{animal} {colour}" for colour in colours)) for animal in animals]
    before = program.batches("Recognize_3")
    with ThreadPoolExecutor(len(pages)) as threads:
        answers = list(threads.map(lambda page: lines_of(program, saved(page)), pages))
    for animal, lines in zip(animals, answers, strict=True):
        texts = [line["text"].replace(" ", "") for line in lines]
        assert texts == [f"{animal}{colour}" for colour in colours]
    images, batches = np.subtract(program.batches("Recognize_3"), before)
    assert images == len(pages)
    assert images / batches > 1


def test_a_line_has_its_confidence_and_its_place_in_the_image_also_in_one_that_is_reduced(program: Program) -> None:
    image = drawn("Upper", "Lower")
    large = image.resize((image.width * 5, image.height * 5))
    assert max(large.size) > 2000
    for picture, factor in [(image, 1), (large, 5)]:
        lines = lines_of(program, saved(picture))
        assert [line["text"] for line in lines] == ["Upper", "Lower"]
        assert all(0.9 < line["confidence"] <= 1 for line in lines)
        for place, line in enumerate(lines):
            left, top, right, bottom = ImageDraw.Draw(image).textbbox(
                (MARGIN, MARGIN + 2 * SIZE * place), line["text"], font=ImageFont.load_default(SIZE)
            )
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            assert np.array(line["box"]) / factor == pytest.approx(np.array(corners), abs=SIZE / 4)


def test_an_image_without_text_has_no_lines_however_small_or_narrow_it_is(program: Program) -> None:
    for size in [(300, 200), (1, 1), (1, 30_000)]:
        assert lines_of(program, saved(Image.new("RGB", size, "white"))) == []


# -- what is refused ---------------------------------------------------------------------------------------------------


def claiming(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file, which says how large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"no image", 400, "decoding error: the body is no image that can be read; send one of PNG, JPEG"),
        (b"%PDF-1.7\n", 400, "the body is no image"),
        (b"GIF89a", 400, "the body is no image"),
        (FORMS["jpeg"][:4000], 400, "the image is damaged"),
        (claiming(100, 100), 400, "the image is damaged"),
        (saved(Image.new("L", (6000, 5000))), 422, "the image has 6000 x 5000 pixels, and 25000000 at most are read"),
        (claiming(200_000, 200_000), 422, "the image has 200000 x 200000 pixels"),
    ],
    ids=["text", "pdf", "head", "cut-off", "no-pixels", "large", "bomb"],
)
def test_what_is_no_image_or_too_large_is_refused(program: Program, body: bytes, status: int, told: str) -> None:
    answer = program.client.post("/inference", content=body)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


# -- its commands ------------------------------------------------------------------------------------------------------


def run_client(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


def test_the_client_prints_the_text_of_each_image(program: Program, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(FORMS["rgb"])
    bad.write_bytes(b"no image")
    read = run_client("--url", program.url, good)
    assert (read.returncode, read.stdout) == (0, f"{good}:\n    Colour\n    Photograph\n")
    several = run_client("--url", program.url, "--json", bad, good)
    rows = [json.loads(line) for line in several.stdout.splitlines()]
    assert (several.returncode, [row["path"] for row in rows]) == (1, [str(bad), str(good)])
    assert "no image" in rows[0]["error"]
    assert [line["text"] for line in rows[1]["lines"]] == ["Colour", "Photograph"]


def test_the_client_says_what_is_wrong(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(b"no image")
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments, told in [
        (("--url", nobody, file), f"No answer from {nobody}"),
        (("--url", program.url, file), "image.png: 400: decoding error: "),
        (("--url", program.url, tmp_path / "none.png"), "none.png: cannot be read: No such file"),
    ]:
        done = run_client(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert told in done.stderr
