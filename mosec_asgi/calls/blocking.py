"""`server.engine()`: calls from code that blocks, in any thread.

Where the server runs already, in an app or in another thread, calls go to the event loop that it runs on. Where it does
not, it is run on an event loop of its own, in a thread, for the time of the block.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any

import uvloop

from mosec_asgi.calls.mapping import Ask, Lane, Pump, mapped
from mosec_asgi.calls.routes import found
from mosec_asgi.calls.running import NOT_RUNNING
from mosec_asgi.calls.window import Window
from mosec_asgi.defined import DEFAULT_ROUTE
from mosec_asgi.errors import CallError, DefinitionError

if TYPE_CHECKING:
    from mosec_asgi.lifetime import Running

# Seconds between two looks whether the loop, which somebody else may have ended, is still there.
LOOK_SECONDS = 0.5
BLOCKS_THE_LOOP = (
    "this is the event loop that the server runs on, which a blocking call would stop: use `await "
    "server.infer(...)` or `async for event in server.stream(...)`"
)
NOT_ENTERED = "the engine is not running: call it inside of `with server.engine() as engine:`"
_END: Any = object()
# Two threads that ask for an engine of one server at the same time get one service; that of another server may take
# minutes to load. Not the server's own, which may be pickled.
_entering: weakref.WeakKeyDictionary[object, threading.Lock] = weakref.WeakKeyDictionary()
_looking = threading.Lock()
# The threads in which blocks have started services, by their event loops.
_threads: dict[asyncio.AbstractEventLoop, _LoopThread] = {}


class BlockingEngine:
    """The engine of a server, for code that blocks; made by `Server.engine`. Any thread may call its methods."""

    def __init__(self, server: AbstractAsyncContextManager[Any], running: Callable[[], Running | None]) -> None:
        """Prepare; nothing is started.

        Args:
            server: runs the service for the time of its block.
            running: returns the service that runs, if any.
        """
        self._server = server
        self._running = running
        with _looking:
            self._entering = _entering.setdefault(server, threading.Lock())
        self._service: Running | None = None
        # For each block that has begun and not ended, the thread that it needs; None for a service that others run.
        self._needed: list[_LoopThread | None] = []

    def __enter__(self) -> BlockingEngine:
        """Start the workers, unless the server runs already.

        Raises:
            StartupError: a stage could not be started.
            CallError: this is the event loop on which the server runs.
        """
        with self._entering:
            running, thread = self._running(), None
            if running is None or not running.loop.is_running():
                thread = _LoopThread(self._server)
                thread.start()
                running = self._running()
                if running is not None:
                    _threads[running.loop] = thread
            self._service = running
            try:
                service = self._here()
            except BaseException:
                if thread is not None:
                    thread.stop()
                raise
            needed = _threads.get(service.loop)
            if needed is not None:
                needed.blocks += 1
            self._needed.append(needed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Finish what was admitted and stop the workers, where a block has started them and this is the last one."""
        needed = None
        with self._entering:
            if self._needed:
                needed = self._needed.pop()
            if not self._needed:
                self._service = None
            if needed is not None:
                needed.blocks -= 1
                if needed.blocks:
                    return
        if needed is not None:
            needed.stop()

    def infer(
        self,
        item: Any,
        route: str = DEFAULT_ROUTE,
        *,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> Any:
        """Return what the route's last worker returns for an item; see `Server.infer`."""
        calls = self._here().calls
        return self._wait(calls.infer(item, route, timeout, priority, key, tenant, request_id))

    def stream(
        self,
        item: Any,
        route: str = DEFAULT_ROUTE,
        *,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> Iterator[Any]:
        """Return an iterator of what the route's last worker yields for an item; see `Server.stream`.

        To close the iterator, or to drop it, ends the stream in the worker.
        """
        calls = self._here().calls
        return self._events(calls.stream(item, route, timeout, priority, key, tenant, request_id))

    def map(
        self,
        items: Iterable[Any],
        route: str = DEFAULT_ROUTE,
        *,
        ordered: bool = True,
        timeout: float | None = None,
        in_flight: int | None = None,
    ) -> Iterator[Any]:
        """Return an iterator of the results of many items: as many at a time as fill whole batches in each worker.

        Items are taken from `items` as results are taken from the iterator: at most four times those that the workers
        can run at once, 64 at least, are held at a time. An item that fails does not end the rest: its `MosecError`
        stands in the place of its result. What the service refuses for want of room (429), or of a worker (503),
        is offered again after the time that it says, up to a hundred times while nothing else is in flight. To close
        the iterator, or to drop it, drops what runs.

        Args:
            items: objects that can be pickled, as for `Server.infer`; any iterable, also an endless one.
            route: the path of the pipeline.
            ordered: yield results in the order of the items; else pairs of the index of an item, from 0, and its
                result, as they come.
            timeout: milliseconds for each item; see `Server.infer`.
            in_flight: the most items that are called at a time; None for a full batch in each worker and another behind
                it, within the setting `capacity`.

        Raises:
            CallError: there is no such route, it streams, or the engine does not run.
        """
        # What is wrong with the route is said at once, and not with the first result.
        found(self._here().calls.routes, route, streams=False)
        asks = (Ask(route, item) for item in items)
        pairs = self.map_asks(asks, ordered=ordered, timeout=timeout, in_flight=in_flight)
        return _second(pairs) if ordered else pairs

    def map_asks(
        self,
        asks: Iterable[Ask],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        in_flight: int | None = None,
    ) -> Generator[tuple[int, Any], None, None]:
        """Do as `map` does with items each of which names its route; yields pairs of an index and a result.

        A route that cannot be called is the result of its items, as a `CallError`. `in_flight` is of each route.

        Raises:
            CallError: the engine does not run.
        """
        service = self._here()
        if in_flight is not None and (not isinstance(in_flight, int) or in_flight < 1):
            raise DefinitionError(f"in_flight is a number of items, at least 1, not {in_flight!r}")
        service.calls.check_timeout(timeout)

        def lane(route: str) -> Lane:
            where = found(service.calls.routes, route, streams=False)
            most = where.in_flight if in_flight is None else in_flight
            return Lane(where, Window(where.at_once, most, service.calls.seconds(where, timeout)))

        return self._results(Pump(service.calls, service.loop, lane, timeout), asks, service, ordered=ordered)

    def _results(
        self, pump: Pump, asks: Iterable[Ask], service: Running, *, ordered: bool
    ) -> Generator[tuple[int, Any], None, None]:
        def take() -> list[tuple[int, Any]]:
            while not (taken := pump.take(LOOK_SECONDS)):
                self._look_at(service)
            return taken

        # Closed by whoever closes this one, and not some time later.
        with contextlib.closing(mapped(pump, asks, take, ordered=ordered)) as pairs:
            yield from pairs

    def _events(self, stream: AsyncGenerator[Any, None]) -> Iterator[Any]:
        try:
            while (event := self._wait(_next(stream))) is not _END:
                yield event
        finally:
            # Where the service is gone, so is the stream.
            with contextlib.suppress(CallError):
                self._wait(_close(stream))

    def _here(self) -> Running:
        """Return the service that is called.

        Raises:
            CallError: it does not run any more, or would wait for itself.
        """
        service = self._service
        if service is None:
            raise CallError(NOT_ENTERED, HTTPStatus.SERVICE_UNAVAILABLE)
        self._look_at(service)
        if asyncio._get_running_loop() is service.loop:
            raise CallError(BLOCKS_THE_LOOP)
        return service

    def _look_at(self, service: Running) -> None:
        if self._running() is not service or service.loop.is_closed():
            raise CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE)

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the service's loop, and wait for it; where the wait is interrupted, it is cancelled."""
        try:
            service = self._here()
            future = asyncio.run_coroutine_threadsafe(coroutine, service.loop)
        except BaseException:
            coroutine.close()
            raise
        try:
            while True:
                try:
                    return future.result(LOOK_SECONDS)
                except concurrent.futures.TimeoutError:
                    if not future.done() and service.loop.is_closed():
                        raise CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE) from None
        except concurrent.futures.CancelledError:
            raise CallError(NOT_RUNNING, HTTPStatus.SERVICE_UNAVAILABLE) from None
        except BaseException:
            future.cancel()
            raise


