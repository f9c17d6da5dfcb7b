"""What users write, and type checkers have nothing to say of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mosec_asgi import ContinuousWorker, Event, Reply, Runtime, Server, SSEWorker, ValidationError, Worker
from mosec_asgi.mixin import MsgpackMixin, PydanticMixin

T = TypeVar("T")


class Untyped(Worker):
    def forward(self, data: dict[str, Any]) -> list[float]:
        return [float(data["x"])]


class Child(Untyped):
    def forward(self, data: dict[str, Any]) -> list[float]:
        return super().forward(data)


class One(Worker[str, int]):
    def __init__(self, path: str = "") -> None:
        self.path = path

    def forward(self, data: str) -> int:
        return len(data)


class Batch(Worker[str, int]):
    def forward(self, data: list[str]) -> list[int]:
        return [len(each) for each in data]


class BatchOfSequences(Worker[str, int]):
    def forward(self, data: Sequence[str]) -> tuple[int | Exception, ...]:
        return tuple(len(each) if each else ValidationError("empty") for each in data)


class Gathered(Worker[str, int]):
    async def one(self, text: str) -> int:
        return len(text)

    async def forward(self, data: list[str]) -> list[int | BaseException]:
        return await asyncio.gather(*map(self.one, data), return_exceptions=True)


class Awaited(Worker[str, int]):
    async def forward(self, data: str) -> int:
        return len(data)


class Created(Worker[str, int]):
    def forward(self, data: str) -> int | Reply:
        return Reply(len(data), status=201)


class Arrays(Worker[list[float], npt.NDArray[np.float32]]):
    def forward(self, data: list[list[float]]) -> npt.NDArray[np.float32]:
        return np.array(data, np.float32)


class Static(Worker[str, str]):
    @staticmethod
    def forward(data: str) -> str:
        return data


class Cut(Worker[list[T], T], Generic[T]):
    def forward(self, data: list[T]) -> T:
        return data[0]


class CutTexts(Cut[str]):
    pass


class Packed(MsgpackMixin, Worker[bytes, int]):
    def forward(self, data: list[bytes]) -> list[int]:
        return [len(each) for each in data]


class Checked(PydanticMixin, Worker):
    def forward(self, data: int) -> int:
        return data + 1


class Stream(SSEWorker[str, str]):
    def forward(self, data: str) -> Iterator[str]:
        yield from data.split()


class AwaitedStream(SSEWorker[str, Event]):
    async def forward(self, data: str) -> AsyncIterator[Event]:
        yield Event(data, id="1")


class BatchOfStreams(MsgpackMixin, SSEWorker[str, str]):
    def forward(self, data: list[str]) -> Iterator[tuple[int, str | ValidationError]]:
        for index, each in enumerate(data):
            yield index, each or ValidationError("empty")


class Generators(SSEWorker[str, str]):
    def forward(self, data: list[str]) -> list[Iterator[str]]:
        return [iter(each) for each in data]


class Sent(SSEWorker):
    def forward(self, data: str) -> None:
        self.send_stream_event(data)


class Steps(ContinuousWorker[str, str]):
    def admit(self, item: str) -> int:
        return len(item)

    def step(self) -> Iterator[tuple[int, Any]]:
        yield 0, self.FINISHED

    def evict(self, slot: int) -> None:
        pass


server = Server(port=80, timeout=2000, log_level="debug", api_keys=["one", "two"], public="docs", debug=True)
server.append_worker(One, num=2, start_method="fork", args=("model.bin",), methods=["GET", "POST"])
server.append_worker(Batch, max_batch_size=8, executor="thread", route=["/a", "/b"])
server.append_worker(Cut[str], devices="auto")
for worker in (Untyped, Arrays, CutTexts, Packed, Checked, Stream, Steps):
    server.append_worker(worker, route="/" + worker.__name__)
server.register_runtime({"/": [Runtime(Sent), Runtime(Generators, 2, 8)]})


async def ask() -> int:
    answer: int = await server.infer("text", route="/inference", timeout=500)
    async for event in server.stream("text", "/Stream"):
        print(event)
    return answer


def test_a_worker_alone() -> None:
    assert One().forward("text") + 1 == 5
