"""The model: what may be asked of it, the lengths of prompts, the pipeline, the file.

The processes that run no model import this module too: what takes seconds and hundreds of megabytes to import stands
where it is used.
"""

import io
import os
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MODEL = os.environ.get("DIFFUSION_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5")

# Height, width and one of red, green and blue.
Pixels = npt.NDArray[np.uint8]


def whole(value: object) -> object:
    """Return 5.0 as 5: to JSON, unlike to strict pydantic, they are the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Steps = Annotated[int, Field(ge=1, le=50), BeforeValidator(whole)]
Side = Annotated[int, Field(ge=64, le=768, multiple_of=8), BeforeValidator(whole)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(whole)]


class Picture(BaseModel):
    """What to paint, and how."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str = Field(min_length=1, max_length=1000, description="At most 75 tokens: some 50 words.")
    negative_prompt: str = Field(default="", max_length=1000, description="What not to paint.")
    steps: Steps = Field(default=25, description="More take longer, and may be better.")
    guidance: float = Field(default=7.5, ge=1, le=20, description="How closely to follow the prompt.")
    width: Side | None = Field(default=None, description="Default: what the model was trained with.")
    height: Side | None = Field(default=None, description="Default: what the model was trained with.")
    seed: Seed | None = Field(default=None, description="The same seed gives the same picture.")


def load(kind: Any, **options: Any) -> Any:
    """Return what `kind.from_pretrained` makes of MODEL; raise an error that names the variable to set."""
    try:
        loaded = kind.from_pretrained(MODEL, **options)
        # Where its files are missing, transformers makes up a tokenizer that knows no word.
        if hasattr(loaded, "all_special_ids") and len(loaded) <= len(loaded.all_special_ids):
            raise ValueError("the tokenizer has no vocabulary")
        return loaded
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"DIFFUSION_MODEL={MODEL} cannot be loaded: it must be a folder with a StableDiffusionPipeline, "
            "or the id of one on the hub, which must be in reach"
        ) from error


def device() -> str:
    """Return where the pipeline runs; raise an error where a GPU was asked for and is not there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("DIFFUSION_GPUS"):
        raise RuntimeError(
            f"DIFFUSION_GPUS names GPU {os.environ['CUDA_VISIBLE_DEVICES']}, which torch {torch.__version__} cannot "
            "use: see what nvidia-smi lists, or unset it to run on the processor"
        )
    return "cpu"


class Tokenizer:
    """Counts the tokens of a prompt."""

    def __init__(self) -> None:
        from transformers import CLIPTokenizer

        self._tokenizer = load(CLIPTokenizer, subfolder="tokenizer")
        self.limit: int = self._tokenizer.model_max_length

    def count(self, prompt: str) -> int:
        """Return how many tokens a prompt has, with those that the model wants around it."""
        return len(self._tokenizer(prompt, verbose=False)["input_ids"])


class Pipeline:
    """Stable Diffusion."""

    def __init__(self) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        self.device = device()
        precision = torch.float16 if self.device == "cuda" else torch.float32
        self.run = load(StableDiffusionPipeline, dtype=precision).to(self.device)
        self.run.set_progress_bar_config(disable=True)

    def paint(self, pictures: list[Picture]) -> list[Pixels | None]:
        """Paint pictures that differ in prompts and seeds only; None is one that the safety checker keeps back."""
        import torch

        first = pictures[0]
        done = self.run(
            prompt=[picture.prompt for picture in pictures],
            negative_prompt=[picture.negative_prompt for picture in pictures],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            width=first.width,
            height=first.height,
            # One for each, and on the processor: what a seed gives depends neither on its batch nor on the GPU.
            generator=[torch.Generator("cpu").manual_seed(picture.seed or 0) for picture in pictures],
            output_type="np",
        )
        refused = done.nsfw_content_detected or [False] * len(pictures)
        images = (done.images * 255).round().astype(np.uint8)
        return [None if bad else image for image, bad in zip(images, refused, strict=True)]


def png(picture: Picture, pixels: Pixels) -> bytes:
    """Return the file; what the picture was made from is in its texts."""
    texts = PngInfo()
    for name in ("prompt", "negative_prompt", "steps", "guidance", "seed"):
        texts.add_itxt(name, str(getattr(picture, name)))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", pnginfo=texts)
    return file.getvalue()
