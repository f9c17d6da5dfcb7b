"""Runs tasks on a worker whose `forward` is asynchronous: several at a time, on an event loop of the worker's own.

A unit of work is a task, or a batch where the stage has them (`batch`). Each unit is a task of asyncio, at most
`concurrency` at a time; the others wait. A unit is cancelled when its time is over, or when all its clients have left.
A unit that does not end soon after that is given up: its tasks are answered and its slot is free, though it still runs.
If it goes on for long, the log says that it swallows its cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import MosecTimeoutError, too_slow
from mosec_asgi.inside.batch import END, BatchAlgorithm, Close, Forward, Next, Unit, Wanted
from mosec_asgi.inside.codec import LEFT, Answer, Codec, Left
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.isolation import Raised
from mosec_asgi.inside.outlet import Outlet
from mosec_asgi.inside.plain_runner import NO_TASKS
from mosec_asgi.inside.port import Port
from mosec_asgi.inside.returned import async_events_of, check_finished
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import FORSAKEN_SECONDS, KernelTimer, NoTimer, Timer
from mosec_asgi.messages import Results
from mosec_asgi.request import Request
from mosec_asgi.streaming import SSEWorker, streams
from mosec_asgi.worker import Worker

# Seconds between two signs of life while units run: the loop is not blocked.
BEAT_SECONDS = 0.2
# Turns of the loop that a unit gets once its deadline has passed. If another has blocked the loop, what this one waits
# for may have happened long before its deadline, and is several turns away: a task that awaits a task that awaits.
LATE_TURNS = 10
# Seconds that a unit gets to end after it has been cancelled; then its tasks are answered.
CANCEL_SECONDS = 0.5
# Seconds that a unit which has been given up may clean up, before the log says that it swallows its cancellation.
CLEANING_SECONDS = 5.0

logger = log.internal_logger(__name__)


@dataclass(slots=True, eq=False)
class AsyncUnit(Unit):
    """A unit with its time.

    Attributes:
        begun: its first step has been done.
        deadline: when the step that runs is cancelled; infinite where there is none.
        late: it has been cancelled because of its deadline.
        left: it has been cancelled because all its clients have left.
        timer: watches the deadline; after the cancellation, the time that the unit gets to end.
    """

    begun: bool = False
    deadline: float = math.inf
    late: bool = False
    left: bool = False
    timer: asyncio.Handle | None = None


# The request id of a rehearsal.
_NOTHING = Unit(NO_TASKS, ())
# The unit for which the current code runs.
_current: contextvars.ContextVar[Unit] = contextvars.ContextVar("unit")


class AsyncRunner:
    """Runs the tasks that come through a port, several at a time, until it ends."""

    def __init__(
        self,
        worker: Worker,
        spec: WorkerSpec,
        port: Port,
        kernel: KernelTimer | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        timer: Timer | NoTimer | None = None,
    ) -> None:
        """Bind a worker to its port.

        Args:
            worker: what to run.
            spec: how.
            port: where tasks come from and results go.
            kernel: ends the process when its loop hangs and nobody else can.
            loop: to run on; None for one of its own, which `serve` runs.
            timer: bounds the time of the user's own formats, which block the loop; None where nothing can.
        """
        # Of any kind: what its `forward` takes and returns depends on that, and on the stage.
        self._worker: Any = worker
        self._spec = spec
        self._port = port
        self._kernel = kernel
        if spec.traces:
            port.measure()
        self._codec = Codec(worker, spec, port.memory, timer, self._show_life, port.store)
        self._batches = spec.max_batch_size > 1
        streaming = streams(type(worker)) and not spec.next_stages
        self._outlet = Outlet(worker, spec, self._codec, port) if streaming else None
        self._algorithm = BatchAlgorithm(
            spec, self._codec, port, time.perf_counter, self._outlet, events_of=async_events_of
        )
        self._loop = loop or _new_loop()
        # Units that wait, units that run, and units that still run though they have been given up.
        self._waiting: deque[AsyncUnit] = deque()
        self._running: dict[asyncio.Task[None], AsyncUnit] = {}
        self._given_up: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        self._beat_timer: asyncio.TimerHandle | None = None
        # An exception that ends the worker, raised in a callback of the loop, which would only log it.
        self._ending: Ending | None = None
        # Set whenever something has come through the port.
        self._news = asyncio.Event()
        self._thread = threading.get_ident()
        worker._has_left = self._has_left
        worker._request_at = self._request_at
        if isinstance(worker, SSEWorker) and streaming:
            worker._send_event = self._push

    def request_ids(self) -> list[str]:
        """Return the ids of the requests of the unit for which the current code runs."""
        unit = _current.get(_NOTHING)
        return unit.request_ids_inside() or unit.request_ids

    def trace_ids(self) -> list[str]:
        """Return the ids of the traces of those requests that are traced."""
        return _current.get(_NOTHING).trace_ids_inside()

    # -- its life ----------------------------------------------------------------------------------------------------

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example, whose events nobody receives."""
        self._finish(self.rehearsal(example))

    async def rehearsal(self, example: Any) -> None:
        """Do the same on a loop that runs."""
        _current.set(_NOTHING)
        result = self._worker.forward(example)
        if not isinstance(result, AsyncIterator):
            result = await result
        if self._outlet is None:
            check_finished(result)
        elif (events := async_events_of(result, batched=self._batches)) is not None:
            async for _ in events:
                pass

    def serve(self) -> None:
        """Run what comes until the port ends."""
        while True:
            try:
                self._finish(self.serving())
            except asyncio.CancelledError:
                # By the user's code, which has cancelled all tasks of the loop: other requests still wait.
                self._codec.say(logging.WARNING, "`forward` has cancelled tasks that are not its own")
            else:
                return

    def close(self) -> None:
        """Let the worker release what it took; `close` may be asynchronous."""
        # A unit that the server's death has ended raises it again.
        with contextlib.suppress(Ending):
            self._finish(self._cancel_all())
        if self._beat_timer is not None:
            # A beat would put the kernel's timer off.
            self._beat_timer.cancel()
        self._finish(self.closing())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def closing(self) -> None:
        """Let the worker release what it took, on a loop that runs."""
        self._codec.close()
        closing = self._worker.close()
        if inspect.isawaitable(closing):
            await closing

    async def serving(self) -> None:
        """Run what comes until the port ends, on a loop that runs."""
        self._port.watch(self._loop, self.poll)
        self.poll()
        while not self._port.ended and self._ending is None:
            await self._news_come()
        self._port.unwatch(self._loop)
        if self._ending is not None:
            raise self._ending
        await self._cancel_all()

    def _finish(self, work: Any) -> None:
        """Run the loop until a coroutine of ours is done.

        asyncio passes `SystemExit` and `KeyboardInterrupt` through to the code that runs the loop. They come from the
        user's code, in a task that `forward` has started, so they are left to the code that awaits that task. And where
        the user's code stops the loop, it is run on: other requests are on it as well.
        """
        ours = self._loop.create_task(work)
        while True:
            try:
                self._loop.run_until_complete(ours)
            except Ending:
                raise
            except (SystemExit, KeyboardInterrupt):
                if ours.done():
                    raise
            except RuntimeError:
                # The text that says so is another in uvloop.
                if ours.done() or self._loop.is_closed() or self._loop.is_running():
                    raise
                self._codec.say(logging.WARNING, "`forward` has stopped the event loop, which goes on")
            else:
                return

    async def _cancel_all(self) -> None:
        """Cancel all units: the server has ended the stream, or has died, and nobody waits for them.

        Or the worker ends by itself: then the units are not answered, and the server has others run them again.
        """
        self._waiting.clear()
        for running, unit in self._running.items():
            unit.left = True
            if not self._port.ended:
                unit.settled = True
                if self._outlet is not None:
                    self._outlet.abandon(unit.ids)
            running.cancel()
        for blaming in self._given_up.values():
            blaming.cancel()
        left = [*self._running, *self._given_up]
        if left:
            await asyncio.wait(left, timeout=CANCEL_SECONDS)

    def poll(self) -> None:
        """Take in what has come, and begin what there is room for."""
        try:
            self._take_in()
        except Ending as ending:
            self._ending = ending
        self._news.set()

    def _take_in(self) -> None:
        self._port.poll()
        while self._port.tasks:
            tasks = self._port.tasks.popleft()
            places = range(len(tasks.ids))
            groups = [places] if self._batches else [(place,) for place in places]
            self._waiting.extend(AsyncUnit(tasks, group) for group in groups)
        if self._port.cancelled:
            for running, unit in list(self._running.items()):
                unanswered = self._unanswered(unit)
                if not unit.left and unanswered and self._port.cancelled.issuperset(unanswered):
                    unit.left = True
                    self._cancel(running, unit)
        self._begin_units()

    async def _news_come(self) -> None:
        self._news.clear()
        await self._news.wait()

    # -- units -------------------------------------------------------------------------------------------------------

    def _begin_units(self) -> None:
        while self._waiting and len(self._running) < self._spec.concurrency:
            unit = self._waiting.popleft()
            self._port.progress.begin(len(unit.places))
            self._begin(unit)
        if self._running and self._beat_timer is None:
            # At once, because the unit's first step may block the loop.
            self._beat()

    def _begin(self, unit: AsyncUnit) -> None:
        running = self._loop.create_task(self._run(unit))
        self._running[running] = unit
        running.add_done_callback(self._ended)

    async def _run(self, unit: AsyncUnit) -> None:
        """Run the algorithm's steps to its end."""
        unit.begun = True
        _current.set(unit)
        steps = self._algorithm.run(unit)
        came = None
        try:
            while True:
                came = await self._do(steps.send(came), unit)
        except StopIteration:
            return

    async def _do(self, wanted: Wanted, unit: AsyncUnit) -> Any:
        try:
            if isinstance(wanted, Forward):
                self._restart(unit)
                came = self._worker.forward(wanted.data)
                if not isinstance(came, AsyncIterator):
                    came = await came
            elif isinstance(wanted, Next):
                self._restart(unit)
                came = await _next(wanted.events) if wanted.awaited else next(wanted.events, END)
            elif isinstance(wanted, Close):
                self._restart(unit)
                closing = wanted.events.aclose() if wanted.awaited else wanted.events.close()
                if wanted.awaited:
                    await closing
                return None
            else:
                unit.deadline = math.inf
                await self._news_come()
                return None
        except Ending:
            raise
        except GeneratorExit as error:
            if not self._is_at_work(unit):
                # Not the user's code: the coroutine is closed, with the loop, and must end.
                raise
            return Raised(self._explained(unit, error))
        except BaseException as error:
            return Raised(self._explained(unit, error))
        finally:
            unit.deadline = math.inf
        # The user's code may have swallowed the cancellation and returned a result.
        return Raised(self._too_late()) if unit.late else came

    def _is_at_work(self, unit: AsyncUnit) -> bool:
        """Whether the loop is doing a step of a unit just now."""
        running = asyncio.current_task() if asyncio._get_running_loop() is self._loop else None
        return running is not None and self._running.get(running) is unit

    def _explained(self, unit: AsyncUnit, error: BaseException) -> BaseException:
        """Return what an exception of `forward` means."""
        if unit.left:
            return Left()
        if unit.late:
            return self._too_late()
        if isinstance(error, asyncio.CancelledError):
            fault = _from_within()
            fault.__cause__ = error
            return fault
        return error

    def _too_late(self) -> MosecTimeoutError:
        return too_slow(self._spec.timeout)

    def _ended(self, running: asyncio.Task[None]) -> None:
        blaming = self._given_up.pop(running, None)
        if blaming is not None:
            blaming.cancel()
            # Its result or exception is of no interest, but asyncio complains of one that nobody has read.
            _ = running.cancelled() or running.exception()
            return
        unit = self._running.pop(running)
        if unit.timer is not None:
            unit.timer.cancel()
        if running.cancelled():
            if not unit.begun and not unit.left:
                # By the user's code, for another unit, before its first step.
                self._begin(unit)
                return
            if not unit.settled:
                left = unit.left
                self._settle(unit, LEFT if left else self._codec.failure(_from_within(), unit.request_ids))
        elif isinstance(error := running.exception(), Ending):
            self._ending = error
            self._news.set()
            return
        elif error is not None:
            # A fault of ours: exceptions of the user's code have become answers.
            self._settle(unit, self._codec.failure(error, unit.request_ids))
        self._let_go(unit)
        self._port.report()

    def _let_go(self, unit: AsyncUnit) -> None:
        """Free the slot of a unit that has ended or was given up."""
        self._worker._answered(unit.payloads)
        self._begin_units()

    def _settle(self, unit: AsyncUnit, answer: Answer) -> None:
        """Answer those tasks of a unit that have not been answered."""
        unit.settled = True
        if self._outlet is not None:
            for task_id in unit.ids:
                self._outlet.end(task_id, answer)
        if unanswered := self._unanswered(unit):
            size = len(unanswered)
            self._port.answer(Results(unanswered, [answer[0]] * size, [answer[1]] * size, 0.0))

    def _unanswered(self, unit: AsyncUnit) -> list[int]:
        """Return the tasks of a unit that have not been answered."""
        return list(filter(self._port.holds, unit.ids))

    def _beat(self) -> None:
        self._beat_timer = None
        if self._running:
            self._show_life()
            self._beat_timer = self._loop.call_later(BEAT_SECONDS, self._beat)
        elif self._kernel is not None:
            self._kernel.set(0.0)

    def _show_life(self) -> None:
        """Let the server and the kernel know that a step is done."""
        self._port.progress.beat()
        if self._kernel is not None and self._running:
            # The next beat puts the timer off; a loop that is blocked for longer than a step may take does not beat.
            self._kernel.set(2 * self._spec.timeout + FORSAKEN_SECONDS)

    # -- time --------------------------------------------------------------------------------------------------------

    def _restart(self, unit: AsyncUnit) -> None:
        """Give a unit its whole time for the next step; the timer, once set, follows by itself."""
        if unit.late or unit.left:
            # It is cancelled, and its time to end runs already.
            return
        unit.deadline = self._loop.time() + self._spec.timeout
        if unit.timer is None:
            unit.timer = self._loop.call_at(unit.deadline, self._look_at, unit)

    def _look_at(self, unit: AsyncUnit, turns: int = LATE_TURNS) -> None:
        """Cancel a unit whose deadline has passed, after so many more turns of the loop."""
        unit.timer = None
        if unit.deadline > self._loop.time():
            if unit.deadline < math.inf:
                unit.timer = self._loop.call_at(unit.deadline, self._look_at, unit)
            return
        if turns:
            unit.timer = self._loop.call_soon(self._look_at, unit, turns - 1)
            return
        for running, one in self._running.items():
            if one is unit:
                unit.late = True
                self._cancel(running, unit)

    def _cancel(self, running: asyncio.Task[None], unit: AsyncUnit) -> None:
        """Cancel a unit, and give it a moment to end."""
        running.cancel()
        unit.deadline = math.inf
        if unit.timer is not None:
            unit.timer.cancel()
        unit.timer = self._loop.call_later(CANCEL_SECONDS, self._give_up, running, unit)

    def _give_up(self, running: asyncio.Task[None], unit: AsyncUnit) -> None:
        """Answer the tasks of a unit that has not ended, and free its slot."""
        unit.timer = None
        if running.done():
            # It has ended in this turn of the loop, and `_ended` comes next.
            return
        del self._running[running]
        request_ids = unit.request_ids
        self._given_up[running] = self._loop.call_later(CLEANING_SECONDS, self._blame, request_ids)
        if self._unanswered(unit):
            self._settle(unit, LEFT if unit.left else self._codec.failure(self._too_late(), request_ids))
        self._let_go(unit)

    def _blame(self, request_ids: list[str]) -> None:
        seconds = CANCEL_SECONDS + CLEANING_SECONDS
        text = "`forward` goes on though it was cancelled %g s ago; let asyncio.CancelledError pass through it"
        self._codec.say(logging.ERROR, text, seconds, request_ids=request_ids)

    # -- asked from within `forward` ---------------------------------------------------------------------------------

    def _push(self, event: Any, index: int) -> None:
        """Send an event: `SSEWorker.send_stream_event`. Nothing can wait here: a full stream ends."""
        unit = self._unit()
        if self._outlet is None or not isinstance(unit, AsyncUnit):
            # A rehearsal has no clients.
            return
        self._outlet.push(event, index, unit.inside)
        self._port.progress.beat()
        if unit.deadline < math.inf:
            unit.deadline = self._loop.time() + self._spec.timeout

    def _has_left(self, index: int) -> bool:
        inside = self._unit().inside
        if threading.get_ident() == self._thread:
            # Not only the port: tasks that have come must be begun, too.
            self.poll()
        return 0 <= index < len(inside) and self._port.has_left(inside[index])

    def _request_at(self, index: int) -> Request:
        unit = self._unit()
        return Request() if unit is _NOTHING else unit.request(index)

    @staticmethod
    def _unit() -> Unit:
        unit = _current.get(None)
        if unit is None:
            raise RuntimeError("this can be asked only by `forward` and what it awaits")
        return unit


def _from_within() -> RuntimeError:
    return RuntimeError("`forward` was cancelled from within")


async def _next(events: AsyncIterator[Any]) -> Any:
    """Return the next event, or `END`."""
    try:
        return await events.__anext__()
    except StopAsyncIteration:
        return END


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
