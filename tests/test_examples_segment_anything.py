"""The segment-anything example from end to end, with a tiny model of the same classes in place of the real one."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_models
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, free_port, running
from PIL import Image, ImageDraw

from examples.segment_anything import server

# As the server finds it: by its folder, which it adds to the path.
import sam  # isort: skip

EXAMPLE = ROOT / "examples" / "segment_anything"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_models.environment("segment_anything", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def program(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The example under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment=environment) as program:
        program.wait_ready(seconds=120)
        yield program


def drawn(width: int, height: int, color: str = "gold") -> Image.Image:
    image = Image.new("RGB", (width, height), "navy")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=color)
    return image


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def post(program: Program, **prompt: Any) -> Any:
    return program.client.post("/inference", content=msgspec.msgpack.encode(prompt))


def points_of(*places: tuple[float, float], inside: bool = True) -> list[dict[str, Any]]:
    return [{"x": x, "y": y, "inside": inside} for x, y in places]


def masks_of(answer: Any) -> tuple[list[float], np.ndarray]:
    """Return the scores and the masks of an answer."""
    assert answer.status_code == 200, answer.text
    found = msgspec.msgpack.decode(answer.content)
    masks = []
    for mask in found["masks"]:
        runs = np.arange(len(mask["counts"])) % 2 == 1
        masks.append(np.repeat(runs, mask["counts"]).reshape(found["width"], found["height"]).T)
    return [mask["score"] for mask in found["masks"]], np.array(masks)


def by_the_model(folder: str, image: Image.Image, **prompts: Any) -> tuple[list[float], np.ndarray]:
    """Return what the model itself finds, the best mask first."""
    # Imported here, and not by each process that collects the tests: it takes seconds.
    import torch
    from transformers import SamImageProcessorPil, SamModel, SamProcessor

    processor = SamProcessor(SamImageProcessorPil.from_pretrained(folder))
    inputs = processor(image, return_tensors="pt", **prompts)
    with torch.inference_mode():
        found = SamModel.from_pretrained(folder).eval()(**inputs)
    [masks] = processor.image_processor.post_process_masks(
        found.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    scores = found.iou_scores[0, 0].numpy()
    order = np.argsort(-scores)
    return scores[order].tolist(), masks[0].numpy()[order]


def test_each_answer_is_the_models_own_also_in_batches(program: Program, environment: dict[str, str]) -> None:
    """Images of several forms, with points, a box, and both, from several clients at once."""
    asked: list[tuple[Image.Image, dict[str, Any], dict[str, Any]]] = []
    for width, height, color in ((120, 80, "gold"), (50, 90, "red"), (64, 64, "white")):
        image, place, box = drawn(width, height, color), (width // 3, height // 3), [10.0, 5.0, 40.0, 45.0]
        corner = (0, height - 1)
        points = points_of(place) + points_of(corner, inside=False)
        their_points = {"input_points": [[[list(place), list(corner)]]], "input_labels": [[[1, 0]]]}
        asked.append((image, {"points": points}, their_points))
        asked.append((image, {"box": box}, {"input_boxes": [[box]]}))
        asked.append((image, {"points": points, "box": box}, {**their_points, "input_boxes": [[box]]}))

    answers = program.ask_together("Encode_2", lambda ours: post(program, image=encoded(ours[0]), **ours[1]), asked)
    for (image, _, theirs), answer in zip(asked, answers, strict=True):
        scores, masks = masks_of(answer)
        expected_scores, expected = by_the_model(environment["SAM_MODEL"], image, **theirs)
        assert scores == pytest.approx(expected_scores, abs=1e-4)
        assert masks.shape == (3, image.height, image.width)
        # A pixel on the border may fall to either side, as sums are made in another order.
        assert (masks != expected).mean() < 0.001
    assert len({answer.content for answer in answers}) == len(answers)
    assert "warm-up failed" not in program.output


def test_a_photo_that_lies_on_its_side_is_answered_as_it_is_looked_at(program: Program) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    answer = post(program, image=encoded(drawn(60, 40), "JPEG", exif=exif), points=points_of((30, 50)))
    assert masks_of(answer)[1].shape == (3, 60, 40)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": b"no image at all"}, "no JPEG, PNG, WEBP file"),
        ({"image": encoded(drawn(60, 40))[:100]}, "no JPEG, PNG, WEBP file"),
        ({"image": encoded(drawn(60, 40), "GIF")}, "no JPEG, PNG, WEBP file"),
        ({"image": encoded(Image.new("1", (5000, 5000)))}, "5000 x 5000 pixels, and 16777216 are the most"),
        ({"image": encoded(Image.new("1", (1, 200)))}, "1 x 200 pixels: one side is over 50 times the other"),
        ({"image": "text"}, "Expected `bytes`"),
        ({"points": []}, "'points' at least, or a 'box'"),
        ({"points": points_of((60, 0))}, "the point 60, 0 is not in the image of 60 x 40"),
        ({"points": points_of((float("nan"), 0))}, "the point nan, 0 is not in the image"),
        ({"points": [{"x": 1}]}, "`y` - at `$.points[0]`"),
        ({"points": points_of(*[(1, 1)] * 33)}, "length <= 32"),
        ({"box": [0, 0, 61, 40]}, "'box' must be left < right"),
        ({"box": [5, 5, 5, 9]}, "'box' must be left < right"),
        ({"boxes": []}, "unknown field `boxes`"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(program: Program, changes: dict[str, Any], told: str) -> None:
    answer = post(program, **{"image": encoded(drawn(60, 40)), "points": points_of((1, 1)), **changes})
    assert (answer.status_code, told in answer.text) == (422, True), answer.text


def test_what_is_no_msgpack_and_what_has_no_image_is_refused(program: Program) -> None:
    assert program.client.post("/inference", content=b"\xc1").status_code == 400
    answer = post(program, points=points_of((1, 1)))
    assert (answer.status_code, "missing required field `image`" in answer.text) == (422, True)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [([[0, 1], [0, 1]], [2, 2]), ([[1, 0], [1, 1]], [0, 2, 1, 1]), ([[0, 0]], [2]), ([[1]], [0, 1])],
)
def test_runs_go_down_the_columns_and_begin_outside(mask: list[list[int]], counts: list[int]) -> None:
    assert sam.run_lengths(np.array(mask, bool)) == counts


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_client_saves_the_best_mask(program: Program, tmp_path: Path) -> None:
    photo, output = tmp_path / "photo.png", tmp_path / "mask.png"
    photo.write_bytes(encoded(drawn(70, 40)))
    prompt = ["--point", "20,15", "--not-point", "0,0", "--box", "10,5,40,30"]
    done = run_client(str(photo), *prompt, "--output", str(output), "--url", program.url)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 3)
    points = points_of((20, 15)) + points_of((0, 0), inside=False)
    _, masks = masks_of(post(program, image=photo.read_bytes(), points=points, box=[10, 5, 40, 30]))
    assert np.array_equal(np.asarray(Image.open(output)) == 255, masks[0])


def test_the_client_says_in_one_line_what_is_wrong(program: Program, tmp_path: Path) -> None:
    photo, sound = tmp_path / "photo.png", tmp_path / "sound.png"
    photo.write_bytes(b"no image")
    sound.write_bytes(encoded(drawn(30, 30)))
    unwritten = run_client(str(sound), "--point", "1,1", "--url", program.url, "--output", f"{tmp_path}/mask.mp3")
    refused = run_client(str(photo), "--point", "1,1", "--url", program.url)
    missing = run_client(f"{photo}.gone", "--point", "1,1", "--url", program.url)
    nobody = run_client(str(photo), "--point", "1,1", "--url", f"http://127.0.0.1:{free_port()}")
    told_of = {"422: ": refused, "cannot be read": missing, "cannot be written": unwritten, "server.py": nobody}
    for told, done in told_of.items():
        assert (done.returncode, done.stderr.count("\n"), told in done.stderr) == (1, 1, True), done.stderr


@pytest.mark.parametrize("stage", [server.Read, server.Encode, server.Segment])
def test_a_model_that_is_not_there_is_told_with_the_variable_to_set(stage: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sam, "MODEL", "/no/such/folder")
    with pytest.raises(RuntimeError, match="SAM_MODEL=/no/such/folder cannot be loaded: it must be a folder"):
        stage()


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("segment_anything", program, tmp_path)
