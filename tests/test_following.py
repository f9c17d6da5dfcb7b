"""Stages that have as many workers as fit into a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from common import until

from mosec_asgi.errors import StartupError
from mosec_asgi.following import Following, wanted
from mosec_asgi.pool.ray.orders import Room
from mosec_asgi.ray_options import RayOptions

GPU = RayOptions({"num_gpus": 1}, follows=True)


@pytest.mark.parametrize(
    ("nodes", "free", "now", "num"),
    [
        ([2, 2], 3, 1, 4),
        # A node has gone, and two of the workers with it.
        ([2], 0, 4, 2),
        # Others have the rest.
        ([2, 2], 0, 3, 3),
        # The cluster has gone: one waits for it.
        ([], 0, 4, 1),
        ([100], 99, 1, 64),
    ],
)
def test_as_many_as_fit(nodes: Sequence[int], free: int, now: int, num: int) -> None:
    assert wanted([{"GPU": float(node)} for node in nodes], {"GPU": float(free)}, GPU, now, 64) == num


class Scripted:
    """A cluster, and the stages in it, without any."""

    def __init__(self) -> None:
        self.nodes = [{"GPU": 2.0}]
        self.workers = {"A": 1, "B": 1}
        self.looks = 0
        self.scaled: list[tuple[str, int]] = []
        self.fault: Exception | None = None
        self.gone = False

    async def look(self) -> Room:
        self.looks += 1
        if self.gone:
            raise ConnectionError("gone")
        free = sum(node["GPU"] for node in self.nodes) - sum(self.workers.values())
        return Room(self.nodes, {"GPU": max(free, 0.0)})

    async def scale(self, stage: str, num: int) -> None:
        self.scaled.append((stage, num))
        if self.fault is not None:
            raise self.fault
        self.workers[stage] = num


@contextlib.asynccontextmanager
async def following(cluster: Scripted) -> AsyncIterator[None]:
    stages = dict.fromkeys(cluster.workers, GPU)
    followed = Following(cluster, stages, cluster.workers.__getitem__, cluster.scale, 64, seconds=0.001)
    task = asyncio.ensure_future(followed.run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_stages_grow_with_the_cluster_and_do_not_take_the_same() -> None:
    cluster = Scripted()
    async with following(cluster):
        await until(lambda: cluster.looks > 4)
        assert not cluster.scaled
        cluster.nodes.append({"GPU": 2.0})
        await until(lambda: cluster.scaled)
        await until(lambda: cluster.looks > 10)
        assert sum(cluster.workers.values()) == 4


async def test_what_cannot_be_started_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Scripted()
    cluster.nodes.append({"GPU": 1.0})
    cluster.fault = StartupError("no weights")
    async with following(cluster):
        await until(lambda: len(cluster.scaled) > 3)
    assert "there are as many workers as before: no weights" in caplog.text


async def test_without_a_connection_all_stays_as_it_is() -> None:
    cluster = Scripted()
    cluster.gone = True
    async with following(cluster):
        await until(lambda: cluster.looks > 4)
        assert not cluster.scaled
        cluster.gone = False
        cluster.nodes.append({"GPU": 1.0})
        await until(lambda: cluster.scaled)
