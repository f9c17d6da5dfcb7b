"""`map`: a call for each of many items, which come from another thread; as many in flight as fill whole batches.

    thread of the caller ── put(index, item) ──► inbox ─► waiting ─► engine
    thread of the caller ◄── take() ─────────── results ◄─────────── engine

What lies between two arrows is bounded by whoever puts and takes: `mapped` has at most `Pump.most` items taken from its
source whose results have not been handed on. All but `put`, `take` and `close` runs on the engine's loop, in turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from http import HTTPStatus
from typing import Any

from mosec_asgi.calls.inference import Inference
from mosec_asgi.calls.routes import CallRoute
from mosec_asgi.calls.running import NOT_RUNNING
from mosec_asgi.calls.window import Window
from mosec_asgi.errors import CallError, MosecError
from mosec_asgi.messages import Call, Chunk, Outcome, drop_all

# How often an item is offered while nothing else is in flight, before its refusal is its result. Others have all the
# room then; between two offers it waits for as long as it was told to.
MOST_OFFERS = 100
LEAST_PAUSE_SECONDS = 0.1


class Pump:
    """Has items run, and hands their results back.

    Attributes:
        most: items that may be taken from a source and not have been handed on.
    """

    def __init__(
        self,
        calls: Inference,
        loop: asyncio.AbstractEventLoop,
        where: CallRoute,
        window: Window,
        timeout: float | None = None,
    ) -> None:
        """Prepare; nothing is called yet.

        Args:
            calls: makes the calls.
            loop: on which the engine runs.
            where: the route.
            window: how many to have in flight.
            timeout: of each call, in milliseconds.
        """
        # As many again, so that one slow item does not hold up those behind it where the order is kept.
        self.most = 2 * window.most
        self._calls = calls
        self._engine = calls.engine
        self._loop = loop
        self._where = where
        self._window = window
        self._timeout = timeout
        # Both threads' own.
        self._inbox: deque[_Item] = deque()
        self._results: deque[tuple[int, Any]] = deque()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._told = False
        # The loop's own.
        self._waiting: deque[_Item] = deque()
        self._open: dict[int, _Item] = {}
        self._settled: list[tuple[_Item, Outcome]] = []
        self._marked = False
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None

    # -- in the caller's thread --------------------------------------------------------------------------------------

    @property
    def has_results(self) -> bool:
        """Whether there is something to take."""
        return bool(self._results)

    def put(self, index: int, item: Any) -> None:
        """Have an item run.

        Raises:
            CallError: the server does not run any more.
        """
        with self._lock:
            self._inbox.append(_Item(self, index, item))
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
            self._waiting.extend(self._inbox)
            self._inbox.clear()
        done: list[tuple[int, Any]] = []
        settled, self._settled = self._settled, []
        for item, outcome in settled:
            self._take(item, outcome, done)
        if self._pause is None:
            self._submit(done)
        if done:
            with self._news:
                self._results.extend(done)
                self._news.notify()

    def _take(self, item: _Item, outcome: Outcome, done: list[tuple[int, Any]]) -> None:
        del self._open[outcome.call_id]
        # A worker's own error says nothing of when to come again.
        refused = outcome.code == HTTPStatus.TOO_MANY_REQUESTS and outcome.retry_after is not None
        if refused and self._again(item, outcome.retry_after):
            return
        self._window.answered(time.perf_counter() - item.began)
        done.append((item.index, _or_error(lambda: self._calls.result(outcome, self._where, item.began))))

    def _again(self, item: _Item, retry_after: float | None) -> bool:
        """Have an item that was refused offered again; False where that has been done often enough."""
        self._window.refused(len(self._open))
        if not self._open:
            item.offers += 1
            if item.offers >= MOST_OFFERS:
                return False
            if self._pause is None:
                self._pause = self._loop.call_later(max(LEAST_PAUSE_SECONDS, retry_after or 0.0), self._go_on)
        self._waiting.appendleft(item)
        return True

    def _go_on(self) -> None:
        self._pause = None
        self._turn()

    def _submit(self, done: list[tuple[int, Any]]) -> None:
        while self._waiting and len(self._open) < self._window.size and not self._closed:
            item = self._waiting.popleft()
            call = _or_error(lambda item=item: self._calls.call(item.item, self._where, self._timeout))  # type: ignore[misc]
            if not isinstance(call, Call):
                done.append((item.index, call))
                continue
            item.began = time.perf_counter()
            self._open[call.id] = item
            self._engine.submit(call, item)

    def _close(self) -> None:
        self._closed = True
        self._waiting.clear()
        if self._pause is not None:
            self._pause.cancel()
        for _, outcome in self._settled:
            drop_all((outcome.payload,))
            del self._open[outcome.call_id]
        self._settled.clear()
        open_ids, self._open = list(self._open), {}
        for call_id in open_ids:
            self._engine.cancel(call_id)


class _Item:
    """An item on its way, and the caller that hears what becomes of it."""

    __slots__ = ("_pump", "began", "index", "item", "offers")

    def __init__(self, pump: Pump, index: int, item: Any) -> None:
        self._pump = pump
        self.index = index
        self.item = item
        self.began = 0.0
        self.offers = 0

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of its call."""
        self._pump.settled(self, outcome)

    def streamed(self, chunk: Chunk) -> None:
        """Refuse a stream: the route has none."""
        raise TypeError(f"call {chunk.call_id} is answered by a stream, and its route has none")


def mapped(
    pump: Pump, items: Iterable[Any], take: Callable[[], list[tuple[int, Any]]], *, ordered: bool
) -> Generator[tuple[int, Any], None, None]:
    """Yield the index and the result of each item.

    Args:
        pump: has them run; closed at the end, whatever that is.
        items: taken one by one, as there is room; where there are results, these are handed on first.
        take: waits for results of the pump.
        ordered: in the order of the items, else as they come.
    """
    source = enumerate(items)
    taken, exhausted = 0, False
    # Results that came before their turn, and whose turn it is.
    early: dict[int, Any] = {}
    turn = 0
    try:
        while True:
            while not exhausted and taken < pump.most and not pump.has_results:
                try:
                    index, item = next(source)
                except StopIteration:
                    exhausted = True
                else:
                    pump.put(index, item)
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
