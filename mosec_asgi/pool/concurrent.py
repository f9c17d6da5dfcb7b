"""Runs tasks on a worker whose `forward` is asynchronous: several at a time, on an event loop in the worker process.

A unit of work is a task, or a batch where the stage has them. Each unit is a task of asyncio, at most `concurrency` at
a time; the frames behind them wait. A unit is cancelled when its time is over, or when all its clients have left.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import Failure, MosecTimeoutError, too_slow
from mosec_asgi.ipc import frames
from mosec_asgi.pool import isolation
from mosec_asgi.pool.codec import LEFT, Answer, Codec, on_the_wire
from mosec_asgi.pool.executor import NO_TASKS, checked, decode_batch, is_final
from mosec_asgi.pool.outlet import ENDED, Outlet
from mosec_asgi.pool.port import Port
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.pool.timer import FORSAKEN_SECONDS, KernelTimer
from mosec_asgi.returned import async_events_of, check_finished, check_sent
from mosec_asgi.streaming import SSEWorker, streams
from mosec_asgi.worker import Worker

# Seconds between two signs of life while units run: the loop is not blocked.
BEAT_SECONDS = 0.2
# Seconds that a unit gets to end after it has been cancelled; then it is left to itself.
CANCEL_SECONDS = 0.5

# In the place of the result of a task that nobody waits for.
_LEFT = Failure(frames.CANCELLED, "")

logger = log.internal_logger(__name__)


@dataclass(slots=True, eq=False)
class _Unit:
    """Tasks that run together.

    Attributes:
        tasks: the frame in which they came.
        places: where they stand in it.
        inside: those that `forward` has now, in the order in which it has them.
        deadline: when the step that runs is cancelled; infinite where there is none.
        late: it has been cancelled because of that.
        left: it has been cancelled because all its clients have left.
        abandoned: it goes on all the same, and its tasks have been answered.
        timer: watches the deadline.
    """

    tasks: frames.Tasks
    places: list[int]
    inside: list[int] = field(default_factory=list)
    deadline: float = math.inf
    late: bool = False
    left: bool = False
    abandoned: bool = False
    timer: asyncio.TimerHandle | None = None

    @property
    def ids(self) -> list[int]:
        return [self.tasks.ids[place] for place in self.places]

    @property
    def request_ids(self) -> list[str]:
        return [self.tasks.request_ids[place] for place in self.places]


# The unit on whose behalf the code that asks is running.
_current: contextvars.ContextVar[_Unit] = contextvars.ContextVar("unit")


class ConcurrentRunner:
    """Runs the tasks that come through a port, several at a time, until it ends."""

    def __init__(
        self,
        worker: Worker,
        spec: WorkerSpec,
        port: Port,
        kernel: KernelTimer | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Bind a worker to its port.

        Args:
            worker: what to run.
            spec: how.
            port: where tasks come from and results go.
            kernel: ends the process when its loop hangs and nobody else can.
            loop: to run on; None for one of its own, which `serve` runs.
        """
        self._worker = worker
        self._spec = spec
        self._port = port
        self._kernel = kernel
        self._codec = Codec(worker, spec, port.memory)
        self._batches = spec.max_batch_size > 1
        self._streams = streams(type(worker)) and not spec.next_stages
        self._outlet = Outlet(worker, spec, self._codec, port)
        self._loop = loop or _new_loop()
        # Units that wait, and those that run.
        self._waiting: deque[_Unit] = deque()
        self._running: dict[asyncio.Task[None], _Unit] = {}
        self._beat_timer: asyncio.TimerHandle | None = None
        # Set whenever something has come through the port, anew each time.
        self._news = asyncio.Event()
        self._thread = threading.get_ident()
        worker._has_left = self._has_left
        if isinstance(worker, SSEWorker) and self._streams:
            worker._send_event = self._push

    def request_ids(self) -> list[str]:
        """Return the ids of the requests of the unit on whose behalf the code that asks is running."""
        unit = _current.get(None)
        if unit is None:
            return []
        names = dict(zip(unit.tasks.ids, unit.tasks.request_ids, strict=True))
        return [names[task_id] for task_id in unit.inside or unit.ids]

    # -- its life ----------------------------------------------------------------------------------------------------

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example, whose events nobody receives."""

        async def drain() -> None:
            _current.set(_Unit(NO_TASKS, []))
            result = self._worker.forward(example)
            if not isinstance(result, AsyncIterator):
                result = await result
            if not self._streams:
                check_finished(result)
                return
            async for _ in async_events_of(result, batched=self._batches) or _no_events():
                pass

        self._loop.run_until_complete(drain())

    def serve(self) -> None:
        """Run what comes until the port ends."""
        self._loop.run_until_complete(self._serve())

    def close(self) -> None:
        """Let the worker release what it took; `close` may be asynchronous."""
        # Raised anew by a step that the server's death has ended.
        with contextlib.suppress(SystemExit):
            self._loop.run_until_complete(self._cancel_all())
        if self._beat_timer is not None:
            # It would tell the kernel that all is well.
            self._beat_timer.cancel()
        closing = self._worker.close()  # type: ignore[func-returns-value]
        if inspect.isawaitable(closing):
            self._loop.run_until_complete(closing)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self) -> None:
        self._loop.add_reader(self._port.fileno(), self.poll)
        self.poll()
        while not self._port.ended:
            await self._news_come()
        self._loop.remove_reader(self._port.fileno())
        await self._cancel_all()

    async def _cancel_all(self) -> None:
        """Let go of all units: the server has ended the stream, or has died, and nobody waits for them."""
        self._waiting.clear()
        for running, unit in self._running.items():
            unit.left = True
            running.cancel()
        if self._running:
            await asyncio.wait(list(self._running), timeout=CANCEL_SECONDS)

    def poll(self) -> None:
        """Take in what has come, and begin what there is room for."""
        self._port.poll()
        while self._port.tasks:
            tasks = self._port.tasks.popleft()
            places = list(range(len(tasks.ids)))
            groups = [places] if self._batches else [[place] for place in places]
            self._waiting.extend(_Unit(tasks, group) for group in groups)
        if self._port.cancelled:
            for running, unit in self._running.items():
                unanswered = self._unanswered(unit)
                if not unit.left and unanswered and self._port.cancelled.issuperset(unanswered):
                    unit.left = True
                    self._cancel(running, unit)
        self._begin_units()
        self._news.set()

    async def _news_come(self) -> None:
        self._news.clear()
        await self._news.wait()

    # -- units -------------------------------------------------------------------------------------------------------

    def _begin_units(self) -> None:
        while self._waiting and len(self._running) < self._spec.concurrency:
            unit = self._waiting.popleft()
            self._port.progress.begin(len(unit.places))
            running = self._loop.create_task(self._run(unit))
            self._running[running] = unit
            running.add_done_callback(self._ended)
        if self._running and self._beat_timer is None:
            # At once: the first step may be the one that blocks the loop.
            self._beat()

    def _ended(self, running: asyncio.Task[None]) -> None:
        unit = self._running.pop(running, None)
        if unit is None:
            # It was abandoned; what became of it in the end is no news.
            _ = running.cancelled() or running.exception()
            return
        if unit.timer is not None:
            unit.timer.cancel()
        if running.cancelled():
            # Before its first step.
            self._answer(unit.tasks, dict.fromkeys(unit.places, LEFT), 0.0)
        elif (error := running.exception()) is not None:
            # Ours, not the user's: those are answers by now.
            self._loop.call_exception_handler({"message": "a unit of work failed", "exception": error})
        self._worker._answered([unit.tasks.payloads[place] for place in unit.places])
        self._port.report()
        self._begin_units()

    def _beat(self) -> None:
        self._beat_timer = None
        if self._kernel is not None:
            # The next beat puts it off; a loop that is blocked for longer than a step may take has none.
            self._kernel.set(2 * self._spec.timeout + FORSAKEN_SECONDS if self._running else 0.0)
        if self._running:
            self._port.progress.beat()
            self._beat_timer = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _unanswered(self, unit: _Unit) -> list[int]:
        """Return the tasks of a unit that have not been answered."""
        if not self._streams or not unit.inside:
            return unit.ids
        return [task_id for task_id in unit.ids if self._outlet.is_open(task_id)]

    async def _run(self, unit: _Unit) -> None:
        """Run a unit and send its answers, each task exactly once."""
        _current.set(unit)
        began = time.perf_counter()
        tasks = unit.tasks
        answers, items, places = decode_batch(self._codec, tasks, self._port, unit.places)
        ids = [tasks.ids[place] for place in places]
        request_ids = [tasks.request_ids[place] for place in places]
        if self._streams:
            # Those that cannot be run do not wait for the streams of the others.
            self._answer(tasks, answers, 0.0)
            answers = {}
            for task_id, request_id in zip(ids, request_ids, strict=True):
                self._outlet.open(task_id, request_id)
        results: list[Any] = []
        if items:
            try:
                results = await self._forward(unit, items, ids, request_ids)
            except asyncio.CancelledError:
                results = [_LEFT] * len(ids)
        self._outlet.forget(ids)
        if unit.abandoned:
            return
        for place, result in zip(places, results, strict=True):
            if not self._streams:
                answers[place] = self._codec.answer(tasks.flags[place], result, tasks.request_ids[place])
            else:
                self._outlet.end(tasks.ids[place], on_the_wire(result) if isinstance(result, Failure) else ENDED)
        self._answer(tasks, answers, time.perf_counter() - began)

    def _answer(self, tasks: frames.Tasks, answers: dict[int, Answer], seconds: float) -> None:
        if answers:
            places = sorted(answers)
            codes, payloads = zip(*[answers[place] for place in places], strict=True)
            self._port.answer(frames.Results([tasks.ids[place] for place in places], codes, payloads, seconds))

    async def _forward(self, unit: _Unit, items: list[Any], ids: list[int], request_ids: list[str]) -> list[Any]:
        """Return a result for each item; one that failed has its `Failure`."""
        steps = isolation.resolve(len(items), self._spec.isolation_calls)
        part = next(steps)
        failed = False
        while True:
            unit.inside = [ids[place] for place in part]
            outcome = await self._call(unit, [items[place] for place in part], whole=len(part) == len(items))
            failed = failed or isinstance(outcome, isolation.Raised)
            try:
                part = steps.send(outcome)
            except StopIteration as done:
                results: list[Any] = done.value
                return self._codec.told_of_all(results, request_ids) if failed else results

    async def _call(self, unit: _Unit, items: list[Any], *, whole: bool) -> isolation.Outcome:
        ended: isolation.Outcome = [None] * len(items)
        if self._streams:
            # A stream that has ended meanwhile, for want of its client, is not run again.
            live = [place for place, task_id in enumerate(unit.inside) if self._outlet.is_open(task_id)]
            unit.inside = [unit.inside[place] for place in live]
            items = [items[place] for place in live]
            if not items:
                return ended
        self._port.progress.beat()
        self._restart(unit)
        try:
            result = self._worker.forward(items if self._batches else items[0])
            if not isinstance(result, AsyncIterator):
                result = await result
            events = async_events_of(result, batched=self._batches) if self._streams else None
            if events is not None:
                await self._drain(unit, events)
            elif self._streams and not self._outlet.has_ended_or_begun(unit.inside):
                check_sent(result, type(self._worker))
            if unit.late:
                # It has swallowed its cancellation, and come back all the same.
                raise asyncio.CancelledError
            if self._streams:
                return ended
            return checked(result, len(items)) if self._batches else [result]
        except (Exception, MosecTimeoutError, asyncio.CancelledError) as raised:
            error = self._explained(unit, raised)
            if self._streams and self._outlet.has_begun(unit.inside):
                self._outlet.fail(unit.inside, error)
                return ended
            return isolation.Raised(error, final=is_final(error, whole=whole))
        finally:
            unit.deadline = math.inf

    def _explained(self, unit: _Unit, error: BaseException) -> BaseException:
        """Return what a client is told of an exception of `forward`; raise the cancellation of those that have left."""
        if unit.left:
            raise asyncio.CancelledError
        if unit.late:
            unit.late = False
            return too_slow(self._spec.timeout)
        if isinstance(error, asyncio.CancelledError):
            return RuntimeError("`forward` was cancelled from within")
        return error

    # -- time --------------------------------------------------------------------------------------------------------

    def _restart(self, unit: _Unit) -> None:
        """Give a unit its whole time for the next step; the timer, once set, follows by itself."""
        unit.deadline = self._loop.time() + self._spec.timeout
        if unit.timer is None:
            unit.timer = self._loop.call_at(unit.deadline, self._look_at, unit)

    def _look_at(self, unit: _Unit) -> None:
        unit.timer = None
        if unit.deadline > self._loop.time():
            if unit.deadline < math.inf:
                unit.timer = self._loop.call_at(unit.deadline, self._look_at, unit)
            return
        unit.deadline = math.inf
        for running, one in self._running.items():
            if one is unit:
                unit.late = True
                self._cancel(running, unit)

    def _cancel(self, running: asyncio.Task[None], unit: _Unit) -> None:
        """Cancel a unit, and give it a moment to end."""
        running.cancel()
        unit.deadline = math.inf
        if unit.timer is not None:
            unit.timer.cancel()
        unit.timer = self._loop.call_later(CANCEL_SECONDS, self._abandon, running, unit)

    def _abandon(self, running: asyncio.Task[None], unit: _Unit) -> None:
        """Answer the tasks of a unit that goes on though it was cancelled, and let others have its slot."""
        unit.timer = None
        if running not in self._running or not (unit.late or unit.left):
            return
        logger.error(
            "`forward` goes on though it was cancelled; let asyncio.CancelledError pass through it",
            extra=self._codec.extra(unit.request_ids),
        )
        del self._running[running]
        unit.abandoned = True
        self._worker._answered([unit.tasks.payloads[place] for place in unit.places])
        late = too_slow(self._spec.timeout)
        answer = LEFT if unit.left else self._codec.failure(late, unit.request_ids)
        if self._streams:
            for task_id in filter(self._outlet.is_open, unit.ids):
                self._outlet.end(task_id, answer)
        else:
            self._answer(unit.tasks, dict.fromkeys(unit.places, answer), 0.0)
        self._begin_units()

    # -- streams -----------------------------------------------------------------------------------------------------

    async def _drain(self, unit: _Unit, events: AsyncIterator[Any]) -> None:
        """Send what an asynchronous generator yields, until it ends or nobody is left to send it to."""
        try:
            async for event in events:
                self._outlet.put_yielded(event, unit.inside, batched=self._batches)
                self._outlet.flush()
                self._port.progress.beat()
                self._outlet.drop_left(unit.inside)
                if not any(map(self._outlet.is_open, unit.inside)):
                    return
                unit.deadline = math.inf
                await self._wait_for_room(unit)
                self._restart(unit)
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await self._close(unit, close())

    async def _wait_for_room(self, unit: _Unit) -> None:
        """Let an only stream wait for its client; in a batch nobody waits, and a full stream ends."""
        if len(unit.inside) == 1:
            task_id = unit.inside[0]
            while self._outlet.is_open(task_id) and not self._outlet.has_room(task_id):
                await self._news_come()
                self._outlet.drop_left(unit.inside)

    async def _close(self, unit: _Unit, closing: Awaitable[None]) -> None:
        self._restart(unit)
        try:
            await closing
        except (Exception, MosecTimeoutError) as error:
            extra = self._codec.extra(unit.request_ids)
            logger.warning("closing a stream of forward failed: %r", error, exc_info=error, extra=extra)

    # -- asked from within `forward` ---------------------------------------------------------------------------------

    def _push(self, event: Any, index: int) -> None:
        """Send an event: `SSEWorker.send_stream_event`. Nothing can wait here: a full stream ends."""
        unit = self._unit()
        if not unit.places:
            # A rehearsal.
            return
        self._outlet.put_at(index, event, unit.inside)
        self._outlet.flush()
        self._port.progress.beat()
        if unit.deadline < math.inf:
            unit.deadline = self._loop.time() + self._spec.timeout

    def _has_left(self, index: int) -> bool:
        inside = self._unit().inside
        if threading.get_ident() == self._thread:
            # Not the port alone: what comes with the news must be begun, too.
            self.poll()
        return 0 <= index < len(inside) and self._port.has_left(inside[index])

    @staticmethod
    def _unit() -> _Unit:
        unit = _current.get(None)
        if unit is None:
            raise RuntimeError("this can be asked only by `forward` and what it awaits")
        return unit


async def _no_events() -> AsyncIterator[Any]:
    for event in list[Any]():
        yield event


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
