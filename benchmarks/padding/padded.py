"""all-MiniLM-L6-v2 on tokens, padded to the longest text of each batch, as a model is that does not sort by itself."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mosec_asgi import Server, Worker

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "embedding" / "modules"))

from minilm import CONTEXT, MiniLM, load_tokenizer

__all__ = ["SIZE", "load_tokenizer", "make"]

# Texts in a plain batch, and what 32 of the longest have with their padding.
SIZE = 32
MOST_TOKENS = SIZE * CONTEXT


class Embed(Worker):
    """Returns the first number of each text's vector, to see that it is the right one, and its processor time."""

    example = [[101, *[2000] * 30, 102]] * SIZE

    def __init__(self) -> None:
        import torch

        # One thread each: two workers share the processors better than the threads of one.
        torch.set_num_threads(1)
        self.model = MiniLM()

    @staticmethod
    def cost(item: list[int]) -> int:
        """Count the tokens of a text."""
        return len(item)

    def forward(self, data: list[list[int]]) -> list[tuple[float, float]]:
        """Run a batch as it comes: each text takes as long as the longest."""
        began = time.process_time()
        vectors = self.model._run(data)
        seconds = (time.process_time() - began) / len(data)
        return [(float(vector[0]), seconds) for vector in vectors]


def make(*, by_cost: bool) -> Server:
    """Return a service that batches by count, or by what its texts cost."""
    server = Server(timeout=120_000, capacity=4096, load_shedding=False)
    if by_cost:
        # As many texts as there may be within the budget, which is the same in both.
        server.append_worker(Embed, 2, max_batch_size=8 * SIZE, max_batch_cost=MOST_TOKENS, sort_by_cost=True)
    else:
        server.append_worker(Embed, 2, max_batch_size=SIZE)
    return server
