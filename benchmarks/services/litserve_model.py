"""`model.py` for LitServe: the same time for a batch, the same limits."""

import time
from collections.abc import Sequence
from typing import Any

import litserve
from litserve_api import serve

SECONDS_PER_BATCH = 0.005
SECONDS_PER_ITEM = 0.0001


class Model(litserve.LitAPI):
    """Answers what it is asked, after a model's time."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def predict(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return the batch after a batch's time."""
        time.sleep(SECONDS_PER_BATCH + SECONDS_PER_ITEM * len(data))
        return data


if __name__ == "__main__":
    serve(Model(max_batch_size=64, batch_timeout=0.01, api_path="/inference"))
