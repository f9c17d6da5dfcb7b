"""`map`: a call for each of many items, which come from another thread; as many in flight as fill whole batches.

    thread of the caller ── put(index, item) ──► inbox ─► waiting ─► engine
    thread of the caller ◄── take() ─────────── results ◄─────────── engine

What lies between two arrows is bounded by whoever puts and takes: `mapped` has at most `Pump.most` items taken from its
source whose results have not been handed on. All but `put`, `take` and `close` runs on the engine's loop, in turns.
Each route has a lane of its own, with its own window, so that no route's items wait for another's workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

from mosec_asgi.calls.inference import Inference
from mosec_asgi.calls.routes import CallRoute
from mosec_asgi.calls.running import NOT_RUNNING
from mosec_asgi.calls.window import Window
from mosec_asgi.errors import CallError, MosecError
from mosec_asgi.messages import Call, Chunk, Outcome, drop_all

# How often a route's items are offered while none of them is in flight, before a refusal is a result. Others have all
# the room then, or no worker starts; between two offers it waits for as long as it was told to.
MOST_OFFERS = 100
LEAST_PAUSE_SECONDS = 0.1
# What a service answers that has no room, or no worker, for now. A worker's own error does not say when to come again.
REFUSALS = frozenset((HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE))


class Ask(NamedTuple):
    """An item, and how it is called.

    Attributes:
        route: the path of its pipeline.
        item: what `forward` is given.
        request_id: what the logs call it; None to have one made.
    """

    route: str
    item: Any
    request_id: str | None = None


class Lane:
    """The items of one route that wait or run, and how many of them may run; the loop's own, but for what is fixed.

    Attributes:
        where: the route.
        window: how many to have in flight.
        waiting: items that have not been submitted.
        in_flight: how many have.
        offers: refusals since the last answer while nothing else was in flight.
        pause: until when nothing is offered, if so.
    """

    __slots__ = ("in_flight", "offers", "pause", "waiting", "where", "window")

    def __init__(self, where: CallRoute, window: Window) -> None:
        """Begin empty."""
        self.where = where
        self.window = window
        self.waiting: deque[_Item] = deque()
        self.in_flight = 0
        self.offers = 0
        self.pause: asyncio.TimerHandle | None = None


class Pump:
    """Has items run, and hands their results back."""

    def __init__(
        self,
        calls: Inference,
        loop: asyncio.AbstractEventLoop,
        lane: Callable[[str], Lane],
        timeout: float | None = None,
    ) -> None:
        """Prepare; nothing is called yet.

        Args:
            calls: makes the calls.
            loop: on which the engine runs.
            lane: makes the lane of a route; raises a `CallError` where it cannot be called.
            timeout: of each call, in milliseconds.
        """
        self._calls = calls
        self._engine = calls.engine
        self._loop = loop
        self._make_lane = lane
        self._timeout = timeout
        # The caller's own.
        self._lanes: dict[str, Lane] = {}
        # Both threads' own.
        self._inbox: deque[_Item] = deque()
        self._results: deque[tuple[int, Any]] = deque()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._told = False
        # The loop's own.
        self._busy: list[Lane] = []
        self._open: dict[int, _Item] = {}
        self._settled: list[tuple[_Item, Outcome]] = []
        self._marked = False
        self._closed = False

    # -- in the caller's thread --------------------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """Items that may be taken from a source and not have been handed on."""
        # As many again as may be in flight, so that one slow item does not hold up those behind it where the order is
        # kept. One where no route is known yet.
        return sum([2 * lane.window.most for lane in self._lanes.values()]) or 1

    @property
    def has_results(self) -> bool:
        """Whether there is something to take."""
        return bool(self._results)

    def put(self, index: int, ask: Ask) -> None:
        """Have an item run.

        Raises:
            CallError: the server does not run any more.
        """
        lane = self._lanes.get(ask.route)
        if lane is None:
            try:
                lane = self._lanes[ask.route] = self._make_lane(ask.route)
            except CallError as error:
                with self._news:
                    self._results.append((index, error))
                return
        with self._lock:
            self._inbox.append(_Item(self, lane, index, ask))
            told, self._told = self._told, True
        if not told:
            try:
                self._loop.call_soon_threadsafe(self._turn)
            except RuntimeError as error:
                # The loop is closed.
                raise CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE) from error

    def take(self, seconds: float) -> list[tuple[int, Any]]:
        """Return results with the indices of their items, waiting so long for some; an error stands for a result."""
        with self._news:
            self._news.wait_for(lambda: bool(self._results), seconds)
            taken = list(self._results)
            self._results.clear()
            return taken

    def close(self) -> None:
        """Drop what runs and what waits. To be called once, last."""
        # With a closed loop all calls have ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._close)

    # -- on the loop -------------------------------------------------------------------------------------------------

    def settled(self, item: _Item, outcome: Outcome) -> None:
        """Take what has become of a call. Others' state is in the caller's hands, so the rest is done in a turn."""
        if self._closed:
            # It has been cancelled, and holds nothing.
            return
        self._settled.append((item, outcome))
        if not self._marked:
            self._marked = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._marked = False
        with self._lock:
            self._told = False
            items = list(self._inbox)
            self._inbox.clear()
        for item in items:
            if item.lane not in self._busy:
                self._busy.append(item.lane)
            item.lane.waiting.append(item)
        done: list[tuple[int, Any]] = []
        settled, self._settled = self._settled, []
        for item, outcome in settled:
            self._take(item, outcome, done)
        for lane in self._busy:
            if lane.pause is None:
                self._submit(lane, done)
        if done:
            with self._news:
                self._results.extend(done)
                self._news.notify()

    def _take(self, item: _Item, outcome: Outcome, done: list[tuple[int, Any]]) -> None:
        del self._open[outcome.call_id]
        lane = item.lane
        lane.in_flight -= 1
        if outcome.code in REFUSALS and outcome.retry_after is not None:
            if self._again(item, outcome.retry_after):
                return
        else:
            lane.offers = 0
        lane.window.answered(time.perf_counter() - item.began)
        done.append((item.index, _or_error(lambda: self._calls.result(outcome, lane.where, item.began))))

    def _again(self, item: _Item, retry_after: float) -> bool:
        """Have an item that was refused offered again; False where that has been done often enough."""
        lane = item.lane
        lane.window.refused(lane.in_flight)
        if not lane.in_flight:
            lane.offers += 1
            if lane.offers >= MOST_OFFERS:
                return False
            if lane.pause is None:
                lane.pause = self._loop.call_later(max(LEAST_PAUSE_SECONDS, retry_after), self._go_on, lane)
        lane.waiting.appendleft(item)
        return True

    def _go_on(self, lane: Lane) -> None:
        lane.pause = None
        self._turn()

    def _submit(self, lane: Lane, done: list[tuple[int, Any]]) -> None:
        while lane.waiting and lane.in_flight < lane.window.size and not self._closed:
            item = lane.waiting.popleft()
            call = _or_error(lambda item=item: self._call(item))  # type: ignore[misc]
            if not isinstance(call, Call):
                done.append((item.index, call))
                continue
            item.began = time.perf_counter()
            self._open[call.id] = item
            lane.in_flight += 1
            self._engine.submit(call, item)

    def _call(self, item: _Item) -> Call:
        ask = item.ask
        return self._calls.call(ask.item, item.lane.where, self._timeout, request_id=ask.request_id)

    def _close(self) -> None:
        self._closed = True
        for lane in self._busy:
            lane.waiting.clear()
            if lane.pause is not None:
                lane.pause.cancel()
        for _, outcome in self._settled:
            drop_all((outcome.payload,))
            del self._open[outcome.call_id]
        self._settled.clear()
        open_ids, self._open = list(self._open), {}
        for call_id in open_ids:
            self._engine.cancel(call_id)


class _Item:
    """An item on its way, and the caller that hears what becomes of it."""

    __slots__ = ("_pump", "ask", "began", "index", "lane")

    def __init__(self, pump: Pump, lane: Lane, index: int, ask: Ask) -> None:
        self._pump = pump
        self.lane = lane
        self.index = index
        self.ask = ask
        self.began = 0.0

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of its call."""
        self._pump.settled(self, outcome)

    def streamed(self, chunk: Chunk) -> None:
        """Refuse a stream: the route has none."""
        raise TypeError(f"call {chunk.call_id} is answered by a stream, and its route has none")


