"""The worker process's end of its pipe: messages as frames over a socket."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.port import Port, ProgressNotes
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.messages import Cancels, Chunks, Credits, Results, Tasks

if TYPE_CHECKING:
    import asyncio

READ_SIZE = 1 << 18


class PipeBroken(Ending):
    """The worker cannot send to its server any more, and ends."""


class SocketPort(Port):
    """A port on a socket. Receiving raises `FrameError` for bytes that are not a frame, or not one for a worker."""

    def __init__(self, sock: Stream, progress: ProgressNotes) -> None:
        super().__init__(progress)
        self._sock = sock
        self._decoder = frames.Decoder()
        # One buffer for all reads: a new one for each would be mapped, shrunk and unmapped, three system calls that
        # took a quarter of a small task's time in the worker (10 of 37 µs).
        self._buffer = memoryview(bytearray(READ_SIZE))
        # This process is a child of the worker, not the worker itself.
        self._disowned = False

    def fileno(self) -> int:
        """Return the descriptor to watch for something to `poll`."""
        return self._sock.fileno()

    def disown(self) -> None:
        """Send and receive nothing more: this is a child process of the worker, which has inherited the pipe."""
        self._disowned = self.ended = True

    # -- receiving ---------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Wait until something comes, then take it in."""
        # A new one each time: two threads cannot use the same one.
        readable = select.poll()
        readable.register(self._sock, select.POLLIN)
        if not self.ended and readable.poll(seconds * 1000):
            self.poll()

    def watch(self, loop: asyncio.AbstractEventLoop, on_news: Callable[[], None]) -> None:
        """Have an event loop call `on_news` whenever something has come, or the end has."""
        loop.add_reader(self.fileno(), on_news)
        # uvloop makes the sockets that it watches non-blocking, and then a write to a full pipe would send a part of a
        # frame. Receiving does not need a non-blocking socket.
        self._sock.setblocking(True)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop these calls."""
        loop.remove_reader(self.fileno())

    def _receive(self, *, wait: bool) -> bool:
        """Read once; False where there is nothing to read now."""
        try:
            size = self._sock.recv_into(self._buffer, 0, 0 if wait else socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:
            size = 0
        if not size:
            self.ended = True
            return False
        self._decoder.receive_data(bytes(self._buffer[:size]))
        with self._lock:
            while (frame := self._decoder.next_frame()) is not None:
                self._take_frame(frame)
        return True

    def _take_frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, (Tasks, Cancels, Credits)):
            self._take(frame)
        elif isinstance(frame, frames.Freed) and self.memory is not None:
            self.memory.freed(frame.blocks)
        else:
            raise frames.FrameError(f"a worker is sent tasks, not {type(frame).__name__}")

    # -- sending -----------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Say that the worker can be given tasks."""
        self._send(frames.encode_ready())

    def failed(self, text: str) -> None:
        """Say why the worker could not start."""
        self._send(frames.encode_failed(text))

    def report(self) -> None:
        """Report which blocks of shared memory that were kept are not needed any more; each answer does so as well."""
        if self.memory is not None and self.memory.has_news:
            with self._lock:
                self._send(self.memory.report())

    def _send_results(self, results: Results) -> None:
        encoded = frames.encode_results(results)
        self._send(encoded if self.memory is None else self.memory.report() + encoded)

    def _send_chunks(self, chunks: Chunks) -> None:
        self._send(frames.encode_chunks(chunks))

    def _send(self, data: bytes) -> None:
        if self._disowned:
            return
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True
        except OSError as error:
            # A part of the frame may have been sent, so no other can follow. This is not the fault of a request.
            self.ended = True
            raise PipeBroken(f"writing to the server failed: {error.strerror}") from error
