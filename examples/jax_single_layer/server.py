"""A single layer, jitted by jax: POST 64 numbers, get the likelihoods of 10 classes.

    python examples/jax_single_layer/server.py --port 8000
    python examples/jax_single_layer/client.py

jax compiles a function anew for each shape that it is called with, and a batch here may have any size from 1 to 64. So
batches are padded to the next of four sizes, and all four are compiled before the worker is ready: no request waits for
the compiler. Each compilation is a line in the log.
"""

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mosec_asgi import Server, get_logger
from mosec_asgi.mixin import PydanticMixin

INPUTS = 64
CLASSES = 10
# A batch of 5 is computed as one of 16. More sizes waste less of that, and take longer to start.
SIZES = (1, 4, 16, 64)

Matrix = npt.NDArray[np.float32]


class Vector(BaseModel):
    """What to classify."""

    model_config = ConfigDict(strict=True, extra="forbid")

    # Bounded, so that no sum of the layer overflows.
    inputs: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(min_length=INPUTS, max_length=INPUTS)


class Likelihoods(BaseModel):
    """How likely each class is."""

    likelihoods: list[float]


def parameters() -> tuple[Matrix, Matrix]:
    """Return the layer's weights and biases; a real one would load what it was trained to."""
    random = np.random.default_rng(0)
    weights = random.normal(scale=INPUTS**-0.5, size=(INPUTS, CLASSES))
    return weights.astype(np.float32), random.normal(size=CLASSES).astype(np.float32)


class Layer(PydanticMixin):
    """Classify a vector by one layer of a network."""

    multi_examples = [[Vector(inputs=[0.0] * INPUTS)] * size for size in SIZES]

    def __init__(self) -> None:
        # Here, and not above: the process that speaks HTTP imports this module too, and needs no jax.
        import jax

        weights, biases = parameters()

        def layer(batch: Any) -> Any:
            # jax runs this body only when it compiles for a new shape, and never to compute.
            get_logger().info("compiling for a batch of %d", batch.shape[0])
            return jax.nn.softmax(batch @ weights + biases)

        self.layer = jax.jit(layer)

    def forward(self, data: list[Vector]) -> list[Likelihoods]:
        """Compute a batch as one of the next larger size that is compiled."""
        batch = np.zeros((next(size for size in SIZES if size >= len(data)), INPUTS), np.float32)
        batch[: len(data)] = [vector.inputs for vector in data]
        rows = np.asarray(self.layer(batch))[: len(data)].tolist()
        return [Likelihoods(likelihoods=row) for row in rows]


server = Server()
server.append_worker(Layer, max_batch_size=SIZES[-1])

if __name__ == "__main__":
    server.run()
