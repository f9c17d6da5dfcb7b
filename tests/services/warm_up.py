"""A batching model that is warmed up with several examples, and one with a single one that does not fit."""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker


class Inference(Worker):
    multi_examples = [[{"n": 1}], [{"n": 2}, {"n": 3}], [{"n": 4}]]

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def forward(self, data: list[dict[str, int]]) -> list[Any]:
        self.seen.append([item["n"] for item in data])
        return [self.seen for _ in data]


class Careless(Worker):
    example = {"no": "n"}

    def forward(self, data: dict[str, int]) -> int:
        return data["n"] + 1


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, max_batch_size=4)
    server.append_worker(Careless, route="/careless")
    server.run()
