"""An environment for each worker: here a GPU each, by CUDA_VISIBLE_DEVICES.

    python examples/environment/server.py --port 8000
    python examples/environment/client.py --count 20

The variables are set before a worker's process starts, and so before any library reads them. A worker that dies has the
same ones in its next life. No GPU is needed to see it.
"""

import os
from typing import Any

from mosec_asgi import Server, Worker

GPUS = ("0", "1")


class Where(Worker):
    """Say which worker answers, and which GPU it may see. A model would be loaded in `__init__`, onto `cuda:0`."""

    def __init__(self) -> None:
        self.gpu = os.environ["CUDA_VISIBLE_DEVICES"]

    def forward(self, data: object) -> dict[str, Any]:
        """Return the worker's number and its GPU."""
        return {"worker": self.worker_id, "gpu": self.gpu}


server = Server()
server.append_worker(Where, num=len(GPUS), env=[{"CUDA_VISIBLE_DEVICES": gpu} for gpu in GPUS])

if __name__ == "__main__":
    server.run()