def _second(pairs: Generator[tuple[int, Any], None, None]) -> Generator[Any, None, None]:
    with contextlib.closing(pairs):
        for _, result in pairs:
            yield result


async def _next(stream: AsyncGenerator[Any, None]) -> Any:
    return await anext(stream, _END)


async def _close(stream: AsyncGenerator[Any, None]) -> None:
    await stream.aclose()


class _LoopThread:
    """Runs a server on an event loop of its own, in a thread.

    Attributes:
        blocks: how many need it, in whatever threads.
    """

    def __init__(self, server: AbstractAsyncContextManager[Any]) -> None:
        self.blocks = 0
        self._server = server
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon, and ended at the exit: a program that forgets the end of its block ends, and its workers with it.
        self._thread = threading.Thread(target=self._main, name="mosec_asgi engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the server; return once it serves.

        Raises:
            StartupError: it cannot be started.
        """
        self._thread.start()
        try:
            self._started.result()
            # Registered last and so called first: `multiprocessing` would kill workers that this loop replaces.
            atexit.register(self.stop)
        except BaseException:
            # The start has failed, or the wait was interrupted.
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; return once it has ended."""
        # In the moment of its end there may be nothing to cancel any more.
        while self._thread.is_alive():
            if self._loop is not None and self._serving is not None:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._serving.cancel)
                break
            time.sleep(0.001)
        self._thread.join()
        atexit.unregister(self.stop)
        if self._loop is not None:
            _threads.pop(self._loop, None)

    def _main(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            elif not isinstance(error, asyncio.CancelledError):
                raise

    async def _serve(self) -> None:
        self._serving = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        async with self._server:
            self._started.set_result(None)
            # Until it is cancelled.
            await self._loop.create_future()
