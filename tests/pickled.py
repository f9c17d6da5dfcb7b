"""A coordinator to which, and from which, every message crosses as bytes, as if each layer were another process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.engine import Caller
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import (
    Call,
    Cancel,
    Cancels,
    Chunk,
    Chunks,
    Credit,
    Credits,
    Outcome,
    Progress,
    Results,
    Tasks,
    drop_all,
)
from mosec_asgi.pool.link import Launcher, WorkerEvents, WorkerLink

M = TypeVar("M", bound=tuple[Any, ...])

# How many messages of each kind have crossed.
crossings: dict[str, int] = {}


def cross(message: M) -> M:
    """Return a message as it comes out of a socket."""
    crossed: M = pickle.loads(pickle.dumps(message))
    assert crossed is not message
    crossings[type(message).__name__] = crossings.get(type(message).__name__, 0) + 1
    return crossed


class PickledCaller:
    """Passes what it hears on to the caller, as bytes between."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def settled(self, outcome: Outcome) -> None:
        crossed = cross(outcome)
        # As below.
        drop_all((outcome.payload,))
        self._caller.settled(crossed)

    def streamed(self, chunk: Chunk) -> None:
        self._caller.streamed(cross(chunk))


class PickledEvents:
    """Passes what a worker says on, as bytes between."""

    def __init__(self, events: WorkerEvents) -> None:
        self._events = events
        self.ready, self.failed = events.ready, events.failed
        self.closed, self.exited = events.closed, events.exited

    def results(self, results: Results) -> None:
        crossed = cross(results)
        # Bytes have taken the place of what the link held.
        drop_all(results.payloads)
        self._events.results(crossed)

    def chunks(self, chunks: Chunks) -> None:
        self._events.chunks(cross(chunks))


class PickledLink:
    """Passes what the pool says on to the link, as bytes between."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self.busy_poll, self.drain, self.finish, self.close = link.busy_poll, link.drain, link.finish, link.close
        self.kill, self.reap, self.describe_exit = link.kill, link.reap, link.describe_exit

    @property
    def name(self) -> str:
        return self._link.name

    def send(self, tasks: Tasks) -> None:
        self._link.send(cross(tasks))

    def cancel(self, cancels: Cancels) -> None:
        self._link.cancel(cross(cancels))

    def credit(self, credits: Credits) -> None:
        self._link.credit(cross(credits))

    def progress(self) -> Progress:
        return cross(self._link.progress())


class PickledLauncher:
    """Starts workers of another launcher, to which messages cross."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.close = launcher.close

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> WorkerLink:
        return PickledLink(self._launcher.launch(spec, variables, PickledEvents(events)))


class PickledCoordinator(Coordinator):
    """An engine over a socket, to workers over sockets."""

    def __init__(
        self,
        stages: Any,
        routes: Any,
        launcher: Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher],
        limits: Any,
        **options: Any,
    ) -> None:
        def crossing(plan: StagePlan, loop: asyncio.AbstractEventLoop) -> Launcher:
            return PickledLauncher(launcher(plan, loop))

        super().__init__(stages, routes, crossing, limits, **options)

    def submit(self, call: Call, caller: Caller) -> None:
        crossed = cross(call)
        drop_all((call.payload,))
        super().submit(crossed, PickledCaller(caller))

    def credit(self, credit: Credit) -> None:
        super().credit(cross(credit))

    def cancel(self, call_id: int) -> None:
        super().cancel(cross(Cancel(call_id)).call_id)
