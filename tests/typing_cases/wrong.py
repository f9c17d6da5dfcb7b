"""What type checkers find; each line that they must name says so, and no other line is to be named."""

from __future__ import annotations

from collections.abc import Iterator

from mosec_asgi import ContinuousWorker, Server, SSEWorker, Worker
from mosec_asgi.mixin import MsgpackMixin


class WrongItem(Worker[str, str]):
    def forward(self, data: int) -> str:  # wrong
        return str(data)


class WrongResult(Worker[str, int]):
    def forward(self, data: str) -> str:  # wrong
        return data


class OneResultForMany(Worker[str, str]):
    def forward(self, data: list[str]) -> str:  # wrong
        return data[0]


class ManyResultsForOne(Worker[str, str]):
    def forward(self, data: str) -> list[str]:  # wrong
        return [data]


class WrongItems(Worker[str, str]):
    def forward(self, data: list[int]) -> list[str]:  # wrong
        return list(map(str, data))


class WrongAwaited(Worker[str, int]):
    async def forward(self, data: str) -> str:  # wrong
        return data


class WrongBehindMixin(MsgpackMixin, Worker[str, str]):
    def forward(self, data: int) -> str:  # wrong
        return str(data)


class WrongEvents(SSEWorker[str, str]):
    def forward(self, data: str) -> Iterator[int]:  # wrong
        yield len(data)


class WrongStep(ContinuousWorker[str, str]):
    def admit(self, item: int) -> int:  # wrong
        return item

    def step(self) -> Iterator[tuple[int, int]]:  # wrong
        yield 0, 0

    def evict(self, slot: int) -> None:
        pass


class NoWorker:
    def forward(self, data: str) -> str:
        return data


server = Server(prot=80)  # wrong
server = Server(port="http")  # wrong
server = Server(log_level="verbose")  # wrong
server = Server(public=["everything"])  # wrong
server.append_worker(NoWorker)  # wrong
server.append_worker(SSEWorker, nmu=2)  # wrong
server.append_worker(SSEWorker, start_method="forkserver")  # wrong
server.append_worker(SSEWorker, executor="greenlet")  # wrong
server.append_worker(SSEWorker, methods="GET")  # wrong
server.run(port=80)  # wrong


async def ask() -> None:
    await server.infer("text", ruote="/inference")  # wrong
