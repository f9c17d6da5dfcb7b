"""Large arrays between two stages, and the ways on which they can go.

    python examples/ipc/server.py --port 8000
    python examples/ipc/client.py --side 1024

`Paint` makes a picture of `side` times `side` pixels, 12 MB for 1024, and `Measure`, in another process, reads it. The
client gets a few numbers. Each route passes the picture on in another way:

    /default   what every worker does: pickle
    /numbin    numpy arrays in numbin's format
    /redis     through redis, where the environment says `REDIS_URL`
"""

import os
from typing import Annotated, Any, TypedDict

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mosec_asgi import Runtime, Server, ValidationError, Worker
from mosec_asgi.mixin import NumBinIPCMixin, RedisShmIPCMixin

MOST_PIXELS = 1024
Picture = npt.NDArray[np.float32]


class Order(TypedDict):
    """What a client sends."""

    side: Annotated[int, Field(ge=1, le=MOST_PIXELS)]


class Report(TypedDict):
    """What a client gets."""

    shape: list[int]
    bytes: int
    mean: list[float]


class Paint(Worker):
    """Paint a picture of waves."""

    example = {"side": 64}

    def forward(self, data: Order) -> Picture:
        """Return a picture: lines, columns and three colours."""
        side: Any = data.get("side") if isinstance(data, dict) else None
        if isinstance(side, float) and side.is_integer():
            side = int(side)
        if type(side) is not int or not 1 <= side <= MOST_PIXELS:
            raise ValidationError(f"'side' must be a whole number from 1 to {MOST_PIXELS}")
        wave = np.sin(np.linspace(0, 4 * np.pi, side, dtype=np.float32))
        return np.stack([np.broadcast_to(wave, (side, side)), np.outer(wave, wave), np.ones((side, side))], 2).astype(
            np.float32
        )


class Measure(Worker):
    """Measure pictures."""

    def forward(self, data: Picture) -> Report:
        """Return the shape, the bytes and the mean colour of a picture."""
        return {"shape": list(data.shape), "bytes": data.nbytes, "mean": data.mean((0, 1)).round(4).tolist()}


class PaintNumBin(NumBinIPCMixin, Paint):
    """Paint, and pass on in numbin's format."""


class MeasureNumBin(NumBinIPCMixin, Measure):
    """Measure what comes in numbin's format."""


class PaintRedis(RedisShmIPCMixin, Paint):
    """Paint, and leave it in redis."""


class MeasureRedis(RedisShmIPCMixin, Measure):
    """Measure what lies in redis."""


routes = {
    "/default": [Runtime(Paint), Runtime(Measure)],
    "/numbin": [Runtime(PaintNumBin), Runtime(MeasureNumBin)],
}
if os.environ.get("REDIS_URL"):
    RedisShmIPCMixin.set_redis_url(os.environ["REDIS_URL"])
    routes["/redis"] = [Runtime(PaintRedis), Runtime(MeasureRedis)]

server = Server()
server.register_runtime(routes)

if __name__ == "__main__":
    server.run()
