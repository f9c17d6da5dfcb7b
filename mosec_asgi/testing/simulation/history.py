"""One history: a scenario run to its end on virtual time, under the oracle's eyes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

from mosec_asgi import log
from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.errors import StartupError
from mosec_asgi.messages import Outcome
from mosec_asgi.observing.metrics import StageMetrics
from mosec_asgi.observing.observer import StageObserver
from mosec_asgi.pool.supervisor import CLOSE_SECONDS
from mosec_asgi.testing.loop import DeadlockError, VirtualTimeLoop
from mosec_asgi.testing.simulation.agenda import Agenda
from mosec_asgi.testing.simulation.client import SimulatedClient
from mosec_asgi.testing.simulation.contracts.contract import Contract, Violation
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE
from mosec_asgi.testing.simulation.oracle import Oracle
from mosec_asgi.testing.simulation.scenario import Arrival, Change, Kind, World, draw
from mosec_asgi.testing.simulation.surroundings import Surroundings
from mosec_asgi.testing.simulation.worker import SimulatedLauncher

# A clock whose numbers are neither small nor round.
START = 123_456.789
# Times that the clock may move; a service that needs more is going round in circles.
MOST_JUMPS = 50_000
# Seconds in which a service without further faults must be well again: the longest back-off and all that may follow,
# but for the time that a worker may take to start.
HEALING_SECONDS = 120.0
# The longest that a killed worker takes to be gone, and its link.
DYING_SECONDS = 2.1


class History:
    """A history that is being run."""

    def __init__(self, seed: int, world: World | None, *, verbose: bool) -> None:
        self.scenario = draw(Random(seed), world)
        self.loop = VirtualTimeLoop(START)
        self.oracle = Oracle(self.scenario.world, self.loop.time, verbose=verbose)
        self._service, self._journal = self.oracle.service, self.oracle.journal
        self._agenda = Agenda(self.loop)
        self._around = Surroundings(seed, self.scenario, self._agenda, self.oracle)
        self._clock = _Clock(self.loop, self.scenario.clock_lag, Random(seed))
        stages = list(self.scenario.world.stages)
        self._metrics = [StageMetrics(plan.name, batched=plan.batch_size > 1, streams=plan.streams) for plan in stages]
        self._coordinator = Coordinator(
            stages,
            self.scenario.world.routes,
            lambda plan, loop: SimulatedLauncher(stages.index(plan), self._around),
            self.scenario.world.limits,
            observers=[self._metrics, [_SizeObserver(index, self.oracle) for index in range(len(stages))]],
            clock=self._clock,
        )
        self.oracle.dispatch.scheduler = self._coordinator.scheduler
        self._number = 0
        self._changing: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._jumps = 0

    @property
    def seconds(self) -> float:
        """How much time has passed in it."""
        return self.loop.time() - START

    def run(self) -> None:
        """Run it; raise the first violation."""
        loop = self.loop
        if self.scenario.pickled:
            self._journal.count("histories with pickled messages")
        loop.before_jump = self._before_jump
        loop.set_exception_handler(self._note_exception)
        try:
            loop.run_until_complete(self._live())
        except Violation:
            pass
        except DeadlockError as error:
            self._journal.fail(Contract.ONE_ANSWER, str(error))
        except Exception as error:
            if self._journal.violation is None:
                self._journal.fail(Contract.NO_ERRORS, repr(error)).__cause__ = error
        finally:
            loop.before_jump = None
            if self._journal.violation is not None:
                self._abandon()
            loop.close()
        if self._journal.violation is not None:
            raise self._journal.violation

    def _abandon(self) -> None:
        """Let a broken service end as it can, so that it leaves no tasks that complain of their end."""
        self._journal.muted = True
        self.loop.set_exception_handler(lambda loop, context: None)
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        with contextlib.suppress(Exception):
            self.loop.run_until_complete(asyncio.wait(left, timeout=60.0) if left else asyncio.sleep(0))

    async def _live(self) -> None:
        if await self._start():
            for arrival in self.scenario.arrivals:
                self._unanswered += 1
                self._agenda.after(arrival.at, self._client(arrival).arrive)
            for change in self.scenario.changes:
                self._agenda.after(change.at, partial(self._begin_change, change))
            await self._live_until_the_stop()
            if self.scenario.heals and self._service.stopping is None:
                await self._heal()
            if self._service.stopping is None:
                await self._stop()
            if self._changing:
                await asyncio.wait(self._changing)
        self._check_the_end()

    async def _start(self) -> bool:
        """Start the service; whether it has started must be as it should."""
        began = self._journal.now
        try:
            await self._coordinator.start()
        except StartupError:
            down = any(stage.down for stage in self._service.stages)
            self._journal.require(down, Contract.RESPAWN, "the service did not start though every stage could")
            self._journal.count("services that could not start")
            self._service.stopped = True
            return False
        for stage in self._service.stages:
            tried = all(place.tried for place in stage.places.values())
            self._journal.require(tried, Contract.RESPAWN, "stage %d was not waited for", stage.index)
        self._service.started = True
        self._journal.note("the service has started after %.3f s", self._journal.now - began)
        return True

    def _begin_change(self, change: Change) -> None:
        if self._service.stopping is None:
            task = self.loop.create_task(self._change(change))
            self._changing.add(task)
            task.add_done_callback(self._changing.discard)

    async def _change(self, change: Change) -> None:
        """Have a stage changed, and wait until that has come about."""
        changes = self.oracle.changes
        asked = changes.asked(change)
        failures = self._service.stages[change.stage].failed_starts
        try:
            await asyncio.wait_for(self._ask_for(change), change.gives_up_after)
        except asyncio.TimeoutError:
            changes.given_up(change)
        except StartupError as error:
            changes.failed(change, failures, str(error))
        else:
            changes.made(change, asked)

    async def _ask_for(self, change: Change) -> None:
        if change.kind is Kind.SCALE:
            await self._coordinator.scale(change.stage, change.num)
        elif change.kind is Kind.RESTART:
            await self._coordinator.restart(change.stage)
        else:
            await self._coordinator.configure(change.stage, change.of_values)

    def _client(self, arrival: Arrival) -> SimulatedClient:
        self._number += 1
        return SimulatedClient(self._number, arrival, self._coordinator, self._around, self._client_is_done)

    def _client_is_done(self, _: Outcome) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self._answered.set()

    async def _live_until_the_stop(self) -> None:
        """Wait until all clients have their answers, or until the service is to stop."""
        answered = asyncio.ensure_future(self._answered.wait())
        await asyncio.wait({answered}, timeout=self.scenario.stop_at)
        if not answered.done():
            answered.cancel()
            await self._stop()

    async def _stop(self) -> None:
        """Stop the service, and let those clients come that come too late."""
        grace = self.scenario.grace
        began = self._journal.now
        self._journal.note("the service is told to stop within %.3f s", grace)
        self._journal.count("services stopped")
        self._service.stopping = (began, grace)
        await self._coordinator.stop(grace)
        seconds = self._journal.now - began
        most = grace + CLOSE_SECONDS + DYING_SECONDS + TOLERANCE
        self._journal.require(seconds <= most, Contract.SHUTDOWN, "the stop took %.3f s", seconds)
        self._service.stopped = True

    async def _heal(self) -> None:
        """Let nothing go wrong any more: before long each route must answer well again."""
        self._journal.note("no more faults")
        self._journal.count("services healed")
        self._around.faulty = False
        world = self.scenario.world
        until = self._journal.now + HEALING_SECONDS + 2 * max(stage.start_timeout for stage in world.stages)
        for route in range(len(world.routes)):
            pause = 0.5
            # Asked each time: a stage may be configured meanwhile.
            while self._is_quick(route) and not await self._answers_well(route):
                late = self._journal.now > until
                self._journal.require(not late, Contract.RESPAWN, "route %d does not come back", route)
                await asyncio.sleep(pause)
                pause *= 1.5

    def _is_quick(self, route: int) -> bool:
        """Whether a lonely request can be answered within the service's timeout, if all goes well."""
        world, paces = self.scenario.world, self.scenario.paces
        stages = world.routes[route].stages
        # A stage waits as it was configured last.
        waits = [max(plan.max_wait for plan in self._service.stages[stage].views) for stage in stages]
        longest = sum(waits) + sum(2 * paces[stage].most for stage in stages)
        longest += 4 * max(self.scenario.latencies) * len(stages)
        return longest < world.limits.timeout

    async def _answers_well(self, route: int) -> bool:
        outcome: asyncio.Future[Outcome] = self.loop.create_future()
        self._number += 1
        client = SimulatedClient(self._number, Arrival(0.0, route), self._coordinator, self._around, outcome.set_result)
        client.arrive()
        return (await outcome).failure is None

    # -- checks ------------------------------------------------------------------------------------------------------

    def _before_jump(self) -> None:
        self._jumps += 1
        if self._jumps > MOST_JUMPS:
            self._journal.fail(Contract.TIME, f"the clock has moved {MOST_JUMPS} times")
        if self._journal.violation is None:
            self.oracle.settle_up(self._coordinator.statistics)
        if self._journal.violation is not None:
            raise self._journal.violation

    def _note_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Record what nobody has caught, and end the history."""
        error = context.get("exception")
        if not isinstance(error, Violation):
            violation = self._journal.fail(Contract.NO_ERRORS, f"{context['message']}: {error!r}")
            violation.__cause__ = error
        self.loop.stop()

    def _check_the_end(self) -> None:
        """Check that a service that has stopped has left nothing."""
        require, open_cases = self._journal.require, self._service.open
        left = [case.name for case in open_cases.values() if not case.done]
        require(not left, Contract.SHUTDOWN, "these have no answer: %s", left)
        alive = [life for stage in self._service.stages for life in stage.lives]
        require(not alive, Contract.SHUTDOWN, "these workers live on: %s", alive)
        timers = [timer for timer in self.loop.timers if not self._agenda.owns(timer)]
        require(not timers, Contract.SHUTDOWN, "these timers are still set: %s", timers)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        require(not tasks, Contract.SHUTDOWN, "these tasks still run: %s", tasks)
        closed = self._service.closed_launchers == set(range(len(self._service.stages)))
        require(closed, Contract.SHUTDOWN, "only the launchers of %s are closed", self._service.closed_launchers)
        require(self.oracle.memory.held == 0, Contract.MEMORY, "%d payloads were not dropped", self.oracle.memory.held)
        self._check_the_numbers()
        self._agenda.clear()

    def _check_the_numbers(self) -> None:
        """Check that the numbers of a service that has stopped are at rest, and the metrics those of its answers."""
        require, counts = self._journal.require, self._journal.counts
        told = self._coordinator.statistics()
        require(told.admitted == 0, Contract.CANCELLATION, "%d calls remain", told.admitted)
        for stage, metrics in zip(told.stages, self._metrics, strict=True):
            now = (metrics.streams_open, stage.queued, stage.in_flight, stage.slots_in_use, stage.ready)
            require(now == (0, 0, 0, 0, 0), Contract.CANCELLATION, "%s has left %s", stage.name, now)
        measured = (
            sum(metrics.rejected for metrics in self._metrics),
            sum(metrics.timeouts for metrics in self._metrics),
            sum(metrics.cancellations for metrics in self._metrics),
        )
        refused = sum(number for what, number in counts.items() if what.startswith("refused "))
        there = (refused, counts.get("answered 408 by the service", 0), counts.get("calls cancelled", 0))
        require(
            measured == there,
            Contract.CANCELLATION,
            "refused, timed out, cancelled: measured %s, are %s",
            measured,
            there,
        )


class _SizeObserver(StageObserver):
    """Tells the oracle how many workers a stage is to have."""

    def __init__(self, index: int, oracle: Oracle) -> None:
        self._index = index
        self._oracle = oracle

    def resized(self, num: int, now: float) -> None:
        """Pass it on."""
        self._oracle.changes.resized(self._index, num)


class _Clock:
    """Lags behind the loop's time by a little, never the same, as uvloop's and the system's clock do."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lag: float, random: Random) -> None:
        self._loop = loop
        self._lag = lag
        self._random = random
        self._last = 0.0

    def __call__(self) -> float:
        now = self._loop.time()
        if self._lag:
            now = self._last = max(self._last, now - self._lag * self._random.random())
        return now


@contextlib.contextmanager
def silenced(silent: bool) -> Iterator[None]:
    """Keep the service's own log lines back for the time of a block, or show all of them."""
    logger = log.internal_logger(log.ROOT)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1 if silent else logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(before)
