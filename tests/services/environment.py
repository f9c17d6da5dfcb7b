"""Each worker has an environment of its own, which is there before the worker's module is imported."""

from __future__ import annotations

import os
import time
from typing import Any

from mosec import Server, Worker

AT_IMPORT = os.environ.get("SERVICE_DEVICE", "unset")


class Inference(Worker):
    def forward(self, data: Any) -> dict[str, Any]:
        # Long enough for requests that come together to need both workers.
        time.sleep(0.02)
        return {"device": os.environ["SERVICE_DEVICE"], "at_import": AT_IMPORT, "worker_id": self.worker_id}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=2, env=[{"SERVICE_DEVICE": "0"}, {"SERVICE_DEVICE": "1"}])
    server.run()
