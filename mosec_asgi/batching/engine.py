"""What `web` may ask of the coordinator: four calls and the messages that they pass.

Nothing mutable is shared, and only numbers, text and bytes cross, so that one day several HTTP processes can speak to
one coordinator over a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mosec_asgi.errors import Failure

# What becomes of a task: the encoded result, or what went wrong; for a stream that has ended well, empty bytes.
Outcome = bytes | Failure

# The outcome of a task whose client has left; 499 is nginx's number for it, and nobody is there to read it.
CLIENT_LEFT = Failure(499, "the client left")


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """A stage at one moment.

    Attributes:
        name: the stage's name.
        queued: tasks that wait.
        in_flight: tasks that its workers have and have not answered.
        ready: workers that can be given tasks.
        workers: workers that there should be.
        down: no worker is alive, and the last try to start one failed.
    """

    name: str
    queued: int
    in_flight: int
    ready: int
    workers: int
    down: bool


@dataclass(frozen=True, slots=True)
class Statistics:
    """A service at one moment.

    Attributes:
        admitted: tasks admitted and not yet answered.
        closing: the service is shutting down and admits no more.
        stages: in the order of the service's list.
        shared_memory: bytes of shared memory that payloads take.
    """

    admitted: int
    closing: bool
    stages: tuple[StageStatistics, ...]
    shared_memory: int = 0


class Engine(Protocol):
    """The batching side of a service, as HTTP sees it."""

    def submit(
        self,
        route: int,
        body: bytes,
        request_id: str,
        on_outcome: Callable[[Outcome], None],
        timeout: float | None = None,
        *,
        example: bool = False,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> int | Failure:
        """Admit a request as a task, or say why not.

        Args:
            route: the place of its route in the service's list.
            body: the encoded input.
            request_id: what the logs call it.
            on_outcome: called once, when the task has ended, from within whatever has ended it: it must be brief, and
                must not call the service. A future, to wait for, is made of it by `outcome_future`.
            timeout: seconds until it is answered 408; None, or more than the service's own, for the service's own. For
                a stream, seconds until its first chunk.
            example: run the first worker's example in place of `body`.
            on_chunk: called with each chunk of a stream, in order, and never after `on_outcome`. A route that streams
                needs it; what it is given must be reported by `taken`.

        Returns:
            the task's number, for `cancel` and `taken`.
        """

    def taken(self, task_id: int, size: int) -> None:
        """Note that the client has taken `size` more bytes of a stream's chunks, which makes room for as many.

        After the stream's end this does nothing.
        """

    def cancel(self, task_id: int) -> None:
        """Drop a task whose client has left; its outcome is `CLIENT_LEFT`. One that has its answer is left alone."""

    def statistics(self) -> Statistics:
        """Return how things stand."""


def outcome_future() -> tuple[asyncio.Future[Outcome], Callable[[Outcome], None]]:
    """Return a future on the running event loop, and what to call with its result; once it is cancelled, in vain."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def resolve(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    return future, resolve
