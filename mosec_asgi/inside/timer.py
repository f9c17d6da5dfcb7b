"""Bounds the time of `forward`: by an exception, and where that cannot work, by a timer of the kernel."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable

from mosec_asgi import log
from mosec_asgi.errors import too_slow

# Seconds after which the kernel ends a worker that even the server has not ended: the server is dead.
FORSAKEN_SECONDS = 3.0

logger = log.internal_logger(__name__)


class Timer:
    """Bounds a block's time by raising `MosecTimeoutError` in it: `with timer: ...`.

    Uses SIGALRM, which Python handles on the main thread between two bytecodes; on any other thread it does nothing. A
    call that never returns to Python is not interrupted. The server notices that and kills the worker, and if the
    server has died, the kernel does.

    The alarm is not set and cleared around each block, which would be two system calls for a task of some microseconds.
    An alarm that goes off early, because it was set for an earlier block, is set again for the time that is left.
    """

    def __init__(self, seconds: float, kernel: KernelTimer | None = None) -> None:
        """Set no alarm yet.

        Args:
            seconds: that a block may take.
            kernel: ends the process where the exception cannot be raised.
        """
        self._seconds = seconds
        self._kernel = kernel
        # Whether there is a block to interrupt. Only the thread of the block sets it.
        self._running = False
        # The block's deadline, which any thread may move.
        self._deadline = 0.0
        self._pending = False
        # A block was interrupted, and the kernel's timer is still set for it: it may catch the exception and go on.
        self._interrupted = False
        self._handles: bool | None = None
        self._thread = 0

    def __enter__(self) -> None:
        if self._handles is None:
            self._handles = _handle_alarm(self._alarm)
            self._thread = threading.get_ident()
        # The code of `restart` and `resume`, without two calls for each block.
        self._deadline = time.perf_counter() + self._seconds
        self._running = True
        if self._handles and not self._pending:
            self._set(self._seconds)

    def __exit__(self, *_: object) -> None:
        self._running = False

    def restart(self) -> None:
        """Give the block its whole time again."""
        self._deadline = time.perf_counter() + self._seconds

    def pause(self) -> bool:
        """Protect the block from interruption; return whether it could be interrupted, so that `resume` is needed.

        Code that `forward` calls and that the exception must not interrupt runs between `pause` and `resume`. The time
        goes on. On other threads than the block's, which cannot be interrupted, this does nothing.
        """
        if not self._running or threading.get_ident() != self._thread:
            return False
        self._running = False
        return True

    def resume(self) -> None:
        """Let the block be interrupted again once its time is over."""
        self._running = True
        if self._handles and not self._pending:
            self._set(max(self._deadline - time.perf_counter(), 1e-6))

    def check(self) -> None:
        """Let the kernel kill no idle process: call this between two blocks, where another may not come for long.

        An alarm that goes off tells the kernel so. This is for the alarm that has interrupted a block, and for one that
        the user's code has cleared; the next block sets it again.
        """
        if self._pending:
            if signal.getitimer(signal.ITIMER_REAL)[0]:
                return
            self._handles = None
        elif not self._interrupted:
            return
        self._pending = self._interrupted = False
        if self._kernel is not None:
            self._kernel.set(0.0)

    def _set(self, seconds: float) -> None:
        self._pending = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        if self._kernel is not None:
            # A block that begins just before the alarm keeps its whole time.
            self._kernel.set(seconds + self._seconds + FORSAKEN_SECONDS)

    def _alarm(self, *_: object) -> None:
        self._pending = False
        if not self._running:
            if self._kernel is not None:
                self._kernel.set(0.0)
            return
        left = self._deadline - time.perf_counter()
        if left > 0:
            self._set(left)
            return
        self._running = False
        self._interrupted = True
        raise too_slow(self._seconds)


class NoTimer:
    """Stands in for a `Timer` where nothing can be interrupted: in a thread, which its server gives up instead."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return

    def restart(self) -> None:
        """Do nothing; see `Timer.restart`."""

    def pause(self) -> bool:
        """Return that there is nothing to resume; see `Timer.pause`."""
        return False

    def resume(self) -> None:
        """Do nothing; see `Timer.resume`."""

    def check(self) -> None:
        """Do nothing; see `Timer.check`."""


def _handle_alarm(handler: Callable[..., None]) -> bool:
    """Install the handler of SIGALRM; False on a thread that cannot have one."""
    try:
        signal.signal(signal.SIGALRM, handler)
    except ValueError:
        return False
    return True


class _Event(ctypes.Structure):
    # `struct sigevent` of <signal.h> on Linux, which is 64 bytes long.
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class _Span(ctypes.Structure):
    # `struct itimerspec` of <time.h>: the interval, and the time until the first expiry.
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class KernelTimer:
    """A timer of the kernel that kills this process: `timer_create(2)` with SIGKILL. Linux only.

    It does not need Python when it goes off, so it ends a process whose interpreter is held by a call that never
    returns.
    """

    def __init__(self) -> None:
        """Make the timer; it is not set.

        Raises:
            OSError: this system has none.
        """
        if sys.platform != "linux":
            raise OSError("timer_create is used on Linux only")
        self._library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._library, "timer_create"):
            # glibc before 2.34 has it in a separate library, librt.
            self._library = ctypes.CDLL("librt.so.1", use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _Event(signo=signal.SIGKILL, notify=0)
        if self._library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create failed")

    def set(self, seconds: float) -> None:
        """Kill the process in `seconds`, instead of what was set before; 0 for never."""
        span = _Span(0, 0, int(seconds), int(seconds % 1 * 1e9))
        self._library.timer_settime(self._timer, 0, ctypes.byref(span), None)


def kernel_timer() -> KernelTimer | None:
    """Return a timer of the kernel; None where the system has none."""
    try:
        return KernelTimer()
    except OSError as error:
        logger.debug("no timer of the kernel: %s", error)
        return None
