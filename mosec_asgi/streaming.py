"""What a user subclasses to stream in steps: `ContinuousWorker`; and how a class of workers is to be run.

`SSEWorker` stands in `worker`, and the events in `events`; both can be had from here as well.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from mosec_asgi.events import (
    EVENT_STREAM,
    FINISHED,
    Event,
    Finished,
    encode_chunk,
    encode_event,
    encoder_for,
    is_event_stream,
)
from mosec_asgi.hints import In, Out
from mosec_asgi.worker import SSEWorker, Worker

__all__ = [
    "EVENT_STREAM",
    "FINISHED",
    "ContinuousWorker",
    "Event",
    "Finished",
    "SSEWorker",
    "encode_chunk",
    "encode_event",
    "encoder_for",
    "is_async",
    "is_event_stream",
    "is_generator",
    "response_type",
    "streams",
]


class ContinuousWorker(SSEWorker[In, Out]):
    """A model that works in steps, where requests join and leave the running batch between two steps.

    This is iteration-level scheduling, as Orca introduced it for language models (Yu et al., OSDI 2022): a request
    that is done makes room at once, and one that waits joins at the next step, whatever the others still have to do.

        class Generate(ContinuousWorker):
            def admit(self, item): ...    # take a free slot, keep the prompt there, return the slot
            def step(self): ...           # one token for each taken slot: yield slot, token; yield slot, self.FINISHED
            def evict(self, slot): ...    # the slot is free again

    `ContinuousWorker[Prompt, str]` says for type checkers what an item is, and its events.

    At most `max_batch_size` slots are taken at a time. One thread calls the three methods, one after the other.
    """

    @abc.abstractmethod
    def admit(self, item: In) -> Hashable:
        """Take a request into the running batch; it takes part from the next step on.

        Args:
            item: the decoded request.

        Returns:
            the slot that it has, anything hashable that no other request has now.

        Raises:
            MosecError: to answer this request with that error; the others go on.
        """

    @abc.abstractmethod
    def step(self) -> Iterable[tuple[Hashable, Out | Finished | BaseException]]:
        """Do one step for all that is in the batch; called only while at least one slot is taken.

        Returns:
            pairs of a slot and an event, any number for a slot. `FINISHED` in an event's place ends the slot's stream
            well and an exception ends it with that error; `evict` is called for it then.

        Raises:
            MosecError: to end all streams of the batch with that error.
        """

    @abc.abstractmethod
    def evict(self, slot: Any) -> None:
        """Free a slot: its stream has ended, whether by `step` or because its client has left.

        Args:
            slot: what `admit` returned.
        """

    def forward(self, data: In) -> Iterator[Out]:
        """Run one request by itself, as the warm-up does with `example`: yield its events."""
        slot = self.admit(data)
        try:
            while True:
                for where, event in self.step():
                    if where != slot:
                        continue
                    if event is FINISHED:
                        return
                    if isinstance(event, BaseException):
                        raise event
                    yield event
        finally:
            self.evict(slot)


def streams(worker: type[Worker]) -> bool:
    """Whether a worker's results are streams."""
    return issubclass(worker, SSEWorker)


def response_type(worker: type[Worker]) -> str:
    """Return the content type of a worker's answers: of a stream, not that of a mixin that is there for the input.

    `class Chat(MsgpackMixin, SSEWorker)` reads msgpack and sends events, as in mosec. A stream of bare bytes is what
    the user's own classes ask for.
    """
    if not streams(worker):
        return worker.resp_mime_type
    owners = (base for base in worker.__mro__ if "resp_mime_type" in vars(base))
    mixins = f"{__name__.partition('.')[0]}.mixin."
    return next(str(vars(base)["resp_mime_type"]) for base in owners if not base.__module__.startswith(mixins))


def is_generator(worker: type[Worker]) -> bool:
    """Whether a worker's `forward` yields its events."""
    return inspect.isgeneratorfunction(worker.forward) or inspect.isasyncgenfunction(worker.forward)


def is_async(worker: type[Worker]) -> bool:
    """Whether a worker's `forward` runs on an event loop."""
    return inspect.iscoroutinefunction(worker.forward) or inspect.isasyncgenfunction(worker.forward)
