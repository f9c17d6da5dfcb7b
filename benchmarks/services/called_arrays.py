"""An array of 10 MB of float32 through two stages and back: over HTTP as bytes in msgpack, or called from within."""

from typing import Any

import numpy as np
from calling import calling

from mosec_asgi import Worker
from mosec_asgi.mixin import MsgpackMixin

LENGTH = 2_500_000


class Scale(MsgpackMixin, Worker):
    """Doubles what stands first in an array."""

    def deserialize(self, data: bytes) -> Any:
        """Return the array of a body, without a copy of its bytes."""
        return np.frombuffer(super().deserialize(data)["data"], np.float32).copy()

    def forward(self, data: Any) -> Any:
        """Double the first number; that is no work, and what is measured is the way."""
        data[0] *= 2
        return data


class Pass(MsgpackMixin, Worker):
    """Passes an array on."""

    def forward(self, data: Any) -> Any:
        """Return the array."""
        return data

    def serialize(self, data: Any) -> bytes:
        """Return the array as a body: its bytes, which is the quickest form that msgpack has."""
        return super().serialize({"data": data.tobytes()})


if __name__ == "__main__":
    server = calling(np.ones(LENGTH, np.float32), lambda result: result.shape == (LENGTH,) and result[0] == 2)
    server.append_worker(Scale)
    server.append_worker(Pass)
    server.run()
