"""What is compared: the models, their load, the ways in which each is served, and the ratios that are wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass

from load import ITEM, Posts, arrays

from on_ray.ways import ACTORS, FRAMES, HANDLES, HANDLES_GRPC, IN_SERVE, LOCAL, SERVE, Way

ARRAY_BYTES = 10_000_000
# What is slow is to be measured, and no error.
ECHOES = Posts(json.dumps(ITEM), ITEM, patience=30)


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        name: what `--only` calls it, and its route in Ray Serve.
        title: what it is.
        service: the file under `services/` for ours.
        connections: clients that each send their next request when the last one is answered.
        load: what they send.
        ways: how it is served.
        bars: one way, another one, and how many times the requests/s of that the one is to do at least.
    """

    name: str
    title: str
    service: str
    connections: int
    load: Posts
    ways: tuple[Way, ...]
    bars: tuple[tuple[Way, Way, float], ...] = ()


ROWS = (
    Row(
        "echo",
        "JSON echo, batches of up to 64 wait 1 ms, 128 connections",
        "batched_echo",
        128,
        ECHOES,
        (LOCAL, ACTORS, SERVE, IN_SERVE),
        ((ACTORS, SERVE, 10),),
    ),
    Row(
        "model",
        "model of 5 ms + 0.1 ms/item, batches of up to 64 wait 10 ms, 256 connections",
        "model",
        256,
        ECHOES,
        (LOCAL, ACTORS, SERVE, IN_SERVE),
        ((ACTORS, LOCAL, 0.9),),
    ),
    Row(
        "arrays",
        "float32 array of 10 MB from one stage to the next, on two nodes with Ray, 4 connections",
        "arrays",
        4,
        arrays(ARRAY_BYTES),
        (LOCAL, ACTORS, FRAMES, HANDLES, HANDLES_GRPC),
        ((ACTORS, HANDLES, 1), (ACTORS, FRAMES, 2)),
    ),
)
