"""Workers for tests of the open inference protocol: what is described and what is not, batched, streaming, of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mosec_asgi import ClientError, Server, SSEWorker, ValidationError, Worker
from mosec_asgi.protocols import OpenAI, OpenInference, Tensor


class Echo(Worker):
    """Returns what it is given."""

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        return [{name: value for name, value in item.items() if name != "parameters"} for item in data]


class Half(Echo):
    """The same for BF16, whose values are float32 to a worker."""

    inputs = outputs = [Tensor("bf16", "BF16", [-1, -1])]


class Sum(Worker):
    """Adds up three numbers, `times` what the parameters say; one of them may be an order."""

    inputs = [Tensor("x", "FP32", [-1, 3]), Tensor("name", "BYTES", [-1], text=True)]
    outputs = [Tensor("sum", "FP32", [-1]), Tensor("who", "BYTES", [-1, 1]), Tensor("batch", "INT64", [-1])]

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        return [self.one(item, len(data)) for item in data]

    def one(self, item: dict[str, Any], batch: int) -> Any:
        if item["name"] == "bad":
            return ClientError("a bad name")
        if item["name"] == "invalid":
            return ValidationError("an invalid name")
        if item["name"] == "broken":
            return {"sum": "none"}
        total = np.asarray(item["x"], np.float32).sum() * item.get("parameters", {}).get("times", 1)
        return {"sum": total, "who": [item["name"]], "batch": batch}


class Embed(Worker):
    """A vector of a text, whoever sends it: an item is the text itself."""

    inputs = Tensor("text", "BYTES", [-1], text=True)
    outputs = Tensor("vector", "FP32", [-1, 2])

    def forward(self, data: list[str]) -> list[Any]:
        return [[float(len(text)), float(len(data))] for text in data]


class Write(SSEWorker):
    """Says again what was said, word by word."""

    inputs = [Tensor("text_input", "BYTES", [-1, 1], text=True)]
    outputs = Tensor("text_output", "BYTES", [-1])

    def forward(self, data: dict[str, Any]) -> Iterator[Any]:
        for word in str(data["text_input"][0]).split()[: data.get("parameters", {}).get("max_tokens", 100)]:
            if word == "fail":
                raise ValidationError("a word that fails")
            yield f"{word} "


class Count(SSEWorker):
    """Counts, a number at a time."""

    def forward(self, data: dict[str, Any]) -> Iterator[Any]:
        for number in range(int(data["n"])):
            yield {"number": number, "half": number / 2}


def serve(**more: Any) -> Server:
    """Return a server of all of them."""
    server = Server(timeout=20_000, compression=True)
    server.append_worker(Echo, max_batch_size=32, route="/echo")
    server.append_worker(Sum, max_batch_size=32, route="/sum")
    # In threads, beside the processes of those above: a process for each takes long to start.
    server.append_worker(Embed, max_batch_size=32, route="/embed", executor="thread")
    server.append_worker(Write, route="/write", executor="thread")
    server.append_worker(Count, route="/count", executor="thread")
    server.append_worker(Half, max_batch_size=32, route="/half", executor="thread")
    models = {"half": "/half", "echo": "/echo", "sum": "/sum", "embed": "/embed", "write": "/write", "count": "/count"}
    server.add_protocol(OpenInference(models, **{"versions": {"sum": "3"}, **more}))
    server.add_protocol(OpenAI(embeddings={"lengths": "/embed"}))
    return server


server = serve()

if __name__ == "__main__":
    server.run()
