"""An array, from the stage that makes it to the one that reads it, one request at a time."""

from typing import Any

import numpy as np
from package import Server, Worker


class Make(Worker):
    """Makes an array as long as it is asked to."""

    def forward(self, data: Any) -> Any:
        """Return an array of `length` times `value`."""
        return np.full(data["length"], data["value"], dtype=np.float32)


class Mean(Worker):
    """Reads all of an array."""

    def forward(self, data: Any) -> Any:
        """Return the mean."""
        return {"mean": float(data.mean())}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Make)
    server.append_worker(Mean)
    server.run()
