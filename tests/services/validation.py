"""A batching model whose requests fail in every way in which a worker can fail one."""

from __future__ import annotations

from typing import Any

from mosec import ClientError, DecodingError, Server, ServerError, ValidationError, Worker


class Inference(Worker):
    def deserialize(self, data: bytes) -> Any:
        if data.startswith(b"garbled"):
            raise DecodingError("garbled\nbytes")
        return super().deserialize(data)

    def forward(self, data: list[dict[str, Any]]) -> list[dict[Any, Any]]:
        return [self.run_one(item, len(data)) for item in data]

    def run_one(self, item: dict[str, Any], batch_size: int) -> dict[Any, Any]:
        if "x" not in item:
            raise ValidationError("no x")
        if item["x"] == "client":
            raise ClientError("wrong currency")
        if item["x"] == "server":
            raise ServerError("out of stock")
        if item["x"] == "silent":
            raise ValidationError
        if item["x"] == "crash":
            raise RuntimeError("a secret")
        if item["x"] == "set":
            return {"y": {1, 2}}
        if item["x"] == "number keys":
            return {1: "one", 2: [None, True, 1.5, "ü"]}
        return {"y": item["x"] * 2, "batch_size": batch_size}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, max_batch_size=8)
    # The same with so long a wait that eight requests are one batch, however slowly they arrive.
    server.append_worker(Inference, max_batch_size=8, max_wait_time=2500, route="/batch")
    server.run()