def mapped(
    pump: Pump, asks: Iterable[Ask], take: Callable[[], list[tuple[int, Any]]], *, ordered: bool
) -> Generator[tuple[int, Any], None, None]:
    """Yield the index and the result of each item.

    Args:
        pump: has them run; closed at the end, whatever that is.
        asks: the items, taken one by one, as there is room; where there are results, these are handed on first.
        take: waits for results of the pump.
        ordered: in the order of the items, else as they come.
    """
    source = enumerate(asks)
    taken, exhausted = 0, False
    # Results that came before their turn, and whose turn it is.
    early: dict[int, Any] = {}
    turn = 0
    try:
        while True:
            while not exhausted and taken < pump.most and not pump.has_results:
                try:
                    index, ask = next(source)
                except StopIteration:
                    exhausted = True
                else:
                    pump.put(index, ask)
                    taken += 1
            if not taken:
                return
            for index, result in take():
                if not ordered:
                    taken -= 1
                    yield index, result
                    continue
                early[index] = result
                while turn in early:
                    taken -= 1
                    turn += 1
                    yield turn - 1, early.pop(turn - 1)
    finally:
        pump.close()


def _or_error(what: Callable[[], Any]) -> Any:
    """Return what a function returns, or the error that it raises."""
    try:
        return what()
    except MosecError as error:
        return error
