"""An event loop on virtual time: nobody waits, and what happens depends on nothing but the program.

The loop never sleeps. When nothing is ready to run, its clock jumps to the next timer, so that `await
asyncio.sleep(3600)` takes no time and advances the clock by an hour. When there is no timer either, nothing can ever
happen again, and that is an error with the names of the tasks that wait.

Real descriptors are looked at in every turn and never waited for: they and virtual time do not go well together, unless
both ends are in this program. While a thread of an executor works, the clock stands and the loop does wait for it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# Turns in which no time passes before the loop is taken to go round in circles.
MOST_TURNS = 100_000


class DeadlockError(RuntimeError):
    """Time stands still for ever: all tasks wait and no timer is set, or somebody asks again and again."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` jumps from timer to timer.

    Attributes:
        before_jump: called each time when all that was ready has run, and the clock is about to move or there is
            nothing to move it to. What it raises ends the run.
    """

    def __init__(self, start: float = 0.0) -> None:
        """Begin at the time `start`, in seconds."""
        self._now = start
        self._threads = 0
        self._turns = 0
        self.before_jump: Callable[[], None] | None = None
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are still to fire."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [timer for timer in scheduled if not timer.cancelled()]

    def run_in_executor(  # type: ignore[override]  # typeshed names its parameters more precisely
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function in a thread; the clock stands until it is done."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Join the threads; the clock stands meanwhile."""
        self._threads += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._threads -= 1

    def _thread_done(self, _: asyncio.Future[Any]) -> None:
        self._threads -= 1

    def _turn(self) -> None:
        """Count a turn in which no time passes."""
        self._turns += 1
        if self._turns > MOST_TURNS and not self._threads:
            self._turns = 0
            raise DeadlockError(
                f"the loop has turned {MOST_TURNS:,} times and no time has passed: "
                "what waits with `asyncio.sleep(0)` waits for ever; let it sleep for longer"
            )

    def _jump(self, seconds: float | None) -> None:
        """Let time pass until the next timer, which is `seconds` away; None where there is none."""
        if self.before_jump is not None:
            self.before_jump()
            if self._ready:  # type: ignore[attr-defined]
                return
        if seconds is None:
            raise DeadlockError(self._describe_deadlock())
        self._now += seconds
        self._turns = 0

    def _describe_deadlock(self) -> str:
        waiting = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [f"  {task.get_name()}: {_place_of(task)}" for task in waiting]
        return "\n".join(["nothing is ready to run and no timer is set; these tasks would wait for ever:", *lines])


class _Selector(selectors.DefaultSelector):
    """Asks the real descriptors without waiting, and lets the clock jump where the loop would wait."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            self._loop._turn()
            return super().select(0)
        if self._loop._threads:
            return super().select(None)
        events = super().select(0)
        if not events:
            self._loop._jump(timeout)
        return events


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new loop with virtual time, as `asyncio.run` does on a real one.

    Args:
        main: what to run; what it leaves running is cancelled at its end.

    Raises:
        DeadlockError: all tasks wait, and nothing is left that could wake one.
        RuntimeError: this thread runs an event loop already.
    """
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("testing.run() starts an event loop of its own: call it where none is running")
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


def _place_of(task: asyncio.Task[Any]) -> str:
    """Return the line at which a task waits."""
    frames = task.get_stack()
    if not frames:
        return repr(task.get_coro())
    code = frames[-1].f_code
    return f"{code.co_name} ({code.co_filename}:{frames[-1].f_lineno})"
