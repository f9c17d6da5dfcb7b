"""Models for tests of gRPC, in threads; and a service of them, as a program: its ports stand in the environment."""

from __future__ import annotations

import os
import time
from typing import Any

import open_inference_workers as models

from mosec_asgi import Server, Worker
from mosec_asgi.protocols import OpenInference, Tensor


class Sleep(Worker):
    """Takes as many seconds as it is told, and returns them."""

    inputs = [Tensor("seconds", "FP32", [-1])]
    outputs = [Tensor("slept", "FP32", [-1])]

    def forward(self, data: dict[str, Any]) -> Any:
        until = time.monotonic() + float(data["seconds"])
        while time.monotonic() < until and not self.is_cancelled():
            time.sleep(0.01)
        if data["seconds"] < 0:
            raise ArithmeticError("secret")
        return {"slept": data["seconds"]}


def serve(timeout: int = 20_000, port: int = 0, **settings: Any) -> tuple[Server, OpenInference]:
    """Return a server of all models, and its protocol."""
    server = Server(timeout=timeout, **settings)
    server.append_worker(models.Echo, max_batch_size=32, route="/echo", executor="thread")
    server.append_worker(models.Sum, max_batch_size=32, route="/sum", executor="thread")
    server.append_worker(models.Write, num=2, route="/write", executor="thread")
    server.append_worker(models.Count, num=2, route="/count", executor="thread")
    server.append_worker(Sleep, num=2, route="/sleep", executor="thread")
    names = ("echo", "sum", "write", "count", "sleep")
    protocol = OpenInference({name: f"/{name}" for name in names}, grpc_port=port, grpc_host="127.0.0.1")
    server.add_protocol(protocol)
    return server, protocol


server, protocol = serve(port=int(os.environ.get("GRPC_PORT", "0")), max_request_size=1 << 20)

if __name__ == "__main__":
    server.run()
