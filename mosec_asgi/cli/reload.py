"""`serve --reload`: after an edit the service is started anew beside the one that runs, and takes over when ready.

This process serves nothing. It watches the files, and has one process that serves, and for a while after an edit a
second one that starts:

    edit ──► start another on the same socket ──► READY ──► the one before is told to DRAIN, and ends
                                             └──► it ends: its error is on the terminal; the one before still serves

An edit while another process starts ends that one, and begins again. `host.handover` is what these processes say to
each other. None of them outlives this one, even where this one is killed: each is at the end of a pair of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosec_asgi.cli.output import BAD, FAINT, GOOD, Output, output
from mosec_asgi.cli.settings import as_arguments
from mosec_asgi.cli.watching import edits
from mosec_asgi.host.handover import DRAIN, LISTENING, READY
from mosec_asgi.host.hangup import has_terminal

# Exit code of a command line that cannot be followed: an edit does not help.
WRONG_USE = 2
# Names that a line tells of; a checkout of another branch edits hundreds.
_MOST_NAMES = 3


def run(server: str, app_dir: str, given: Mapping[str, Any], *, patterns: Sequence[str], quiet: bool) -> int:
    """Serve, and serve anew after each edit, until a signal ends it.

    Args:
        server: MODULE:SERVER.
        app_dir: the folder that it is imported from, whose files are watched.
        given: the settings of the command line.
        patterns: of the names of the files that are watched.
        quiet: show no banner.

    Returns:
        the exit code.
    """
    command = [sys.executable, "-m", "mosec_asgi", "serve", server, "--app-dir", app_dir, *as_arguments(given)]
    folder = Path(app_dir).resolve()
    return asyncio.run(Reloader(command, folder, patterns, output(), quiet=quiet).run())


class Child:
    """A process that serves, or starts to.

    Attributes:
        process: the process.
        ready: it accepts connections.
        began: when it was started, in seconds.
        waiting: waits for its end.
    """

    waiting: asyncio.Task[None]

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        """Take a process that has been started, and this end of the pair."""
        self.process = process
        self.control = control
        self.ready = False
        self.began = time.monotonic()

    def tell(self, message: bytes) -> None:
        """Say something to it."""
        with contextlib.suppress(OSError):
            self.control.send(message)

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        # Not by `process.send_signal`, which reaps a process that has just ended: its exit code would be lost.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Reloader:
    """The process that serves, and the one that is to follow it."""

    def __init__(
        self, command: Sequence[str], folder: Path, patterns: Sequence[str], out: Output, *, quiet: bool
    ) -> None:
        """Store what `run` needs; see there.

        Args:
            command: of a process that serves, without what is the process's own.
            folder: whose files are watched.
            patterns: of their names.
            out: what is said of edits goes there.
            quiet: the first process shows no banner.
        """
        self._command = command
        self._folder = folder
        self._patterns = patterns
        self._out = out
        self._quiet = quiet
        # The one that serves, or is the first to start; and the one that is to follow it.
        self._serving: Child | None = None
        self._starting: Child | None = None
        self._has_served = False
        # All that have not ended.
        self._children: set[Child] = set()
        self._listening: socket.socket | None = None
        self._path = ""
        self._stopping = False
        # The signal that it stops by, which those that serve get; those that start get SIGTERM.
        self._signal = signal.SIGTERM
        self._code = 0
        self._ended = asyncio.Event()
        self._had_terminal = False

    async def run(self) -> int:
        """Serve until a signal, or until there is nothing to serve; return the exit code."""
        loop = asyncio.get_running_loop()
        self._had_terminal = has_terminal()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            loop.add_signal_handler(signal.SIGHUP, self._hangup)
        watching = loop.create_task(self._watch())
        try:
            await self._start()
            waiting = loop.create_task(self._ended.wait())
            await asyncio.wait([waiting, watching], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                self._stop(signal.SIGTERM)
                await waiting
                watching.result()
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            self._close()
        return self._code

    async def _watch(self) -> None:
        async for changed in edits(self._folder, self._patterns):
            if self._stopping:
                return
            self._out.line(f"edited: {_named(changed, self._folder)}; starting anew", FAINT)
            if self._starting is not None:
                self._starting.signal(signal.SIGTERM)
                self._starting = None
            if self._serving is not None and not self._serving.ready:
                await self._give_up(self._serving)
            await self._start()

    async def _give_up(self, child: Child) -> None:
        """End the first process, which does not serve yet, before another takes its place and its port."""
        self._serving = None
        child.signal(signal.SIGTERM)
        await asyncio.wait([child.waiting])

    async def _start(self) -> None:
        if self._stopping:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        passed = [theirs.fileno()]
        arguments = ["--control-fd", str(theirs.fileno())]
        if self._listening is not None:
            passed.append(self._listening.fileno())
            arguments += ["--listening-fd", str(self._listening.fileno())]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                *(["--quiet"] if self._quiet or self._has_served else []),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=passed,
                **_OWN_GROUP,
            )
        child = Child(process, ours)
        self._children.add(child)
        if self._serving is None:
            self._serving = child
        else:
            self._starting = child
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._read, child)
        child.waiting = loop.create_task(self._wait(child))
        if self._stopping:
            # The signal has come while the process was made.
            self._ended.clear()
            self._end(child)

    def _read(self, child: Child) -> bool:
        """Take in what a process says; return whether there may be more."""
        try:
            data, descriptors, _, _ = socket.recv_fds(child.control, 1, 1)
        except BlockingIOError:
            return False
        except OSError:
            data, descriptors = b"", []
        if data == LISTENING and descriptors:
            self._take(socket.socket(fileno=descriptors[0]))
        elif data == READY:
            self._is_ready(child)
        elif not data:
            asyncio.get_running_loop().remove_reader(child.control.fileno())
        return bool(data)

    def _take(self, listening: socket.socket) -> None:
        if self._listening is not None:
            self._listening.close()
        self._listening = listening
        self._path = listening.getsockname() if listening.family == socket.AF_UNIX else ""

    def _is_ready(self, child: Child) -> None:
        child.ready = self._has_served = True
        if child is not self._starting:
            return
        before, self._serving, self._starting = self._serving, child, None
        self._out.line(f"reloaded in {time.monotonic() - child.began:.1f} s", GOOD)
        if before is not None:
            before.tell(DRAIN)

    async def _wait(self, child: Child) -> None:
        code = await child.process.wait()
        while self._read(child):
            # What it has said last comes first.
            pass
        asyncio.get_running_loop().remove_reader(child.control.fileno())
        child.control.close()
        self._children.discard(child)
        if child is self._starting:
            self._starting = None
            if not self._stopping:
                self._out.line("the edit does not start, as said above; the service of before still answers", BAD)
        elif child is self._serving:
            self._serving = None
            self._gone(child, code)
        if self._stopping and not self._children:
            self._ended.set()

    def _gone(self, child: Child, code: int) -> None:
        """Look at what is left when the process that serves has ended."""
        if self._stopping:
            self._code = 128 + self._signal if code < 0 or not child.ready else code
        elif code == WRONG_USE and not child.ready:
            self._code = code
            self._stop(signal.SIGTERM)
        elif self._starting is not None:
            self._serving, self._starting = self._starting, None
        else:
            self._out.line(f"the service has ended (exit code {code}); it is started again after the next edit", BAD)

    def _stop(self, number: signal.Signals) -> None:
        self._stopping, self._signal = True, number
        for child in self._children:
            self._end(child)
        if not self._children:
            self._ended.set()

    def _hangup(self) -> None:
        """End with the terminal; else have the process that serves replace its workers, as without `--reload`."""
        if self._had_terminal and not has_terminal():
            self._stop(signal.SIGTERM)
        elif self._serving is not None and self._serving.ready:
            self._serving.signal(signal.SIGHUP)

    def _end(self, child: Child) -> None:
        # An interrupt may be lost while modules are imported, where Python can only print it, or the module catches it.
        child.signal(self._signal if child.ready else signal.SIGTERM)

    def _close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


# A terminal's ctrl-c reaches this process alone, which passes it on: else it would come twice.
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


def _named(files: Iterable[str], folder: Path) -> str:
    names = sorted(os.path.relpath(file, folder) for file in files)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
