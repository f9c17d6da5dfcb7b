"""Three stages, the middle one batching with two replicas; Python objects travel between them."""

from __future__ import annotations

from typing import Any

from mosec import Server, ValidationError, Worker


class Preprocess(Worker):
    def forward(self, data: dict[str, Any]) -> tuple[str, set[str]]:
        if not isinstance(data.get("text"), str):
            raise ValidationError("text must be a string")
        text = data["text"].strip().lower()
        return text, set(text)


class Inference(Worker):
    def forward(self, data: list[tuple[str, set[str]]]) -> list[dict[str, Any]]:
        return [{"text": text, "letters": sorted(letters), "count": len(text)} for text, letters in data]


class Postprocess(Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["count"] == 13:
            raise ValidationError("thirteen letters bring bad luck")
        return {**data, "even": data["count"] % 2 == 0, "none": None, "nested": {"half": data["count"] / 2}}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Preprocess)
    server.append_worker(Inference, num=2, max_batch_size=4, max_wait_time=5)
    server.append_worker(Postprocess)
    server.run()
