"""How workers' lives begin and end, and what becomes of their tasks."""

from __future__ import annotations

from collections.abc import Callable

from mosec_asgi.testing.simulation.client_oracle import TOLERANCE
from mosec_asgi.testing.simulation.contracts import Contract, Record, Watcher

from mosec_asgi.batching.stage import GRACE_SECONDS, LOOK_SECONDS, STAGE_DOWN, WORKER_DIED
from mosec_asgi.pool.supervisor import EXIT_SECONDS
from mosec_asgi.testing.simulation.model import Case, Life, Phase, Picture, Place, StageModel

# Seconds before a dead worker is replaced: the first wait, and the longest.
FIRST_BACKOFF = 0.1
MOST_BACKOFF = 30.0
HEALTHY_SECONDS = 10.0


class LifeOracle(Watcher):
    """Watches the lives of workers."""

    def __init__(self, picture: Picture, record: Record, clock: Callable[[], float]) -> None:
        super().__init__(record, clock)
        self._picture = picture
        self._lives = 0

    # -- begin -------------------------------------------------------------------------------------------------------

    def launched(self, stage: int, worker_id: int) -> Life:
        """A worker is started."""
        place = self._place_to_fill(stage, worker_id)
        self._lives += 1
        place.life = Life(self._picture.stages[stage], worker_id, self._lives, self.clock())
        self.note("%s: launched", place.life)
        self.count("workers launched")
        return place.life

    def launch_refused(self, stage: int, worker_id: int) -> None:
        """A worker is about to be refused its start."""
        place = self._place_to_fill(stage, worker_id)
        self.note("stage %d: the launch of worker %d is refused", stage, worker_id)
        self._start_failed(self._picture.stages[stage], place)

    def _place_to_fill(self, stage: int, worker_id: int) -> Place:
        place = self._picture.stages[stage].places[worker_id]
        self.require(place.life is None, Contract.RESPAWN, "launched beside %s, which still lives", place.life)
        self.require(not self._picture.stopped, Contract.SHUTDOWN, "a worker was launched after the stop")
        if place.again is not None:
            now, (soonest, _) = self.clock(), place.again
            self.require(now >= soonest - TOLERANCE, Contract.RESPAWN, "launched %.3f s too early", soonest - now)
            place.again = None
        return place

    # -- asked to end, and ended -------------------------------------------------------------------------------------

    def finish(self, life: Life) -> None:
        """The service asks a worker to stop."""
        self.note("%s: is asked to stop", life)
        now = self.clock()
        if not self._picture.started and any(stage.down for stage in self._picture.stages):
            # It cannot start, and ends what it had started.
            self._picture.stopping = self._picture.stopping or (now, 0.0)
        needed = self._picture.stopping is not None
        self.require(needed, Contract.SHUTDOWN, "%s was asked to stop without need", life)
        live = [case.name for case in life.unheard.values() if not case.done]
        self.require(not live, Contract.SHUTDOWN, "%s was asked to stop and has %s", life, live)
        if life.finished_at is None:
            life.finished_at = now
        if life.phase in (Phase.STARTING, Phase.READY):
            life.phase = Phase.STOPPING
            life.unheard.clear()
            life.units.clear()
        self._picture.stopped = True

    def let_go(self, life: Life, *, unread: bool) -> None:
        """The service closes a worker's pipe: it gives it up."""
        if life.phase is Phase.LOST:
            return
        self.require(not unread or life.fault != "died", Contract.CRASH, "the last words of %s were not read", life)
        self.note("%s: is given up: %s", life, life.fault or "by the service's own choice")
        now = self.clock()
        if not life.fault:
            life.fault = self._why_ended(life, now)
            self.count(f"workers {life.fault}")
        life.stage.note_work(now)
        life.phase = Phase.LOST
        life.lost_at = now
        held, life.unheard = life.unheard, {}
        life.units.clear()
        for case in held.values():
            self._take_back(life, case)
        life.stage.note_work(now)

    def _why_ended(self, life: Life, now: float) -> str:
        """Return why the service ends a worker that has done nothing wrong at this moment."""
        if life.phase is Phase.STARTING:
            late = now >= life.launched_at + life.stage.plan.start_timeout - TOLERANCE
            self.require(late, Contract.TIME, "%s was ended before its start timeout", life)
            return "too long in starting"
        if life.phase is Phase.STOPPING:
            late = life.finished_at is not None and now >= life.finished_at + self._picture.grace - TOLERANCE
            self.require(late, Contract.SHUTDOWN, "%s was ended before it could stop", life)
            return "too long in stopping"
        still = now - life.still_since
        # What a look sees may have begun just after the one before.
        limit = life.stage.plan.timeout + GRACE_SECONDS - LOOK_SECONDS - TOLERANCE
        right = bool(life.unheard) and still >= limit
        self.require(right, Contract.TIME, "%s was ended after %.3f s without a step", life, still)
        return "stuck"

    def _take_back(self, life: Life, case: Case) -> None:
        begun = case.id in life.begun
        case.deaths += begun
        if case.done:
            return
        self.require(not (begun and life.fault == "stuck"), Contract.TIME, "%s: on a stuck worker, no 408", case)
        if case.streaming or case.deaths >= life.stage.plan.max_attempts:
            case.expected = WORKER_DIED
        else:
            case.alone = case.deaths > 0
            case.life = None
            life.stage.come_back(case)

    def kill(self, life: Life) -> None:
        """The service kills a worker."""
        self.note("%s: is killed", life)
        now = self.clock()
        life.killed = True
        useless = life.phase is Phase.LOST or life.failed_at is not None
        self.require(useless, Contract.PROTOCOL, "%s was killed while in use", life)
        patient = life.may_exit_until is None or now >= life.may_exit_until - TOLERANCE
        in_time = patient or self._picture.stopping is not None
        self.require(in_time, Contract.RESPAWN, "%s was killed before it could exit", life)

    # -- noticed -----------------------------------------------------------------------------------------------------

    def pipe_ends(self, life: Life, reason: str, take: Callable[[str], None]) -> None:
        """A worker's pipe has ended, or holds garbage, which the service hears by `take`."""
        self.note("%s: its pipe has ended: %s", life, reason)
        stops = life.phase is Phase.STOPPING
        life.fault = life.fault or "lost its pipe"
        if reason == "it was closed":
            life.may_exit_until = self.clock() + EXIT_SECONDS
        take(reason)
        self.require(stops or life.phase is Phase.LOST, Contract.CRASH, "%s lost its pipe and is kept", life)

    def exits(self, life: Life, take: Callable[[], None]) -> None:
        """A worker's process has ended, which the service hears by `take`."""
        self.note("%s: its process has ended", life)
        if life.phase is not Phase.LOST:
            self.count("workers died by themselves")
        life.fault = life.fault or "died"
        take()
        self.require(life.phase is Phase.LOST, Contract.CRASH, "%s has died and is kept", life)
        place = life.stage.places[life.worker_id]
        place.life = None
        if self._picture.stopped:
            return
        if life.ready_at is None:
            self._start_failed(life.stage, place)
        else:
            self._expect_another(place, served=self.clock() - life.ready_at)

    def _start_failed(self, stage: StageModel, place: Place) -> None:
        now = self.clock()
        stage.started_badly(place, now)
        if stage.down:
            self.note("stage %d is down", stage.index)
            self.count("stages down")
            for case in stage.live():
                case.expected = STAGE_DOWN
        self._expect_another(place, served=0.0)

    def _expect_another(self, place: Place, served: float) -> None:
        """Note when a dead worker is to be replaced: at once, then ever later, the sooner it died."""
        now = self.clock()
        if served >= HEALTHY_SECONDS:
            place.early = 0
            place.again = (now, now)
        else:
            place.early += 1
            exponent = min(place.early, 40)
            least = FIRST_BACKOFF * 2.0 ** (exponent - 2) if place.early > 1 else 0.0
            most = FIRST_BACKOFF * 2.0 ** (exponent - 1)
            place.again = (now + min(MOST_BACKOFF, least), now + min(MOST_BACKOFF, most))
