"""Reading a request's body within limits."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Message, Receive

from mosec_asgi.errors import NO_ROOM, Failure, too_large
from mosec_asgi.web.budget import SMALL
from mosec_asgi.web.limits import Limits, Patience


class ClientLeft(Exception):
    """The client has left before its body was complete; there is nobody to answer."""


class Held(Protocol):
    """Holds a body that arrives; see `exchange.Exchange`.

    Attributes:
        held: bytes for which it has room.
        unread: set where the body is refused: a part of it may still come.
    """

    held: int
    unread: bool

    def hold(self, size: int) -> bool:
        """Take room for all `size` bytes that have come; return whether there was enough."""


async def read_body(receive: Receive, declared: bytes | None, limit: int, holder: Held, free: int) -> bytes | Failure:
    """Read a request's body.

    Args:
        receive: the request's messages.
        declared: the Content-Length header's value, or None. A body whose declared length is too large is not read.
        limit: the most bytes to accept; never much more is held in memory.
        holder: takes room for what has come.
        free: bytes for which there is room now.

    Returns:
        the body, or what is wrong with it.

    Raises:
        ClientLeft: the client went away.
    """
    if declared is not None and declared.isdigit():
        if float(declared) > limit:
            holder.unread = True
            return too_large(limit)
        if int(declared) > max(free, SMALL):
            holder.unread = True
            return NO_ROOM
    message = await receive()
    # Nearly every body comes in one message.
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
    else:
        read = await _read_chunks(receive, message, limit, holder)
        if isinstance(read, Failure):
            return read
        body = b"".join(read)
    if len(body) > limit:
        return too_large(limit)
    # `capacity` bounds small bodies that come whole.
    return body if len(body) <= SMALL or holder.hold(len(body)) else NO_ROOM


async def _read_chunks(receive: Receive, message: Message, limit: int, holder: Held) -> list[bytes] | Failure:
    """Return the chunks of a body, up to the one that exceeds `limit`."""
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            holder.unread = message.get("more_body", False)
            return too_large(limit)
        if not holder.hold(size):
            holder.unread = message.get("more_body", False)
            return NO_ROOM
        if chunk:
            chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks
        message = await receive()


@dataclass(slots=True)
class _Reading:
    """A body that is being read.

    Attributes:
        task: reads it.
        patience: until when it is waited for, by the loop's clock; set by the first look, before which most have ended.
        seen: bytes that had come at the last look.
        given_up: the task was cancelled because the body does not arrive.
    """

    task: asyncio.Task[object]
    patience: Patience | None = None
    seen: int = 0
    given_up: bool = False


class SlowSenders:
    """Stops the reading of bodies that do not arrive, with one timer for all of them."""

    def __init__(self, limits: Limits) -> None:
        """Watch nothing yet; `limits` say in what time bodies must arrive."""
        self._limits = limits
        # Seconds between two looks at the bodies that are being read.
        self._pause = limits.read_timeout / 20
        self._readings: dict[Held, _Reading] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, holder: Held) -> None:
        """Begin to watch the current task, which reads a body for `holder`."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._readings[holder] = _Reading(task)
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._look)

    def end(self, holder: Held) -> None:
        """Watch a task no more."""
        self._readings.pop(holder, None)

    def gave_up(self, holder: Held) -> bool:
        """Whether the current task was cancelled by this object alone; the task then goes on."""
        reading = self._readings.get(holder)
        if reading is None or not reading.given_up:
            return False
        return sys.version_info < (3, 11) or reading.task.uncancel() == 0

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for holder, reading in self._readings.items():
            if reading.patience is None:
                reading.patience = Patience(self._limits, now)
            if holder.held > reading.seen:
                reading.patience.arrived(holder.held - reading.seen, now)
                reading.seen = holder.held
            if not reading.given_up and now > reading.patience.until:
                reading.given_up = True
                reading.task.cancel()
        self._timer = loop.call_later(self._pause, self._look) if self._readings else None
