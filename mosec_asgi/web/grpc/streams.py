"""One call that brings many requests, and takes their answers: a stream both ways.

Whole answers come in the order of their requests; messages of a model that streams come as they are made, between them.
A client that sends faster than it is answered waits: only some of its requests are taken at one time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from mosec_asgi.web.exchange import Route, Shared
from mosec_asgi.web.grpc.arrivals import Arrivals
from mosec_asgi.web.grpc.exchange import Context, GrpcExchange, headers_of
from mosec_asgi.web.grpc.unread import Unread

# Requests of one stream that run at one time.
MOST_AT_ONCE = 64
TOO_MANY = "too many streams wait for requests, and this one does longest; begin another"


class RequestStream:
    """A stream of requests."""

    def __init__(self, route: Route, shared: Shared, context: Context, arrivals: Arrivals, unread: Unread) -> None:
        """Begin with no request.

        Args:
            route: of an endpoint, each of whose answers is a message of the stream, errors among them.
            shared: what all exchanges have in common.
            context: of the call.
            arrivals: of the messages of all calls.
            unread: the answers of all calls that are not taken yet.
        """
        self._route = route
        self._shared = shared
        self._context = context
        self._arrivals = arrivals
        self._unread = unread
        self._peer = context.peer()
        self._running: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MOST_AT_ONCE)
        self._writing = asyncio.Lock()
        self._closing: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._fault: BaseException | None = None

    def close(self, why: str) -> None:
        """Take no more requests; `why` is for the client."""
        if not self._closing.done():
            self._closing.set_result(why)

    async def serve(self) -> str:
        """Answer all requests; return why the service has ended the stream, or nothing if it was the client.

        Raises:
            BaseException: whatever has ended the stream early.
        """
        try:
            why = await self._read_all()
            if self._running:
                await asyncio.wait(self._running)
            if self._fault is not None:
                raise self._fault
            return why
        finally:
            for task in self._running:
                task.cancel()

    async def _read_all(self) -> str:
        before: asyncio.Future[None] | None = None
        while True:
            await self._room.acquire()
            reading = asyncio.ensure_future(self._context.read())
            self._arrivals.begin(self, self._give_up)
            try:
                await asyncio.wait((reading, self._closing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._arrivals.end(self)
            if self._closing.done():
                # It ends with the call.
                reading.add_done_callback(_look_at)
                return self._closing.result()
            body = reading.result()
            if body is grpc.aio.EOF:
                return ""
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(self._answer(body, before, done))
            before = done
            self._running.add(task)
            task.add_done_callback(self._answered)

    async def _answer(self, body: bytes, before: asyncio.Future[None] | None, done: asyncio.Future[None]) -> None:
        try:
            exchange = GrpcExchange(self._route, self._shared, headers_of(self._context), body)
            response = await exchange.respond(self._write)
            if response is not None:
                await self._write_whole(response.body, before)
            elif before is not None:
                await asyncio.wait((before,))
        finally:
            done.set_result(None)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = fault
            self.close("")

    def _give_up(self) -> None:
        self.close(TOO_MANY)

    async def _write_whole(self, message: bytes, before: asyncio.Future[None] | None) -> None:
        """Send an answer, behind those of the requests before; it counts as unread from here on."""
        connection = self._unread.made(self._peer, len(message))
        sent = False
        try:
            if before is not None:
                # Not the future itself: that would be cancelled with this task.
                await asyncio.wait((before,))
            async with self._writing:
                connection.sends()
                sent = True
                await self._context.write(message)
        finally:
            connection.took(len(message), sent=sent)

    async def _write(self, message: bytes) -> None:
        await self._write_whole(message, None)


def _look_at(reading: asyncio.Future[Any]) -> None:
    """Hear how a read has ended that nobody waits for, so that asyncio does not tell of it."""
    if not reading.cancelled():
        reading.exception()
