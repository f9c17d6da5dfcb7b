"""A transport that writes the head of a response together with the beginning of its body.

ASGI sends a response in two messages, head and body, and uvicorn writes each as it comes. That takes two system calls
and two packets, and wakes the client twice, for every response; written together, it takes one of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from mosec_asgi.web.limits import Limits
from mosec_asgi.web.uvicorn.shared import Shared

# Bytes; larger pieces are not copied into one, but passed on as two, for one system call.
LARGE = 16 * 1024


class TurnEnd:
    """Flushes transports at the end of the loop's turn: one callback for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[GatheringTransport] = deque()

    def flush(self, transport: GatheringTransport) -> None:
        """Flush `transport` when the turn ends."""
        if not self._waiting:
            self.loop.call_soon(self._flush_all)
        self._waiting.append(transport)

    def _flush_all(self) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().flush()
        finally:
            # If one transport fails, the others are flushed all the same.
            if self._waiting:
                self.loop.call_soon(self._flush_all)


class GatheringTransport(asyncio.Transport):
    """Passes everything on to another transport, but holds a write until the next one or the end of the loop's turn."""

    def __init__(self, transport: asyncio.Transport, turn_end: TurnEnd) -> None:
        super().__init__()
        self._transport = transport
        # Makes uvloop write at once what is passed on; it would wait until the end of its turn. Under TLS it does so in
        # any case, and with a limit of 0 would tell the protocol to pause, and never to go on.
        if transport.get_extra_info("sslcontext") is None:
            transport.set_write_buffer_limits(0)
        # asyncio's own transports copy the pieces into one, or (3.12, 3.13) never tell the protocol to pause for them:
        # a client that does not read would not be held back.
        self._takes_several = type(transport).__module__.partition(".")[0] != "asyncio"
        # To write to without the transport; -1 where that cannot be.
        self._descriptor = self._find_descriptor()
        self._turn_end = turn_end
        self._held = b""
        # Called when the transport is to be closed; returns True if the caller will close it later, by `end`.
        self.on_close: Callable[[], bool] | None = None
        # Each request uses these, so they are called without a method in between.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Hold `data` if nothing is held; else write both."""
        if not data:
            return
        if self._held:
            held, self._held = self._held, b""
            self.write_response(held, bytes(data))
        else:
            # A copy, since the caller may change a buffer; for bytes, `bytes` makes no copy.
            self._held = bytes(data)
            self._turn_end.flush(self)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Write all pieces as one."""
        self.write(b"".join(list_of_data))

    def write_response(self, head: bytes, body: bytes | memoryview) -> None:
        """Write a whole response, without waiting for more; of a `memoryview` nothing is kept."""
        if self._held:
            self.flush()
        if type(body) is memoryview:
            self._write_lent(head, body)
        elif len(body) < LARGE or not self._takes_several:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def _write_lent(self, head: bytes, body: memoryview) -> None:
        """Write a response whose body may be written over once this returns: only what is not sent now is copied."""
        sent = 0
        transport = self._transport
        if self._descriptor >= 0 and not transport.is_closing() and not transport.get_write_buffer_size():
            # Where this fails, the transport finds out why.
            with contextlib.suppress(OSError):
                sent = os.writev(self._descriptor, (head, body))
        if sent < len(head):
            transport.write(head[sent:] + bytes(body))
        elif sent < len(head) + len(body):
            transport.write(bytes(body[sent - len(head) :]))

    def _find_descriptor(self) -> int:
        """Return the descriptor of a socket to which an answer goes as it is; -1 where there is none."""
        if not self._takes_several or self._transport.get_extra_info("sslcontext") is not None:
            return -1
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, b""
        # A client may have left since: uvloop raises for a transport that is closed.
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """Close when all that was written has been sent."""
        self.flush()
        if self.on_close is not None and self.on_close():
            # To its users the transport is closed: nothing more is written.
            self.is_closing = _yes  # type: ignore[method-assign]
            if not self._transport.is_closing() and self._transport.can_write_eof():
                self._transport.write_eof()
            return
        self._transport.close()

    def end(self) -> None:
        """Close without asking `on_close`."""
        self._transport.close()

    def begin_answer(self, beginning: bytes) -> None:
        """Send the beginning of an answer now, and leave it out of what is written next."""
        self.flush()
        self._transport.write(beginning)

        def write(data: bytes | bytearray | memoryview[Any]) -> None:
            del self.write, self.write_response
            self.write(bytes(data).removeprefix(beginning))

        def write_response(head: bytes, body: bytes | memoryview) -> None:
            del self.write, self.write_response
            self.write_response(head.removeprefix(beginning), body)

        self.write, self.write_response = write, write_response  # type: ignore[method-assign]

    def lost(self) -> None:
        """Let go of what refers back to this transport, whose connection has ended.

        Nothing of a connection must wait for the garbage collector, which runs rarely in a server.
        """
        self.on_close = None
        for name in ("write", "write_response"):
            self.__dict__.pop(name, None)

    def abort(self) -> None:
        """Close at once, and drop what was not sent."""
        self._held = b""
        self._transport.abort()

    def write_eof(self) -> None:
        """End the stream after what was written."""
        self.flush()
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Whether the stream can be ended one way."""
        return self._transport.can_write_eof()

    def is_reading(self) -> bool:
        """Whether the transport reads."""
        return self._transport.is_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol of this connection."""
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol of this connection."""
        return self._transport.get_protocol()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the numbers of unsent bytes at which the protocol is told to pause and to resume writing."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the number of unsent bytes."""
        return self._transport.get_write_buffer_size() + len(self._held)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the limits of `set_write_buffer_limits`."""
        return self._transport.get_write_buffer_limits()


def _yes() -> bool:
    return True


def gathering(protocol: type[asyncio.Protocol], limits: Limits | None = None) -> type[asyncio.Protocol]:
    """Return `protocol` as a class whose connections gather their writes.

    Args:
        protocol: one of ours, or uvicorn's.
        limits: what a connection may take; None for the protocol's own. With them come the things that the
            connections of a service share.
    """
    turn_end: TurnEnd | None = None
    shared = None if limits is None else Shared(limits)

    class Gathering(protocol):  # type: ignore[valid-type,misc]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal turn_end
            loop = asyncio.get_running_loop()
            if turn_end is None or turn_end.loop is not loop:
                turn_end = TurnEnd(loop)
            if shared is not None and (sock := transport.get_extra_info("socket")) is not None:
                shared.open_files.look(sock.fileno())
            super().connection_made(GatheringTransport(cast(asyncio.Transport, transport), turn_end))

    if shared is not None:
        Gathering.limits = limits
        Gathering.shared = shared
    return Gathering
