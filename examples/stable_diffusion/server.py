"""Stable Diffusion: POST a prompt as JSON, get a picture as PNG.

    python examples/stable_diffusion/server.py --port 8000
    curl http://127.0.0.1:8000/inference -d '{"prompt": "a lighthouse at dusk", "seed": 7}' --output lighthouse.png

Three stages. `Read` checks a request, and that the model reads all of its prompt. `Paint` runs the pipeline for the
prompts of up to four clients at once; those that differ in steps, size or guidance are painted one after the other.
`Write` makes the file, so that no GPU waits for it.

Two variables of the environment say what runs where. `DIFFUSION_MODEL` is a folder, or the id of a model on the hub.
`DIFFUSION_GPUS`, like `0,1`, gives each of these GPUs a worker of `Paint`; without it there is one, which takes the
first GPU that it finds, or else the processor.
"""

import io
import os
import secrets
from collections import defaultdict
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mosec_asgi import Server, ValidationError, Worker, get_logger
from mosec_asgi.mixin import PydanticMixin

MODEL = os.environ.get("DIFFUSION_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5")
GPUS = [gpu for gpu in os.environ.get("DIFFUSION_GPUS", "").split(",") if gpu]
MAX_BATCH_SIZE = 4

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


# The processes that run no model import this module too: what takes seconds and hundreds of megabytes to import stands
# where it is used.
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
    if GPUS:
        raise RuntimeError(
            f"DIFFUSION_GPUS names GPU {os.environ['CUDA_VISIBLE_DEVICES']}, which torch {torch.__version__} cannot "
            "use: see what nvidia-smi lists, or unset it to run on the processor"
        )
    return "cpu"


class Read(PydanticMixin):
    """Paint a picture."""

    example = Picture(prompt="a lighthouse at dusk")

    def __init__(self) -> None:
        from transformers import CLIPTokenizer

        self.tokenizer = load(CLIPTokenizer, subfolder="tokenizer")

    def forward(self, data: Picture) -> Picture:
        """Check the lengths of the prompts, and choose a seed where the client has not."""
        for name in ("prompt", "negative_prompt"):
            tokens = len(self.tokenizer(getattr(data, name), verbose=False)["input_ids"])
            if tokens > self.tokenizer.model_max_length:
                raise ValidationError(
                    f"'{name}' has {tokens} tokens, and this model reads {self.tokenizer.model_max_length} at most: "
                    "what is beyond them would be ignored"
                )
        return data if data.seed is not None else data.model_copy(update={"seed": secrets.randbits(63)})


class Paint(Worker):
    """Run the pipeline for a batch of prompts."""

    example = [Picture(prompt="a lighthouse at dusk", steps=2, seed=0)] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        where = device()
        precision = torch.float16 if where == "cuda" else torch.float32
        self.pipeline = load(StableDiffusionPipeline, dtype=precision).to(where)
        self.pipeline.set_progress_bar_config(disable=True)
        get_logger().info("%s runs on %s", MODEL, where)

    def forward(self, data: list[Picture]) -> list[tuple[Picture, Pixels] | ValidationError]:
        """Paint all pictures of a batch, those that can be painted together at once."""
        groups = defaultdict(list)
        for place, picture in enumerate(data):
            groups[picture.steps, picture.guidance, picture.width, picture.height].append(place)
        painted: dict[int, tuple[Picture, Pixels] | ValidationError] = {}
        for places in groups.values():
            painted.update(zip(places, self.paint([data[place] for place in places]), strict=True))
        return [painted[place] for place in range(len(data))]

    def paint(self, pictures: list[Picture]) -> list[tuple[Picture, Pixels] | ValidationError]:
        """Paint pictures that are alike in all but prompts and seeds."""
        import torch

        first = pictures[0]
        done = self.pipeline(
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
        return [
            ValidationError("the model's safety checker keeps this picture back; try another prompt or seed")
            if bad
            else (picture, image)
            for picture, image, bad in zip(pictures, images, refused, strict=True)
        ]


class Write(Worker):
    """Write a picture as PNG."""

    resp_mime_type = "image/png"

    def forward(self, data: tuple[Picture, Pixels]) -> bytes:
        """Return the file; what the picture was made from is in its texts."""
        picture, pixels = data
        texts = PngInfo()
        for name in ("prompt", "negative_prompt", "steps", "guidance", "seed"):
            texts.add_itxt(name, str(getattr(picture, name)))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", pnginfo=texts)
        return file.getvalue()

    def serialize(self, data: bytes) -> bytes:
        """Return the file as it is."""
        return data


server = Server(timeout=120_000)
server.append_worker(Read)
server.append_worker(
    Paint,
    num=len(GPUS) or 1,
    max_batch_size=MAX_BATCH_SIZE,
    env=[{"CUDA_VISIBLE_DEVICES": gpu} for gpu in GPUS] or None,
)
server.append_worker(Write)

if __name__ == "__main__":
    server.run()
