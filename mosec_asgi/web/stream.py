"""A stream from the engine, which brings chunks, to its client, which takes them as fast as it can.

Chunks that have gathered meanwhile are sent as one piece. What the client has taken is reported to the engine, which
bounds how much may gather.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mosec_asgi.batching.engine import Engine
from mosec_asgi.messages import Chunk, Credit, Outcome
from mosec_asgi.web.exchange import StreamForm

# Seconds, as in mosec: short enough for clients with a short read timeout (httpx: 5 s).
KEEP_ALIVE_SECONDS = 3.0


class Stream:
    """One stream."""

    def __init__(
        self,
        form: StreamForm,
        send: Callable[[bytes, bool], Awaitable[None]],
        engine: Engine,
        *,
        keep_alive: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        """Begin without chunks.

        Args:
            form: of the answer.
            send: sends a piece, and says whether more comes; returns once there is room for the next.
            engine: is told what the client has taken.
            keep_alive: seconds without a piece after which a comment is sent, if the form has one.
        """
        self._form = form
        self._send = send
        self._engine = engine
        self._keep_alive = keep_alive
        self._sent = False
        self._chunks: list[Chunk] = []
        self._outcomes: Sequence[Outcome] | None = None
        self._loop = asyncio.get_running_loop()
        # No `asyncio.Event`: until Python 3.12, each wait for one asks the system for the process's number.
        self._waiter: asyncio.Future[None] | None = None
        self._written_at = 0.0
        self._is_idle = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def begun(self) -> bool:
        """Whether there has been a chunk, or the head of the answer was sent."""
        return self._sent or bool(self._chunks)

    def feed(self, chunk: Chunk) -> None:
        """Take the next chunk from the engine."""
        self._chunks.append(chunk)
        self._wake()

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes from the engine, after the last chunk; none if the client has left."""
        self._outcomes = outcomes
        self._wake()

    async def follow(self) -> Sequence[Outcome]:
        """Send the chunks as they come, until the outcomes are there.

        Returns:
            the outcomes; chunks that came together with them are left for the next `write`.
        """
        if self._form.comment is not None:
            self._written_at = self._loop.time()
            self._look()
        while self._outcomes is None:
            if self._chunks:
                await self.write()
            elif self._is_idle:
                await self.write(self._form.comment or b"")
            else:
                self._waiter = self._loop.create_future()
                await self._waiter
        return self._outcomes

    async def write(self, more: bytes | Callable[[], bytes] = b"", *, more_body: bool = True) -> None:
        """Send the chunks that are there, and `more`, as one piece.

        Args:
            more: bytes to send behind the chunks; or what returns them, once the chunks have been given their form.
            more_body: the answer does not end with this piece.
        """
        chunks, self._chunks = self._chunks, []
        self._sent = True
        pieces = [*map(self._form.chunk, chunks), more if isinstance(more, bytes) else more()]
        await self._send(b"".join(pieces), more_body)
        self._written_at = self._loop.time()
        self._is_idle = False
        self._report(chunks)

    def close(self) -> None:
        """Stop the keep-alives."""
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        """Have `follow` look for what has come."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _report(self, chunks: Sequence[Chunk]) -> None:
        sizes: dict[int, int] = {}
        for chunk in chunks:
            sizes[chunk.call_id] = sizes.get(chunk.call_id, 0) + len(chunk.payload)
        for call_id, size in sizes.items():
            self._engine.credit(Credit(call_id, size))

    def _look(self) -> None:
        """Wake the writer if nothing was written for the time of a keep-alive, and look again when that may be next.

        So a chunk does not set the timer, but only notes the time.
        """
        now = self._loop.time()
        if now - self._written_at >= self._keep_alive:
            self._is_idle = True
            self._wake()
            self._timer = self._loop.call_later(self._keep_alive, self._look)
        else:
            self._timer = self._loop.call_at(self._written_at + self._keep_alive, self._look)
