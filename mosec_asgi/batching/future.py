"""A caller that waits for its outcome in a coroutine."""

from __future__ import annotations

import asyncio

from mosec_asgi.messages import Chunk, Outcome


class FutureOutcome:
    """A caller that waits for one outcome in a coroutine.

    Attributes:
        future: of the outcome; if the future is cancelled, the outcome is dropped.
    """

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settled(self, outcome: Outcome) -> None:
        """Set the future's result."""
        if not self.future.done():
            self.future.set_result(outcome)

    def streamed(self, chunk: Chunk) -> None:
        """Refuse a stream, which such a caller cannot take."""
        raise TypeError(f"call {chunk.call_id} is answered by a stream, and its caller takes none")
