"""Msgpack, typed and not, towards the client, and numpy arrays between two stages."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from mosec import Server, ValidationError, Worker
from mosec.mixin import MsgpackMixin, NumBinIPCMixin, TypedMsgPackMixin


class Order(msgspec.Struct):
    name: str
    count: int
    tags: list[str] = []


class Receipt(msgspec.Struct):
    name: str
    total: float
    raw: bytes = b""


class Describe(MsgpackMixin, Worker):
    """What has arrived, and of which type it is."""

    def forward(self, data: Any) -> dict[str, Any]:
        return {"type": type(data).__name__, "data": data}


class Strange(MsgpackMixin, Worker):
    """A result that msgpack cannot hold."""

    def forward(self, data: Any) -> object:
        return object()


class Sell(TypedMsgPackMixin, Worker):
    def forward(self, data: Order) -> Receipt:
        if data.count < 0:
            raise ValidationError("nothing is taken back")
        return Receipt(data.name, data.count * 2.5, "".join(data.tags).encode())


class SellMany(TypedMsgPackMixin):
    def forward(self, data: list[Order]) -> list[Receipt]:
        return [Receipt(order.name, order.count * 2.5) for order in data]


class Load(NumBinIPCMixin, MsgpackMixin, Worker):
    def forward(self, data: dict[str, Any]) -> np.ndarray:
        return np.array(data["values"], dtype=data["type"]).reshape(data["shape"])


class Scale(NumBinIPCMixin, MsgpackMixin, Worker):
    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        for array in data:
            array *= 2
        return [{"values": array.tolist(), "type": array.dtype.name, "shape": array.shape} for array in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Describe, route="/msgpack")
    server.append_worker(Strange, route="/strange")
    server.append_worker(Sell, route="/typed")
    server.append_worker(SellMany, max_batch_size=4, route="/typed-batch")
    server.append_worker(Load, route="/array")
    server.append_worker(Scale, max_batch_size=4, route="/array")
    server.run()
