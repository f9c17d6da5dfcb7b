"""Stages on Ray with `num="auto"`: as many workers as fit into the cluster, while nodes come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.errors import MosecError, StartupError
from mosec_asgi.pool.ray.orders import Room
from mosec_asgi.pool.ray.room import asked, fitting
from mosec_asgi.ray_options import RayOptions

# Seconds between two looks at the cluster.
LOOK_SECONDS = 5.0

logger = log.internal_logger(__name__)


class Cluster(Protocol):
    """Says what there is."""

    async def look(self) -> Room:
        """Return what the cluster has; raises `ConnectionError`."""


class Following:
    """Scales stages to what fits into a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        stages: Mapping[str, RayOptions],
        workers: Callable[[str], int],
        scale: Callable[[str, int], Awaitable[None]],
        most: int,
        *,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        """Prepare; `run` follows.

        Args:
            cluster: what to look at.
            stages: what a worker of each stage asks for, by the stage's name.
            workers: returns how many workers a stage is to have now.
            scale: gives a stage so many; a coroutine function.
            most: workers that a stage may have.
            seconds: between two looks.
        """
        self._cluster = cluster
        self._stages = stages
        self._workers = workers
        self._scale = scale
        self._most = most
        self._seconds = seconds

    async def run(self) -> None:
        """Follow, until cancelled."""
        while True:
            for stage in self._stages:
                await self._follow(stage)
            await asyncio.sleep(self._seconds)

    async def _follow(self, stage: str) -> None:
        try:
            # For each stage anew: another may just have taken what was free.
            room = await self._cluster.look()
        except ConnectionError as error:
            logger.debug("the number of workers stays as it is: %s", error)
            return
        now = self._workers(stage)
        num = wanted(room.nodes, room.free, self._stages[stage], now, self._most)
        if num == now:
            return
        logger.info("the cluster has room for %d workers, and there were to be %d", num, now, extra={"stage": stage})
        try:
            await self._scale(stage, num)
        except (StartupError, MosecError) as error:
            logger.warning("there are as many workers as before: %s", error, extra={"stage": stage})


def wanted(
    nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], options: RayOptions, now: int, most: int
) -> int:
    """Return how many workers a stage should have.

    Args:
        nodes: the resources of each node.
        free: what nobody has taken.
        options: what a worker asks for.
        now: how many there are to be at present. All of them count as if they had what they ask for, also those that
            start or wait: else a worker that loads for long would be taken away again.
        most: that there may be.
    """
    return max(1, min(most, fitting(nodes, free, asked(options.actor_options), now)))
