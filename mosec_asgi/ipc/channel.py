"""The event loop's end of a worker's pipe: a socket pair, non-blocking, one callback a frame.

It talks to the socket through `add_reader` and `add_writer` rather than through a transport: a frame that fits into the
socket's buffer, as nearly all do, is then one system call with nothing queued, and reading goes into one buffer that
all channels of the process share.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from mosec_asgi.ipc.frames import Decoder, FrameError
from mosec_asgi.ipc.stream import Stream

READ_SIZE = 256 * 1024


class _Scratch(threading.local):
    """Memory into which the channels of a thread read, one after the other.

    Each thread has its own: a program may have a service on the event loop of each of several threads, and while one
    of them reads, Python runs the others.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_SIZE))


_scratch = _Scratch()


class FrameReader(Protocol):
    """Bytes in, frames out; see `frames.Decoder`."""

    @property
    def pending(self) -> int:
        """Bytes taken in that are not yet part of a whole frame."""

    def receive_data(self, data: bytes) -> None:
        """Take in bytes as they came, cut anywhere."""

    def next_frame(self) -> Any:
        """Return the next whole frame, or None; raises `FrameError`."""


class Channel:
    """A duplex pipe to one worker, or to another process of the service, as the event loop sees it."""

    def __init__(
        self,
        sock: Stream,
        on_frame: Callable[[Any], None],
        on_closed: Callable[[str], None],
        *,
        busy_polls: bool = False,
        decoder: FrameReader | None = None,
    ) -> None:
        """Take over a socket; nothing is read before `open`.

        Args:
            sock: the server's end of the socket pair.
            on_frame: called with each frame that arrives.
            on_closed: called once, with the reason, when the other side has closed, broken or garbled the pipe: empty
                where it has closed it in good order. Not called after `close`, nor before `send` or `finish` returns.
            busy_polls: the other side runs on a processor of its own, so that `busy_poll` can see it answer; that
                needs uvloop.
            decoder: reads frames of another kind than those of workers.
        """
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._decoder: FrameReader = decoder or Decoder()
        self._unsent: list[memoryview] = []
        self._open = False
        # Writing has failed, and `on_closed` is about to be called.
        self._broken = False
        self._busy_polls = busy_polls
        # The pipe, and the descriptor on which the event loop waits.
        self._poll: select.poll | None = None
        self._loop: asyncio.AbstractEventLoop
        self._scratch: memoryview

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read; on the thread of the loop."""
        self._loop = loop
        self._scratch = _scratch.view
        self._open = True
        loop.add_reader(self._sock.fileno(), self._read)
        waits_on = getattr(loop, "_get_backend_id", None)
        if self._busy_polls and waits_on is not None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
            self._poll.register(waits_on(), select.POLLIN)

    @property
    def is_clear(self) -> bool:
        """Whether all that was sent is on its way."""
        return not self._unsent

    def send(self, data: bytes) -> None:
        """Send a frame: at once where the pipe has room, and the rest as soon as it has; order is kept.

        After the pipe has closed this does nothing: the worker's end is reported through `on_closed`.
        """
        if not self._open or self._broken:
            return
        if self._unsent:
            self._unsent.append(memoryview(data))
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail_later(f"writing to it failed: {error.strerror}")
            return
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def busy_poll(self, seconds: float) -> bool | None:
        """Poll for `seconds`, without sleeping, until there is something to read, and read it.

        It ends as soon as the event loop has other events to handle. The descriptor of the loop's epoll shows that: it
        is readable when one of the descriptors that it watches is (epoll(7)).

        Returns:
            whether there was anything; None where the event loop has other events.
        """
        if self._poll is None or not self._open:
            return False
        until = time.perf_counter() + seconds
        while not (ready := self._poll.poll(0)):
            if time.perf_counter() > until:
                return False
        # The loop watches the pipe as well, so both descriptors are ready when the pipe is.
        if len(ready) == 1:
            return None
        self._read()
        return True

    def drain(self) -> None:
        """Take in what the other side has sent before its end, without waiting for more."""
        while self._read():
            pass

    def finish(self) -> None:
        """End this side of the pipe, which asks the worker to stop; its last frames are still read."""
        if self._open:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._fail_later(f"closing it failed: {error.strerror}")

    def close(self) -> None:
        """Close the pipe. Idempotent."""
        if self._open and not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._open = False
        self._unsent.clear()
        self._sock.close()
        # The listener refers to this channel. Without the reference back, both are freed at once, and not only by the
        # garbage collector.
        self._on_frame = self._on_closed = _nobody
        self._decoder = Decoder()

    def _read(self) -> bool:
        """Read once and hand over the frames that are whole; False where there is nothing more to read now."""
        if not self._open:
            return False
        try:
            size = self._sock.recv_into(self._scratch)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(f"reading from it failed: {error.strerror}")
            return False
        if not size:
            pending = self._decoder.pending
            self._fail(f"it was closed in the middle of a frame, {pending} bytes in" if pending else "")
            return False
        self._decoder.receive_data(bytes(self._scratch[:size]))
        try:
            while self._open and (frame := self._decoder.next_frame()) is not None:
                self._on_frame(frame)
        except FrameError as error:
            self._fail(f"garbage came from it: {error}")
        return self._open

    def _writable(self) -> None:
        try:
            while self._unsent:
                sent = self._sock.send(self._unsent[0])
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                    return
                del self._unsent[0]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(f"writing to it failed: {error.strerror}")
            return
        self._loop.remove_writer(self._sock.fileno())

    def _fail_later(self, reason: str) -> None:
        """Fail in the next turn: whoever writes may be in the middle of a change."""
        if not self._broken:
            self._broken = True
            self._loop.call_soon(self._fail, reason)

    def _fail(self, reason: str) -> None:
        if self._open:
            on_closed = self._on_closed
            self.close()
            on_closed(reason)


def _nobody(_: object) -> None:
    """Hear nothing more of a channel that is closed."""
