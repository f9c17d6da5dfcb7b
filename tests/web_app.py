"""A service of every kind of route, and an app around it that calls it, for several web processes."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

from mosec_asgi import ClientError, Server, SSEWorker, Worker
from mosec_asgi.protocols import OpenAI


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        if data == "wrong":
            raise ClientError("that is wrong")
        if isinstance(data, dict) and "messages" in data:
            return f"you said {data['messages'][-1]['content']}"
        return data


class Pid(Worker):
    def forward(self, data: Any) -> Any:
        return os.getpid()


class Raw(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data


class Slow(Worker):
    def forward(self, data: Any) -> Any:
        time.sleep(data)
        return data


class Count(SSEWorker):
    def forward(self, data: Any) -> Any:
        for number in range(data):
            self.send_stream_event(str(number))


class Endless(SSEWorker):
    """Sends events until its client has left, and says so in a file."""

    def forward(self, data: Any) -> Any:
        while not self.is_cancelled():
            self.send_stream_event("x" * 1000)
        with open(data, "w") as file:
            file.write("left")


class Double(Worker):
    def forward(self, data: Any) -> Any:
        return data * 2


class Tell(Worker):
    takes_request = True

    def forward(self, data: Any) -> Any:
        request = self.request()
        return [request.method, request.route, request.query.get("a"), request.path_params.get("name")]


# Few of them are processes of their own, for the sake of a quick start.
server = Server(timeout=20_000)
server.append_worker(Echo, route=["/inference", "/chat"], executor="thread")
server.append_worker(Pid, route="/pid")
server.append_worker(Raw, route="/raw")
server.append_worker(Slow, route="/slow", executor="thread")
server.append_worker(Count, route="/count", executor="thread")
server.append_worker(Endless, route="/endless", executor="thread")
server.append_worker(Double, route="/double")
server.append_worker(Tell, route="/tell/{name}", executor="thread")
server.add_protocol(OpenAI(chat={"small": "/chat"}))


async def infer(request: Request) -> PlainTextResponse:
    array = np.arange(100_000, dtype=np.float64)
    result = await server.infer(array, "/double")
    result[0] = 1
    events = [event async for event in server.stream(3, "/count")]
    return PlainTextResponse(f"{bool((result[1:] == array[1:] * 2).all())} {events}")


async def steered(request: Request) -> PlainTextResponse:
    try:
        await server.scale("Echo_1", 2)
    except Exception as error:
        return PlainTextResponse(str(error))
    return PlainTextResponse("scaled")


async def statistics(request: Request) -> JSONResponse:
    await asyncio.sleep(0)
    return JSONResponse({**server.statistics().as_dict(), "pid": os.getpid()})


app = Starlette(
    routes=[Route("/infer", infer), Route("/steered", steered), Route("/statistics", statistics), Mount("/", server)],
    lifespan=server.lifespan,
)

if __name__ == "__main__":
    server.run()
