"""Workers whose items have a cost and a key; what they return says what shared their batch."""

from __future__ import annotations

from typing import Any

from mosec_asgi import ClientError, Worker


class Costs(Worker):
    """Answers each item with the whole batch that it was in."""

    @staticmethod
    def cost(item: Any) -> int:
        if item["cost"] == "wrong":
            raise ValueError("a secret")
        return item["cost"]  # type: ignore[no-any-return]  # what the test says

    @staticmethod
    def batch_key(item: Any) -> str:
        if item["key"] == "unknown":
            raise ClientError("there is no adapter of that name")
        return item["key"]  # type: ignore[no-any-return]  # what the test says

    def forward(self, data: list[Any]) -> list[Any]:
        return [[(item["name"], item["cost"], item["key"]) for item in data]] * len(data)


class Bodies(Costs):
    """Reads its items' cost and key from the body, where that is a request's."""

    @staticmethod
    def cost_of_body(body: bytes) -> int:
        return int(body.split(b'"cost":')[1].split(b",")[0])

    @staticmethod
    def batch_key_of_body(body: bytes) -> str:
        return body.split(b'"key":"')[1].split(b'"')[0].decode()


class Before(Worker):
    """Passes its items on, with an array where they ask for one."""

    def forward(self, data: Any) -> Any:
        if data.pop("large", False):
            data["bytes"] = bytes(100_000)
        return data
