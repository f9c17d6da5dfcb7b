"""The Stable Diffusion example from end to end, with a tiny pipeline of the same classes in place of the real one."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, free_port, running
from PIL import Image

from examples.stable_diffusion import server

# As the server finds it: by its folder, which it adds to the path.
import diffusion  # isort: skip
from mosec_asgi import ValidationError

EXAMPLE = ROOT / "examples" / "stable_diffusion"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_models.environment("stable_diffusion", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def program(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The example under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment=environment) as program:
        program.wait_ready(seconds=120)
        yield program


@pytest.fixture(scope="module")
def pipeline(environment: dict[str, str]) -> Any:
    # Imported here, and not by each process that collects the tests: it takes seconds.
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(environment["DIFFUSION_MODEL"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(program: Program, **body: Any) -> Image.Image:
    answer = program.client.post("/inference", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def difference(one: Image.Image, other: Image.Image) -> int:
    """Return by how much, of 255, two pictures differ where they do most."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_each_picture_is_the_pipelines_own_also_in_batches(program: Program, pipeline: Any) -> None:
    """Four clients have the same settings, two others differ in steps and size; all have seeds of their own."""
    import torch

    bodies: list[dict[str, Any]] = [{"prompt": f"number {n}", "seed": n, "steps": 3} for n in range(4)]
    bodies += [{"prompt": "number 4", "seed": 4, "steps": 5, "negative_prompt": "numbers"}]
    bodies += [{"prompt": "number 5", "seed": 2**63 - 1, "steps": 3, "width": 96, "height": 72, "guidance": 2}]
    pictures = program.ask_together("Paint_2", lambda body: paint(program, **body), bodies)
    for body, picture in zip(bodies, pictures, strict=True):
        options = {"num_inference_steps": body["steps"], "guidance_scale": body.get("guidance", 7.5)}
        for name in ("prompt", "negative_prompt", "width", "height"):
            options[name] = body.get(name)
        [alone] = pipeline(**options, generator=torch.Generator("cpu").manual_seed(body["seed"])).images
        assert picture.size == (body.get("width", 64), body.get("height", 64))
        # One step of brightness at most, as sums are made in another order.
        assert difference(picture, alone) <= 1
    assert all(difference(one, other) > 20 for one, other in itertools.combinations(pictures[:4], 2))
    assert "warm-up failed" not in program.output


def test_without_a_seed_pictures_differ_and_the_file_tells_the_seed(program: Program) -> None:
    one, other = (paint(program, prompt="a day", steps=2) for _ in range(2))
    assert difference(one, other) > 20
    assert (one.text["prompt"], one.text["steps"]) == ("a day", "2")  # type: ignore[attr-defined]
    again = paint(program, prompt="a day", steps=2, seed=int(one.text["seed"]))  # type: ignore[attr-defined]
    assert difference(one, again) <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": None}, '"loc":["prompt"]'),
        ({"prompt": ""}, "at least 1 character"),
        ({"prompt": "a" * 76}, "'prompt' has 78 tokens, and this model reads 77 at most"),
        ({"negative_prompt": "a" * 76}, "'negative_prompt' has 78 tokens"),
        ({"steps": 51}, "less than or equal to 50"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": 1.5}, "valid integer"),
        ({"width": 776}, "less than or equal to 768"),
        ({"height": 100}, "multiple of 8"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"size": 64}, '"loc":["size"]'),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(program: Program, changes: dict[str, Any], told: str) -> None:
    answer = program.client.post("/inference", json={"prompt": "a day", "steps": 1, **changes})
    assert (answer.status_code, told in answer.text) == (422, True), answer.text


def test_a_prompt_as_long_as_the_model_reads_is_painted(program: Program) -> None:
    assert paint(program, prompt="a" * 75, steps=1.0).size == (64, 64)


def test_what_the_safety_checker_keeps_back_is_refused_alone() -> None:
    def checked(prompt: list[str], **options: Any) -> SimpleNamespace:
        flags = [text == "bad" for text in prompt]
        return SimpleNamespace(images=np.ones((len(prompt), 8, 8, 3)), nsfw_content_detected=flags)

    stage = object.__new__(server.Paint)
    stage.pipeline = object.__new__(diffusion.Pipeline)
    stage.pipeline.run = checked
    good, refused = stage.forward([server.Picture(prompt=text) for text in ("good", "bad")])
    assert good[1].min() == 255
    assert isinstance(refused, ValidationError)


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_client_saves_the_picture(program: Program, tmp_path: Path) -> None:
    output = tmp_path / "picture.png"
    options = ["--seed", "3", "--steps", "3", "--size", "72x64", "--output", str(output), "--url", program.url]
    done = run_client("a day", *options)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(output), "")
    expected = paint(program, prompt="a day", seed=3, steps=3, width=72, height=64)
    assert difference(Image.open(output), expected) <= 1


def test_the_client_says_in_one_line_what_is_wrong(program: Program, tmp_path: Path) -> None:
    output = str(tmp_path / "picture.png")
    refused = run_client("a day", "--steps", "99", "--output", output, "--url", program.url)
    nobody = run_client("a day", "--output", output, "--url", f"http://127.0.0.1:{free_port()}")
    unwritten = run_client("a day", "--steps", "1", "--output", f"{output}/picture.png", "--url", program.url)
    for done, told in ((refused, "422: "), (nobody, "stable_diffusion/server.py"), (unwritten, "cannot be written")):
        assert (done.returncode, done.stderr.count("\n"), told in done.stderr) == (1, 1, True), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", [server.Read, server.Paint])
def test_a_model_that_is_not_there_is_told_with_the_variable_to_set(stage: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(diffusion, "MODEL", "/no/such/folder")
    with pytest.raises(RuntimeError, match="DIFFUSION_MODEL=/no/such/folder cannot be loaded: it must be a folder"):
        stage()


def test_a_folder_without_a_tokenizer_is_refused(environment: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copy(Path(environment["DIFFUSION_MODEL"], "model_index.json"), tmp_path)
    monkeypatch.setattr(diffusion, "MODEL", str(tmp_path))
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        server.Read()


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("stable_diffusion", program, tmp_path)
