"""The link to a worker process: takes and reports messages, and carries them as frames and in shared memory.

A `Channel` carries the frames, a page of memory tells how far the worker has come, and large payloads lie in memory
that both share (`ipc.shm`). Users of the link see none of that.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from mosec_asgi.ipc import frames
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import WorkerMemory
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.pool.process.watched import WatchedProcess

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessLink:
    """One life of a worker process, as its pool holds it; see `pool.link.WorkerLink`."""

    def __init__(
        self,
        process: WatchedProcess,
        sock: socket.socket,
        page: ProgressPage,
        memory: WorkerMemory | None,
        events: WorkerEvents,
        loop: asyncio.AbstractEventLoop,
        *,
        busy_polls: bool,
        on_gone: Callable[[int], None] | None = None,
    ) -> None:
        """Put together what reaches a process that has been started, and begin to listen.

        Args:
            process: tells of its exit.
            sock: the server's end of its pipe.
            page: where it notes how far it has come.
            memory: the account of what it shares with the server; None where all payloads go through the pipe.
            events: hears what it does.
            loop: to listen on.
            busy_polls: it runs on a processor of its own, so that polling for its answers can pay.
            on_gone: called with the process's number when it has ended and all events have been reported.
        """
        self._process = process
        self._page = page
        self._memory = memory
        self._events = events
        self._loop = loop
        self._on_gone = on_gone
        self._channel = Channel(sock, self._on_frame, self._on_closed, busy_polls=busy_polls)
        self._channel.open(loop)
        process.watch(loop, self._on_exit)
        if memory is not None:
            memory.on_full(self._tell_freed_soon)

    @property
    def name(self) -> str:
        """What the logs call it."""
        return f"process {self._process.pid}"

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    # -- to the worker -----------------------------------------------------------------------------------------------

    def send(self, tasks: Tasks) -> None:
        """Give the worker tasks."""
        memory = self._memory
        if memory is None:
            self._channel.send(frames.encode_tasks(tasks))
            return
        freed = memory.freed()
        if max(map(len, tasks.payloads)) >= LARGE:
            tasks = memory.send(tasks)
        encoded = frames.encode_tasks(tasks)
        self._channel.send(freed + encoded if freed else encoded)

    def cancel(self, cancels: Cancels) -> None:
        """Tell the worker that nobody waits for some of its tasks any more."""
        self._channel.send(frames.encode_cancels(cancels))

    def credit(self, credits: Credits) -> None:
        """Tell the worker what clients have taken of its streams."""
        self._channel.send(frames.encode_credits(credits))

    def progress(self) -> Progress:
        """Return how far it has come."""
        return self._page.read()

    def memory(self) -> int | None:
        """Return the bytes of memory that the process takes, as `ps` shows them; None without Linux's /proc."""
        # Before its fork a worker's number is that of its template.
        try:
            with open(f"/proc/{self._process.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * PAGE_BYTES
        except (OSError, IndexError):
            # It has just ended.
            return None

    def busy_poll(self, seconds: float) -> bool | None:
        """Poll for what it says; see `WorkerLink.busy_poll`."""
        return self._channel.busy_poll(seconds)

    def drain(self) -> None:
        """Report what it has said before its end."""
        self._channel.drain()

    def finish(self) -> None:
        """Ask it to stop."""
        self._channel.finish()

    def close(self) -> None:
        """Close the pipe."""
        self._channel.close()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def reap(self, timeout: float) -> None:
        """Wait for the process to end, without a loop; kill it after `timeout` seconds."""
        self._process.reap(timeout)
        self._let_go()

    def describe_exit(self) -> str:
        """Say how the process ended."""
        return self._process.describe_exit()

    def _tell_freed_soon(self) -> None:
        # In a later turn: the code that frees blocks is in the middle of a change.
        self._loop.call_soon(self._tell_freed)

    def _tell_freed(self) -> None:
        if self._memory is not None and (freed := self._memory.freed()):
            self._channel.send(freed)

    # -- from the worker ---------------------------------------------------------------------------------------------

    def _on_frame(self, frame: frames.Frame) -> None:
        try:
            if isinstance(frame, Results):
                self._on_results(frame)
            elif isinstance(frame, Chunks):
                self._events.chunks(frame)
            elif isinstance(frame, (frames.Kept, frames.Released)):
                self._account().hear(frame)
            elif isinstance(frame, frames.Ready):
                self._events.ready()
            elif isinstance(frame, frames.Failed):
                self._events.failed(frame.text)
            else:
                raise frames.FrameError(f"a worker does not send {type(frame).__name__}")
        except frames.FrameError as error:
            self._broke(str(error))

    def _on_results(self, results: Results) -> None:
        memory = self._memory
        if frames.IN_MEMORY in results.codes:
            results = self._account().receive(results)
        self._events.results(results)
        if memory is not None and memory.reads:
            memory.answered(results.ids)

    def _account(self) -> WorkerMemory:
        if self._memory is None:
            raise frames.FrameError("it refers to shared memory, and has none")
        return self._memory

    def _broke(self, reason: str) -> None:
        """End the link, because the worker has sent something invalid."""
        self._channel.close()
        self._events.closed(f"broke its pipe ({reason})")

    def _on_closed(self, reason: str) -> None:
        self._events.closed(f"broke its pipe ({reason})" if reason else "")

    def _on_exit(self) -> None:
        self._events.exited()
        if self._on_gone is not None and self.pid is not None:
            self._on_gone(self.pid)
        self._let_go()

    def _let_go(self) -> None:
        self._channel.close()
        self._page.close()
        if self._memory is not None:
            self._memory.close()
        # The listener refers to this link: neither must wait for the garbage collector.
        self._events = _NOBODY
        self._on_gone = None


class _Nobody:
    """Ignores all events: the process has ended."""

    def ready(self) -> None:
        """Hear nothing."""

    def failed(self, traceback: str) -> None:
        """Hear nothing."""

    def results(self, results: Results) -> None:
        """Hear nothing."""

    def chunks(self, chunks: Chunks) -> None:
        """Hear nothing."""

    def closed(self, reason: str = "") -> None:
        """Hear nothing."""

    def exited(self) -> None:
        """Hear nothing."""


_NOBODY = _Nobody()
