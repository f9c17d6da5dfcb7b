"""A simulated client: it asks, reads, stalls, leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from mosec_asgi.batching.engine import Engine
from mosec_asgi.messages import Call, Cancel, Chunk, Credit, Outcome, Payload
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.model import Case
from mosec_asgi.testing.simulation.scenario import Arrival
from mosec_asgi.testing.simulation.surroundings import Surroundings


class SimulatedClient:
    """Makes one call, and takes what comes of it; the engine's `Caller`."""

    def __init__(
        self,
        number: int,
        arrival: Arrival,
        engine: Engine,
        around: Surroundings,
        on_done: Callable[[Outcome], None],
    ) -> None:
        world = around.scenario.world
        stages = world.routes[arrival.route].stages
        self._case = Case(number, engine.new_id(), arrival, stages, streams=world.stages[stages[-1]].streams)
        self._arrival = arrival
        self._engine = engine
        self._around = around
        self._oracle = around.oracle
        self._on_done = on_done
        # Events that it has not read, by their sizes, and how many have come.
        self._unread: deque[int] = deque()
        self._came = 0
        self._reading = False

    def arrive(self) -> None:
        """Make the call."""
        case, arrival, most = self._case, self._arrival, self._around.scenario.world.limits.timeout
        timeout = most if arrival.timeout is None else min(most, arrival.timeout)
        # A caller of objects may have put its input into memory, which is the engine's to drop.
        held = case.objects and not self._around.scenario.pickled
        case.held = held
        payload: Payload = self._oracle.memory.hold(case.payload) if held else case.payload
        call = Call(
            case.id,
            arrival.route,
            payload,
            case.name,
            arrival.timeout,
            objects=case.objects,
            priority=arrival.priority,
            key=arrival.key,
            cost=arrival.cost,
            tenant=arrival.tenant,
        )
        self._oracle.journal.count("calls of objects" if case.objects else "calls of bytes")
        before, told = self._engine.statistics().admitted, self._oracle.answers.told
        self._oracle.answers.submit(case, timeout)
        self._engine.submit(self._around.crosses(call), self)
        # Another one may have given it its place.
        gone = self._oracle.answers.told - told
        self._oracle.admission.submitted(case, admitted=self._engine.statistics().admitted + gone > before)
        if case.admitted and case.number % 8 == 0:
            self._submit_again(call)
        if arrival.leaves_after is not None:
            self._leave_after(arrival.leaves_after)

    # -- what it hears -----------------------------------------------------------------------------------------------

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of the call."""
        payload = outcome.payload
        if not isinstance(payload, bytes):
            expected = self._case.objects and not self._case.streams
            self._oracle.journal.require(expected, Contract.RIGHT_ANSWER, "%s has its answer in memory", self._case)
            outcome = outcome._replace(payload=payload.load())
        outcome = self._around.crosses(outcome)
        self._oracle.answers.settled(self._case, outcome)
        self._around.agenda.after(0.0, partial(self._judge, outcome))
        self._fail_at_times()

    def streamed(self, chunk: Chunk) -> None:
        """Take an event."""
        payload = self._around.crosses(chunk).payload
        self._oracle.streams.chunk(self._case, chunk.call_id, payload)
        self._came += 1
        self._unread.append(len(payload))
        if not self._reading:
            self._read_on()
        self._fail_at_times()

    def _fail_at_times(self) -> None:
        if self._arrival.raises:
            raise RuntimeError("a caller has a fault of its own")

    def _judge(self, outcome: Outcome) -> None:
        """Have the outcome judged when the service has done all that belongs to it."""
        self._oracle.answers.judge(self._case, outcome)
        self._on_done(outcome)

    # -- what it does ------------------------------------------------------------------------------------------------

    def _submit_again(self, call: Call) -> None:
        """Choose the number of a call that runs: nothing may come of it."""
        try:
            self._engine.submit(call, self)
        except ValueError:
            return
        self._oracle.journal.require(False, Contract.ONE_ANSWER, "%s was submitted twice", self._case)

    def _leave_after(self, seconds: float) -> None:
        if seconds or self._case.number % 2:
            self._around.agenda.after(seconds, self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        self._oracle.cancellation.leave(self._case)
        self._engine.cancel(self._around.crosses(Cancel(self._case.id)).call_id)
        self._oracle.cancellation.has_left(self._case)

    def _read_on(self) -> None:
        """Read the next event, when it is ready to, and never from within the service."""
        stalls = self._arrival.stalls_at is not None and self._came > self._arrival.stalls_at
        self._reading = True
        self._around.agenda.after(self._arrival.stalls_for if stalls else self._arrival.reads_after, self._read)

    def _read(self) -> None:
        self._reading = False
        size = self._unread.popleft()
        self._oracle.streams.reads(self._case, size)
        self._engine.credit(self._around.crosses(Credit(self._case.id, size)))
        if self._unread:
            self._read_on()
