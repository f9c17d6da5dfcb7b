"""Messages that are on their way: how many, and for how long.

gRPC tells nothing of a message before it is whole, not even its length, and keeps what has come of it. So what clients
can have it keep is bounded by the number of messages that are read at one time, each of which may be as large as any,
and by the time of a call's only message. Of too many, that which is longest on its way is given up: those of honest
clients are there in milliseconds. A stream that waits for its next request counts as well, as it cannot be told from
one whose request has come in part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

# Messages that may always be on their way, however little memory there is.
LEAST_AT_ONCE = 64
# Bytes a second at which the largest message has to come.
SLOWEST = 64 * 1024

MessageT = TypeVar("MessageT")


class GivenUp(Exception):
    """A message was longer on its way than it may be."""


class _Arriving(NamedTuple):
    """A message on its way.

    Attributes:
        until: when it is given up, in seconds of the event loop; None for a stream, which may wait for the next one.
        give_up: ends the wait.
    """

    until: float | None
    give_up: Callable[[], None]


class Arrivals:
    """The messages of all calls that are on their way."""

    def __init__(self, most: int, seconds: float) -> None:
        """Begin with none.

        Args:
            most: at one time.
            seconds: in which the only message of a call has to come.
        """
        self._most = max(most, LEAST_AT_ONCE)
        self._seconds = seconds
        # In the order in which they began.
        self._arriving: dict[object, _Arriving] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many are on their way."""
        return len(self._arriving)

    async def only(self, message: Awaitable[MessageT]) -> MessageT:
        """Return the only message of a call, whose task this is.

        Raises:
            GivenUp: it has not come in time.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        given_up = False

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            task.cancel()

        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        self._add(task, _Arriving(loop.time() + self._seconds, give_up))
        try:
            return await message
        except asyncio.CancelledError:
            if not given_up:
                raise
            if hasattr(task, "uncancel"):
                task.uncancel()
            raise GivenUp from None
        finally:
            self._arriving.pop(task, None)

    def begin(self, stream: object, give_up: Callable[[], None]) -> None:
        """Note that a stream waits for its next request."""
        self._add(stream, _Arriving(None, give_up))

    def end(self, stream: object) -> None:
        """Note that it has come, or never will."""
        self._arriving.pop(stream, None)

    def stop(self) -> None:
        """Look at no clock any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _add(self, key: object, arriving: _Arriving) -> None:
        if len(self._arriving) >= self._most:
            self._give_up(next(iter(self._arriving)))
        self._arriving[key] = arriving

    def _give_up(self, key: object) -> None:
        self._arriving.pop(key).give_up()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for key, each in list(self._arriving.items()):
            if each.until is None:
                continue
            if each.until > now:
                # All others of this kind have begun later.
                self._timer = loop.call_at(each.until, self._look)
                return
            self._give_up(key)
