"""The models of `services/` as deployments of Ray Serve, and ours within it.

As Ray's own pages advise: `@serve.batch` with the same batches as ours, more ongoing requests than there are clients.
The model waits by asyncio, so that its replica takes in requests meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from echo import Echo as EchoWorker
from model import SECONDS_PER_BATCH, SECONDS_PER_ITEM
from model import Model as ModelWorker
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from mosec_asgi import Server

ONGOING = 2000
FIRST, SECOND = {"first": 1}, {"second": 1}


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 1})
class Echo:
    """JSON in, the same JSON out."""

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)  # type: ignore[untyped-decorator]
    async def forward(self, data: list[Any]) -> list[Any]:
        """Return the batch."""
        return data

    async def __call__(self, request: Request) -> Any:
        """Answer a request."""
        return await self.forward(await request.json())


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 1})
class Model:
    """A stand-in for a model on a GPU."""

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def forward(self, data: list[Any]) -> list[Any]:
        """Return the batch after a batch's time."""
        await asyncio.sleep(SECONDS_PER_BATCH + SECONDS_PER_ITEM * len(data))
        return data

    async def __call__(self, request: Request) -> Any:
        """Answer a request."""
        return await self.forward(await request.json())


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 1, "resources": SECOND})
class Mean:
    """Reads all of an array, on the second node."""

    def __call__(self, array: Any) -> dict[str, float]:
        """Return the mean."""
        return {"mean": float(array.mean())}


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 1, "resources": FIRST})
class Make:
    """Makes an array as long as it is asked to, on the first node."""

    def __init__(self, mean: DeploymentHandle[Any], by_reference: bool) -> None:
        """Take the other deployment, and whether the array goes to it by the object store, or in a message of gRPC."""
        self._mean = mean.options(_by_reference=by_reference)

    async def __call__(self, request: Request) -> Any:
        """Answer a request by what the other deployment says of the array."""
        data = await request.json()
        return await self._mean.remote(np.full(data["length"], data["value"], dtype=np.float32))


def ours(worker: Any, max_wait_time: int) -> Any:
    """Return our server with a worker as a deployment."""
    server = Server()
    server.append_worker(worker, max_batch_size=64, max_wait_time=max_wait_time)
    options = {"num_cpus": 1}
    return serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options=options)(serve.ingress(server)()).bind()


def bound(deployment: Any, *arguments: Any) -> Any:
    """Return a deployment with its arguments; Ray's types do not know that its decorator makes one."""
    return deployment.bind(*arguments)


APPS = {
    "echo": bound(Echo),
    "model": bound(Model),
    "arrays": bound(Make, bound(Mean), True),
    "arrays-grpc": bound(Make, bound(Mean), False),
    "ours-echo": ours(EchoWorker, 1),
    "ours-model": ours(ModelWorker, 10),
}
