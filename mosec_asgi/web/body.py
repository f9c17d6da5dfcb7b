"""Reading a request's body within limits."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Message, Receive

from mosec_asgi.errors import NO_ROOM, TOO_SLOW, Failure, too_large
from mosec_asgi.web.body_pieces import BodyPieces
from mosec_asgi.web.budget import SMALL, Budget
from mosec_asgi.web.limits import Limits, Patience
from mosec_asgi.web.responses import Headers


class ClientLeft(Exception):
    """The client has left before its body was complete; there is nobody to answer."""


class Holder(Protocol):
    """Holds a body that arrives; see `exchange.Exchange`.

    Attributes:
        headers: of the request.
        held: bytes for which it has room.
        unread: set where the body is refused: a part of it may still come.
    """

    headers: Headers
    held: int
    unread: bool

    def hold(self, size: int) -> bool:
        """Take room for all `size` bytes that have come; return whether there was enough."""


@dataclass(slots=True)
class _Late:
    """A body that was still being read at the last look.

    Attributes:
        task: reads it.
        patience: until when it is waited for, by the loop's clock.
        seen: bytes that had come at the last look.
        given_up: the task was cancelled because the body does not arrive.
    """

    task: asyncio.Task[object]
    patience: Patience
    seen: int = 0
    given_up: bool = False


class BodyReader:
    """Reads the bodies of requests, and gives up those that do not arrive: one timer looks at all that are being read.

    Nearly every body is read before the timer looks, and costs an entry in a dictionary.
    """

    def __init__(self, limit: int, limits: Limits, budget: Budget) -> None:
        """Read nothing yet.

        Args:
            limit: the most bytes of a body; never much more is held in memory.
            limits: the time in which a body must arrive.
            budget: has the bytes that all bodies may take.
        """
        self._limit = limit
        self._limits = limits
        self._budget = budget
        # Bodies of so few bytes always have room: `capacity` bounds them. A length of so few digits is less than that.
        self._small = min(limit, SMALL)
        self._few_digits = len(str(self._small)) - 1
        # Seconds between two looks at the bodies that are being read.
        self._pause = limits.read_timeout / 20
        self._young: dict[Holder, asyncio.Task[object] | None] = {}
        self._late: dict[Holder, _Late] = {}
        self._timer: asyncio.TimerHandle | None = None
        # The service's. To look for the running one costs a system call until Python 3.12.
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, holder: Holder, receive: Receive) -> bytes | Failure:
        """Read a request's body.

        Args:
            holder: takes room for what has come. A body whose declared length is too large is not read.
            receive: the request's messages.

        Returns:
            the body, or what is wrong with it.

        Raises:
            ClientLeft: the client went away.
        """
        declared = holder.headers.get(b"content-length")
        if declared is not None and len(declared) > self._few_digits:
            failure = self._refusal(declared)
            if failure is not None:
                holder.unread = True
                return failure
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._young[holder] = asyncio.current_task(loop)
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._look)
        try:
            message = await receive()
            # Nearly every body comes in one message.
            if message["type"] == "http.request" and not message.get("more_body", False):
                body: bytes = message.get("body", b"")
            else:
                read = await self._chunks(receive, message, holder)
                if isinstance(read, Failure):
                    return read
                body = b"".join(read)
        except asyncio.CancelledError:
            if not self._gave_up(holder):
                raise
            return TOO_SLOW
        finally:
            if self._young.pop(holder, None) is None:
                self._late.pop(holder, None)
        size = len(body)
        if size <= self._small:
            return body
        if size > self._limit:
            return too_large(self._limit)
        return body if holder.hold(size) else NO_ROOM

    def _refusal(self, declared: bytes) -> Failure | None:
        """Return why a body of this length is not read; None if it is."""
        if not declared.isdigit():
            return None
        # A float has a value for any number of digits.
        if float(declared) > self._limit:
            return too_large(self._limit)
        return None if self._budget.has_room(int(declared)) else NO_ROOM

    async def _chunks(self, receive: Receive, message: Message, holder: Holder) -> BodyPieces | Failure:
        """Return the chunks of a body, up to the one that exceeds the limit; `message` is the first."""
        chunks = BodyPieces()
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._limit:
                holder.unread = message.get("more_body", False)
                return too_large(self._limit)
            if not holder.hold(size):
                holder.unread = message.get("more_body", False)
                return NO_ROOM
            if chunk:
                chunks.add(chunk)
            if not message.get("more_body", False):
                return chunks
            message = await receive()

    def _gave_up(self, holder: Holder) -> bool:
        """Whether the current task was cancelled by this object alone; the task then goes on."""
        late = self._late.get(holder)
        if late is None or not late.given_up:
            return False
        return sys.version_info < (3, 11) or late.task.uncancel() == 0

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        # What has come while the process was stopped is still to be read, for which no client is to blame.
        stopped = 0.0 if self._timer is None else max(0.0, now - self._timer.when())
        for holder, late in self._late.items():
            late.patience.until += stopped
            if holder.held > late.seen:
                late.patience.arrived(holder.held - late.seen, now)
                late.seen = holder.held
            if not late.given_up and now > late.patience.until:
                late.given_up = True
                late.task.cancel()
        for holder, task in self._young.items():
            if task is not None:
                self._late[holder] = _Late(task, Patience(self._limits, now), holder.held)
        self._young.clear()
        self._timer = loop.call_later(self._pause, self._look) if self._late else None
