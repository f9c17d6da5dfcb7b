"""A simulated client: it asks, reads, stalls, leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.engine import CLIENT_LEFT, Outcome, outcome_future
from mosec_asgi.testing.simulation.agenda import Agenda
from mosec_asgi.testing.simulation.model import Case
from mosec_asgi.testing.simulation.oracle import Oracle
from mosec_asgi.testing.simulation.scenario import Arrival


class SimulatedClient:
    """Sends one request, and takes what comes of it."""

    def __init__(
        self,
        number: int,
        arrival: Arrival,
        coordinator: Coordinator,
        oracle: Oracle,
        agenda: Agenda,
        on_done: Callable[[Outcome], None],
    ) -> None:
        stages = oracle.world.routes[arrival.route].stages
        streams = oracle.world.stages[stages[-1]].streams
        self._case = Case(number, arrival, stages, streams=streams)
        self._arrival = arrival
        self._coordinator = coordinator
        self._oracle = oracle
        self._agenda = agenda
        self._on_done = on_done
        # Events that it has not read, by their sizes, and how many have come.
        self._unread: deque[int] = deque()
        self._came = 0
        self._reading = False

    def arrive(self) -> None:
        """Send the request."""
        case, arrival, most = self._case, self._arrival, self._oracle.world.limits.timeout
        timeout = most if arrival.timeout is None else min(most, arrival.timeout)
        self._oracle.submit(case, timeout)
        on_chunk = self._take if case.streams else None
        future, resolve = outcome_future()
        answer = self._coordinator.submit(
            arrival.route, case.payload, case.name, resolve, arrival.timeout, on_chunk=on_chunk
        )
        if isinstance(answer, int):
            case.outcome = future
            self._oracle.admitted(case, answer)
            future.add_done_callback(self._is_done)
            if arrival.leaves_after is not None:
                self._agenda.after(arrival.leaves_after, self._leave)
        else:
            self._oracle.refused(case, answer, timeout)
            self._on_done(answer)

    def _is_done(self, outcome: asyncio.Future[Outcome]) -> None:
        self._on_done(CLIENT_LEFT if outcome.cancelled() else outcome.result())

    def _leave(self) -> None:
        self._oracle.leave(self._case)
        if self._arrival.forgets and self._case.outcome is not None:
            self._case.outcome.cancel()
        self._coordinator.cancel(self._case.id)

    def _take(self, chunk: bytes) -> None:
        self._oracle.chunk(self._case, chunk)
        self._came += 1
        self._unread.append(len(chunk))
        if not self._reading:
            self._read_on()

    def _read_on(self) -> None:
        """Read the next event, when it is ready to."""
        stalls = self._arrival.stalls_at is not None and self._came > self._arrival.stalls_at
        delay = self._arrival.stalls_for if stalls else self._arrival.reads_after
        if delay:
            self._reading = True
            self._agenda.after(delay, self._read)
        else:
            self._read()

    def _read(self) -> None:
        self._reading = False
        size = self._unread.popleft()
        self._oracle.reads(self._case, size)
        self._coordinator.taken(self._case.id, size)
        if self._unread:
            self._read_on()
