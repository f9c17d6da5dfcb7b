"""The processes that a worker starts: they handle the usual signals, and end with the worker however it ends.

A worker leads a process group of its own, which includes the processes that it starts; a process that is to outlive the
worker leaves the group by a session of its own (`start_new_session=True`). A ctrl-c, which a terminal sends to the
server's group, does not reach the worker's group. The members are ended

- by a worker that ends in good order, with a signal that lets them clean up (`end_members_at_exit`);
- by the process that has reaped the worker, however it ended (`end_group`);
- by the worker itself, last of all, where the server has died and nobody is left to reap it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from mosec_asgi import log

# The signals that a worker ignores, since its server decides when it ends, and how other programs handle them.
_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
# Seconds that members get to clean up where only their worker is left to kill them.
MEMBER_SECONDS = 1.0
# The process of `multiprocessing` that removes what others have left in shared memory. It ends by itself after that.
_TRACKER = b"multiprocessing.resource_tracker"


logger = log.internal_logger(__name__)


class _Children:
    """What to do in each process that is forked from this one.

    Attributes:
        callbacks: called there.
        workers: the process that is forked now is a worker, which sets its signals itself.
    """

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.workers = False
        self.of_worker = False
        self._hooked = False
        # The signals that were blocked before the fork, for each thread that forks.
        self._mask = threading.local()

    def hook(self) -> None:
        """Register the hooks. Idempotent."""
        if not self._hooked:
            self._hooked = True
            os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._begin)

    def _block(self) -> None:
        """Block signals until the child has the usual handlers, or it would lose those that come before."""
        self._mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _USUAL)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before)

    def _begin(self) -> None:
        if not self.workers:
            for number, usual in _USUAL.items():
                # Unless the user's code has set a handler of its own.
                if signal.getsignal(number) is _nothing:
                    signal.signal(number, usual)
            for callback in self.callbacks:
                callback()
        self._unblock()


_children = _Children()


def lead() -> None:
    """Make this process, a worker, the leader of a group of its own."""
    # The system refuses this to the leader of a session, which leads its group already.
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)


def heed_no_signals() -> None:
    """Ignore the signals that end a program in this process, and not in processes that it starts.

    By handlers that do nothing: every program that is started here would inherit `SIG_IGN`, and `terminate` would not
    end it. System calls are resumed after the signal.
    """
    for number in _USUAL:
        signal.signal(number, _nothing)
        signal.siginterrupt(number, False)


def free_children(callback: Callable[[], None] | None = None) -> None:
    """Give processes that are forked from this one the usual signal handlers, which programs have after their start.

    Args:
        callback: to be called there as well.
    """
    _children.hook()
    if callback is not None:
        _children.callbacks.append(callback)


@contextlib.contextmanager
def forking_a_worker() -> Iterator[None]:
    """Change nothing in a process that is forked within this block: it is a worker itself."""
    _children.workers = True
    try:
        yield
    finally:
        _children.workers = False


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Have a process that is started within this block hear of no ctrl-c before it is a worker, by `begin_worker`.

    A terminal's ctrl-c reaches it as well, and would end it with a traceback in whatever it is importing. SIGTERM is
    left alone, as programs would inherit that which the user's module starts when it is imported.
    """
    # Started with the first spawned process otherwise, and then it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """Set up the group and the signals of a worker, in a process that may have been forked from a template."""
    _children.workers = False
    _children.of_worker = True
    _children.callbacks.clear()
    lead()
    heed_no_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def is_worker() -> bool:
    """Whether this process is a worker, or was forked from one."""
    return _children.of_worker


def end_members_at_exit() -> None:
    """End what this process, a worker, has started, when it ends in good order.

    This uses `multiprocessing`'s exit hooks: once before it waits for its own children, and once after that.
    """
    multiprocessing.util.Finalize(None, _terminate_members, exitpriority=0)
    multiprocessing.util.Finalize(None, _end_last, exitpriority=-100)


def end_members_in(seconds: float) -> None:
    """End what this process, a worker, has started after so many seconds, whatever else it still does."""
    timer = threading.Timer(seconds, _kill_members)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError as error:
        logger.debug("no thread to end what the worker has started: %s", error)


def end_members_of_dead_server() -> None:
    """Kill what this process has started where its server is dead, and will not."""
    server = multiprocessing.parent_process()
    if server is not None and os.getppid() != server.pid:
        _kill_members()


def end_group(leader: int) -> None:
    """Kill what a worker has started and left behind.

    Args:
        leader: the worker's process number. Call this as soon as the worker has been reaped: the number then still
            belongs to the worker's group, or to nothing.
    """
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        # The usual case: nothing is left.
        return
    members = _members(leader)
    if members is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    else:
        _signal(members, signal.SIGKILL)


def hold_group(leader: int) -> list[int]:
    """Return pidfds of what a process has started and left behind, to be killed later; see `kill_held`.

    Args:
        leader: as for `end_group`.
    """
    held = []
    for member in _members(leader) or []:
        with contextlib.suppress(OSError):
            held.append(os.pidfd_open(member))
    return held


def kill_held(held: list[int]) -> None:
    """Kill what `hold_group` has found, and close the pidfds."""
    for member in held:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(member, signal.SIGKILL)
        os.close(member)


def _terminate_members() -> None:
    """Ask the members to end; this process ignores the signal."""
    if _leads():
        os.killpg(0, signal.SIGTERM)


def _end_last() -> None:
    """Wait a little for the members to end, and kill the others, because the dead server cannot."""
    server = multiprocessing.parent_process()
    if server is None or os.getppid() == server.pid:
        return
    until = time.monotonic() + MEMBER_SECONDS
    while _members(os.getpid()) and time.monotonic() < until:
        time.sleep(0.01)
    _kill_members()


def _kill_members() -> None:
    if _leads():
        _signal(_members(os.getpid()) or [], signal.SIGKILL)


def _leads() -> bool:
    return os.getpgrp() == os.getpid()


def _members(leader: int) -> list[int] | None:
    """Return the processes of a group without its leader and those that end by themselves; None if it is not known."""
    if not os.path.isdir("/proc/self"):
        return None
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != leader and _group(folder) == leader:
            found.append(int(folder.name))
    return found


def _group(folder: Path) -> int:
    """Return the group of a process, or 0 if that process is not to be ended."""
    try:
        # The name of its program, in parentheses, may contain any characters.
        state, _, group = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:3]
        if state == b"Z" or _TRACKER in (folder / "cmdline").read_bytes():
            return 0
        return int(group)
    except OSError:
        # The process has ended meanwhile.
        return 0


def _signal(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _nothing(*_: object) -> None:
    """Do nothing about a signal."""
