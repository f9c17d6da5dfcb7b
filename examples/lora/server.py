"""One network with several low-rank adapters (LoRA): requests share a batch where they want the same adapter.

    python examples/lora/server.py --port 8000
    python examples/lora/client.py --adapter mirrored

The adapter of an item is its key, so that each batch runs one adapter, and all adapters share the workers and the
memory of the network. A language model with adapters is served in the same way.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from mosec_asgi import Server, Worker
from mosec_asgi.mixin import PydanticMixin

# Where workers find the module of the model.
sys.path.insert(0, str(Path(__file__).parent / "modules"))

Row = Annotated[list[Annotated[float, Field(ge=0, le=16)]], Field(min_length=8, max_length=8)]


class Question(BaseModel):
    """An image of a digit, 8 x 8 pixels from 0 to 16, and the adapter that is for such images."""

    image: Annotated[list[Row], Field(min_length=8, max_length=8)]
    adapter: Literal["none", "mirrored", "upside-down", "turned"] = "none"


class Answer(TypedDict):
    """Which digit it shows, and how sure that is, from 0 to 1."""

    digit: int
    probability: float


class Read(PydanticMixin, Worker):
    """Check the request, so that what decides about batches is no word of the client's."""

    def forward(self, data: Question) -> Question:
        """Return it."""
        return data


class Classify(Worker[Question, Answer]):
    """Run the network with the adapter of a batch."""

    example = [Question(image=[[0.0] * 8] * 8)] * 32

    @staticmethod
    def batch_key(item: Question) -> str:
        """Return the adapter: only items with the same one share a batch."""
        return item.adapter

    def __init__(self) -> None:
        # Here, not above: it imports torch, of which the process that speaks HTTP has no need.
        from adapters import Network

        self.network = Network()

    def forward(self, data: list[Question]) -> list[Answer]:
        """Return the digits of a batch, all of whose items have the adapter of the first."""
        read = self.network.read([each.image for each in data], data[0].adapter)
        return [{"digit": digit, "probability": probability} for digit, probability in read]


server = Server()
server.append_worker(Read)
server.append_worker(Classify, max_batch_size=32, max_wait_time=5)

if __name__ == "__main__":
    server.run()
