"""What `forward` has returned: a stream, in any form, a result, or neither, which is an error.

A generator may come from a model or from inside a decorator, so only the value that a call returns counts.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import Any

from mosec_asgi.errors import MosecTimeoutError, WrongShape
from mosec_asgi.events import FINISHED
from mosec_asgi.inside.ending import Ending

# Types that are not results, because they still have to be run.
UNFINISHED = frozenset((types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType))
_HIDDEN = (
    "and is not asynchronous itself; make `forward` an `async def`, and likewise what a decorator puts around it, so "
    "that it runs on an event loop"
)


def check_finished(result: Any) -> None:
    """Refuse what a `forward` that does not stream has returned, if it still has to be run.

    Raises:
        WrongShape: it is a generator or a coroutine; the text says what to change.
    """
    if isinstance(result, types.GeneratorType):
        raise WrongShape(
            "`forward` returned a generator, which is not a result: return a list of what it yields; or, in the last "
            "stage of a route, derive the worker from SSEWorker to stream it"
        )
    if isinstance(result, types.AsyncGeneratorType):
        raise WrongShape(
            "`forward` returned an asynchronous generator, which is no result: collect what it yields; or, in the last "
            "stage of a route, derive the worker from SSEWorker to stream it"
        )
    _check_awaited(result)


def events_of(result: Any, *, batched: bool) -> Iterator[Any] | None:
    """Return the events of what the `forward` of an `SSEWorker` has returned.

    Args:
        result: what it has returned.
        batched: for a batch, for which it may also be a list with an iterator for each item.

    Returns:
        what it yields, in the form that `forward` may yield itself; None where it is no stream.

    Raises:
        WrongShape: its events cannot be read without an event loop; the text says what to change.
    """
    if isinstance(result, Iterator):
        return result
    if isinstance(result, AsyncIterator):
        raise WrongShape(f"`forward` returned an asynchronous generator, {_HIDDEN}")
    _check_awaited(result)
    if batched and isinstance(result, (list, tuple)) and any(isinstance(one, _ITERATORS) for one in result):
        return _together(result)
    return None


def async_events_of(result: Any, *, batched: bool) -> AsyncIterator[Any] | None:
    """Return the events of what an asynchronous `forward` has returned; for the rest see `events_of`."""
    if isinstance(result, AsyncIterator):
        return result
    if isinstance(result, Iterator):
        return _one_by_one(result)
    if batched and isinstance(result, (list, tuple)) and any(isinstance(one, _ITERATORS) for one in result):
        return _together_asynchronously(result)
    return None


def check_sent(result: Any, worker: type[object]) -> None:
    """Refuse what the `forward` of an `SSEWorker` has returned, if it is not a stream and no event was sent.

    A class that sends events by `send_stream_event` is not refused: it may have had none to send, and what it returns
    is ignored, as in mosec.

    Raises:
        WrongShape: it has returned something, which no client would get.
    """
    parts = result if isinstance(result, (list, tuple)) else [result]
    if all(part is None or (isinstance(part, (str, bytes)) and not part) for part in parts) or _sends_events(worker):  # type: ignore[arg-type]
        return
    raise WrongShape(
        f"`forward` of an SSEWorker returned {type(result).__name__} and sent no event: yield the events, return a "
        "generator of them, or call self.send_stream_event; return None for an empty stream. A Worker answers with "
        "what `forward` returns"
    )


@functools.cache
def _sends_events(worker: type[object]) -> bool:
    """Whether the code of a class of workers, up to `SSEWorker`, names `send_stream_event`."""
    for kind in worker.__mro__:
        if "send_stream_event" in vars(kind):
            # `SSEWorker` defines it.
            return False
        for member in vars(kind).values():
            code = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
            if isinstance(code, types.CodeType) and _names(code, "send_stream_event"):
                return True
    return False


def _names(code: types.CodeType, name: str) -> bool:
    """Whether code, or a function inside of it, names an attribute."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return name in code.co_names or any(_names(one, name) for one in inner)


_ITERATORS = (Iterator, AsyncIterator)


def _check_awaited(result: Any) -> None:
    if isinstance(result, Awaitable):
        if isinstance(result, types.CoroutineType):
            # Closed, or Python would warn later that nobody has awaited it.
            result.close()
        raise WrongShape(f"`forward` returned a coroutine, {_HIDDEN}")


def _no_stream(one: Any) -> BaseException | Any:
    """Return the error that ends the stream of an item for which `forward` has returned no iterator."""
    if one is None:
        return FINISHED
    if isinstance(one, BaseException):
        return one
    return WrongShape(f"`forward` returned {type(one).__name__} in the place of a generator of events")


def _together(streams: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield a list with the next event of each item's stream, until all have ended; a stream that raises ends alone."""
    live = dict(enumerate(streams))

    def step(place: int) -> Any:
        if place not in live:
            return None
        try:
            if isinstance(live[place], Iterator):
                return next(live[place])
            if isinstance(live[place], AsyncIterator):
                raise WrongShape(f"`forward` returned an asynchronous generator, {_HIDDEN}")
            end = _no_stream(live[place])
        except StopIteration:
            end = FINISHED
        except (Ending, MosecTimeoutError):
            # The timeout is that of the whole step, and nothing would interrupt the next streams in it.
            raise
        except BaseException as error:
            end = error
        del live[place]
        return end

    with contextlib.ExitStack() as exits:
        for one in streams:
            if hasattr(one, "close"):
                exits.callback(one.close)
        while live:
            yield [step(place) for place in range(len(streams))]


async def _together_asynchronously(streams: Sequence[Any]) -> AsyncIterator[list[Any]]:
    """Do as `_together` does, for iterators of both kinds."""
    import asyncio

    live = dict(enumerate(streams))

    async def step(place: int) -> Any:
        if place not in live:
            return None
        try:
            if isinstance(live[place], AsyncIterator):
                return await live[place].__anext__()
            if isinstance(live[place], Iterator):
                return next(live[place])
            end = _no_stream(live[place])
        except (StopIteration, StopAsyncIteration):
            end = FINISHED
        except Ending:
            raise
        except BaseException as error:
            # Where the step itself is cancelled, `gather` raises that all the same.
            end = error
        del live[place]
        return end

    async with contextlib.AsyncExitStack() as exits:
        for one in streams:
            if hasattr(one, "aclose"):
                exits.push_async_callback(one.aclose)
            elif hasattr(one, "close"):
                exits.callback(one.close)
        while live:
            yield await asyncio.gather(*map(step, range(len(streams))))


async def _one_by_one(events: Iterator[Any]) -> AsyncIterator[Any]:
    """Yield the items of a plain iterator, and let the event loop run in between."""
    import asyncio

    with contextlib.ExitStack() as exits:
        if hasattr(events, "close"):
            exits.callback(events.close)
        for event in events:
            yield event
            await asyncio.sleep(0)
