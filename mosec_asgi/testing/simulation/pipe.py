"""A worker's pipe in memory: to the server a `Pipe`, as `ipc.channel.Channel` is, and to the worker its other end.

It keeps what matters of a socket pair. What is written lies in the pipe until the loop's turn to read it. The last
words of a worker that has died can still be read. Writing to one that has died breaks the pipe at once. And every
frame passes through the real codec.
"""

from __future__ import annotations

from collections.abc import Callable

from mosec_asgi.ipc import frames
from mosec_asgi.ipc.channel import Seen


class MemoryPipe:
    """A duplex pipe between the server and a worker in the same process.

    Attributes:
        finished: the server has ended the stream towards the worker.
        is_open: the server has not let go of the pipe, nor heard of its end.
    """

    def __init__(
        self,
        later: Callable[[Callable[[], None]], object],
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        to_worker: Callable[[frames.Frame | None], None],
    ) -> None:
        """Open the pipe.

        Args:
            later: runs what it is given in a later turn of the loop, such as the loop's `call_soon`.
            on_frame: of the server: called with each frame of the worker.
            on_closed: of the server: called once, with the reason, if the pipe ends by the worker's doing.
            to_worker: called with each frame of the server, then with None at the end of the stream.
        """
        self.finished = False
        self.is_open = True
        self._later = later
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._to_worker = to_worker
        self._sent = frames.Decoder()
        self._written = frames.Decoder()
        # What is on its way; None stands for the end of the stream.
        self._for_worker: list[frames.Frame | None] = []
        self._for_server: list[bytes] = []
        # Why the stream towards the server has ended, once the worker has ended it.
        self._ended: str | None = None

    # -- the server's end --------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send a frame; after the pipe has closed this does nothing."""
        self._sent.receive_data(data)
        frame = self._sent.next_frame()
        if frame is None or self._sent.pending:
            raise AssertionError("a send is one frame")
        if self.is_open and self._ended is None:
            self._pass_on(frame)
        else:
            self._refuse(frame)

    def busy_poll(self, seconds: float) -> Seen:
        """See nothing come: no worker runs meanwhile."""
        return Seen.NOTHING

    def drain(self) -> None:
        """Take in what the worker has sent before its end."""
        self._read()

    def finish(self) -> None:
        """Ask the worker to stop."""
        if self.is_open and not self.finished:
            self.finished = True
            self._pass_on(None)

    def close(self) -> None:
        """Let go of the pipe. Idempotent."""
        self._shut()

    @property
    def unread(self) -> bool:
        """Whether the worker has written what the server has not read."""
        return bool(self._for_server)

    # -- the worker's end --------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write bytes, be they frames or not."""
        if self.is_open and self._ended is None:
            if not self._for_server:
                self._later(self._read)
            self._for_server.append(data)

    def hang_up(self, reason: str = "it was closed") -> None:
        """End the worker's side; what it has written before is still read."""
        if self.is_open and self._ended is None:
            self._ended = reason
            self._for_worker.clear()
            self._later(self._read)

    # -- under way ---------------------------------------------------------------------------------------------------

    def _pass_on(self, frame: frames.Frame | None) -> None:
        if not self._for_worker:
            self._later(self._arrive)
        self._for_worker.append(frame)

    def _refuse(self, frame: frames.Frame) -> None:
        if self.is_open:
            self._fail("writing to it failed: Broken pipe")

    def _arrive(self) -> None:
        arrived, self._for_worker = self._for_worker, []
        for frame in arrived:
            self._to_worker(frame)

    def _read(self) -> None:
        """Read all that lies in the pipe, then its end if that has come."""
        data, self._for_server = self._for_server, []
        for piece in data:
            self._written.receive_data(piece)
            try:
                while self.is_open and (frame := self._written.next_frame()) is not None:
                    self._on_frame(frame)
            except frames.FrameError as error:
                self._fail(f"garbage came from it: {error}")
        if self._ended is not None and self.is_open:
            self._fail("it was closed in the middle of a frame" if self._written.pending else self._ended)

    def _shut(self) -> None:
        self.is_open = False
        self._for_server.clear()
        self._for_worker.clear()

    def _fail(self, reason: str) -> None:
        self._shut()
        self._on_closed(reason)
