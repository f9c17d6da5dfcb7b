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

import os
import secrets
import sys
from collections import defaultdict
from pathlib import Path

from mosec_asgi import Server, ValidationError, Worker, get_logger
from mosec_asgi.mixin import PydanticMixin

# The module of the model, wherever it is imported from.
sys.path.insert(0, str(Path(__file__).parent / "modules"))
from diffusion import MODEL, Picture, Pipeline, Pixels, Tokenizer, png

GPUS = [gpu for gpu in os.environ.get("DIFFUSION_GPUS", "").split(",") if gpu]
MAX_BATCH_SIZE = 4

KEPT_BACK = ValidationError("the model's safety checker keeps this picture back; try another prompt or seed")
Painted = tuple[Picture, Pixels] | ValidationError


class Read(PydanticMixin):
    """Paint a picture."""

    example = Picture(prompt="a lighthouse at dusk")

    def __init__(self) -> None:
        self.tokenizer = Tokenizer()

    def forward(self, data: Picture) -> Picture:
        """Check the lengths of the prompts, and choose a seed where the client has not."""
        for name in ("prompt", "negative_prompt"):
            tokens, limit = self.tokenizer.count(getattr(data, name)), self.tokenizer.limit
            if tokens > limit:
                raise ValidationError(
                    f"'{name}' has {tokens} tokens, and this model reads {limit} at most: "
                    "what is beyond them would be ignored"
                )
        return data if data.seed is not None else data.model_copy(update={"seed": secrets.randbits(63)})


class Paint(Worker):
    """Run the pipeline for a batch of prompts."""

    example = [Picture(prompt="a lighthouse at dusk", steps=2, seed=0)] * MAX_BATCH_SIZE

    def __init__(self) -> None:
        self.pipeline = Pipeline()
        get_logger().info("%s runs on %s", MODEL, self.pipeline.device)

    def forward(self, data: list[Picture]) -> list[Painted]:
        """Paint all pictures of a batch, those that can be painted together at once."""
        groups = defaultdict(list)
        for place, picture in enumerate(data):
            groups[picture.steps, picture.guidance, picture.width, picture.height].append(place)
        painted: dict[int, Painted] = {}
        for places in groups.values():
            for place, pixels in zip(places, self.pipeline.paint([data[place] for place in places]), strict=True):
                painted[place] = KEPT_BACK if pixels is None else (data[place], pixels)
        return [painted[place] for place in range(len(data))]


class Write(Worker):
    """Write a picture as PNG."""

    resp_mime_type = "image/png"

    def forward(self, data: tuple[Picture, Pixels]) -> bytes:
        """Return the file."""
        return png(*data)

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
