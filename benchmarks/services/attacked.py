"""What `make hostile` attacks: a quick model for the honest client, and one stage of each kind for the attackers.

`python attacked.py --port N`, or `uvicorn attacked:server`. The times are short, so that an attack of some seconds sees
what comes at their end; the bounds of memory are small, so that it reaches them.
"""

import time
from collections.abc import Iterator
from typing import Any

from mosec_asgi import Server, SSEWorker, Worker
from mosec_asgi.mixin import MsgpackMixin, PydanticMixin, TypedMsgPackMixin

# The honest client's model: long enough that a request of its is not lost in the noise of a busy machine.
SECONDS_PER_CALL = 0.005


class Honest(Worker):
    """A quick model."""

    def forward(self, data: Any) -> Any:
        """Return an item."""
        time.sleep(SECONDS_PER_CALL)
        return data


class Size(Worker):
    """Takes whatever comes."""

    def deserialize(self, data: bytes) -> Any:
        """Leave the body as it is."""
        return len(data)

    def forward(self, data: int) -> int:
        """Return the length of a body."""
        return data


class Plain(Worker):
    """JSON, unchecked."""

    def forward(self, data: Any) -> bool:
        """Look at nothing."""
        return True


class Checked(PydanticMixin):
    """JSON, checked."""

    def forward(self, data: list[int] | dict[str, int]) -> bool:
        """Look at nothing."""
        return True


class Packed(MsgpackMixin, Plain):
    """Msgpack, unchecked."""


class PackedTyped(TypedMsgPackMixin):
    """Msgpack, checked."""

    def forward(self, data: list[int]) -> bool:
        """Look at nothing."""
        return True


class Large(Worker):
    """An answer as large as it is asked for."""

    def serialize(self, data: Any) -> bytes:
        """Leave the result as it is."""
        return bytes(data)

    def forward(self, data: int) -> bytes:
        """Return some zeros."""
        return bytes(data)


class Slow(Worker):
    """A slow model, of which not everybody gets an answer in time."""

    def forward(self, data: Any) -> int:
        """Return a small answer late."""
        time.sleep(0.2)
        return 1


class Endless(SSEWorker):
    """A stream that has no end."""

    def forward(self, data: Any) -> Iterator[str]:
        """Yield event after event."""
        while True:
            yield "x" * 10_000


server = Server(
    timeout=3000,
    read_timeout=1500,
    stall_timeout=1500,
    keep_alive=2500,
    max_request_size=4_000_000,
    body_memory=64_000_000,
    compression=True,
    log_level="warning",
)
server.append_worker(Honest, num=2)
for worker in (Size, Plain, Checked, Packed, PackedTyped, Large, Slow):
    server.append_worker(worker, route=f"/{worker.__name__.lower()}")
server.append_worker(Endless, route="/endless", num=2)

if __name__ == "__main__":
    server.run()
