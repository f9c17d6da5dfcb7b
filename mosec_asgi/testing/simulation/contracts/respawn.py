"""Workers are replaced, after waits that grow, and a stage whose workers cannot start is down (contract 6)."""

from __future__ import annotations

from mosec_asgi.errors import STAGE_DOWN
from mosec_asgi.pool.supervisor import EXIT_SECONDS
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE, Dues
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.model import Life, Phase, Place, ServiceModel, StageModel

# Seconds before a dead worker is replaced: the first wait, and the longest.
FIRST_BACKOFF = 0.1
MOST_BACKOFF = 30.0
# Of a worker that was ready before it died.
MOST_BACKOFF_READY = 1.0
HEALTHY_SECONDS = 10.0


class Respawn(Checker):
    """Checks when workers are started, and notes when others must be."""

    def __init__(self, service: ServiceModel, journal: Journal) -> None:
        super().__init__(service, journal)
        self._lives = 0

    # -- starts ------------------------------------------------------------------------------------------------------

    def launched(self, stage: int, worker_id: int) -> Life:
        """A worker is started."""
        place = self._place_to_fill(stage, worker_id)
        self._lives += 1
        place.life = Life(self._service.stages[stage], worker_id, self._lives, self._journal.now)
        self._journal.note("%s: launched", place.life)
        self._journal.count("workers launched")
        return place.life

    def launch_refused(self, stage: int, worker_id: int) -> None:
        """A worker is about to be refused its start."""
        place = self._place_to_fill(stage, worker_id)
        self._journal.note("stage %d: the launch of worker %d is refused", stage, worker_id)
        self._start_failed(self._service.stages[stage], place)

    def ready(self, life: Life) -> None:
        """A worker says that it is ready."""
        self._journal.note("%s: is ready", life)
        life.phase = Phase.READY
        life.ready_at = life.heard_at = self._journal.now
        life.stage.longest_start = max(life.stage.longest_start, life.ready_at - life.launched_at)
        place = life.stage.places[life.worker_id]
        place.tried, place.failing = True, False
        life.stage.down = False

    def _place_to_fill(self, stage: int, worker_id: int) -> Place:
        require = self._journal.require
        place = self._service.stages[stage].places[worker_id]
        require(place.life is None, Contract.RESPAWN, "launched beside %s, which still lives", place.life)
        require(not self._service.stopped, Contract.SHUTDOWN, "a worker was launched after the stop")
        if place.again is not None:
            now, (soonest, _) = self._journal.now, place.again
            require(now >= soonest - TOLERANCE, Contract.RESPAWN, "launched %.3f s too early", soonest - now)
            place.again = None
        return place

    # -- ends --------------------------------------------------------------------------------------------------------

    def ended(self, life: Life) -> None:
        """A worker has ended, and the service knows it."""
        stage = life.stage
        place = stage.places[life.worker_id]
        place.life = None
        if self._service.stopped:
            return
        if life.ready_at is None:
            self._start_failed(stage, place)
        else:
            healthy = life.quickest is not None or self._journal.now - life.ready_at >= HEALTHY_SECONDS
            self._expect_another(stage, place, healthy=healthy, longest=MOST_BACKOFF_READY)

    def _start_failed(self, stage: StageModel, place: Place) -> None:
        place.tried = place.failing = True
        stage.down = all(other.failing for other in stage.places.values())
        if stage.down:
            self._journal.note("stage %d is down", stage.index)
            self._journal.count("stages down")
            stage.down_at = self._journal.now
            for case in stage.live():
                case.fails(STAGE_DOWN)
        self._expect_another(stage, place, healthy=False, longest=MOST_BACKOFF)

    def _expect_another(self, stage: StageModel, place: Place, *, healthy: bool, longest: float) -> None:
        """Note when a dead worker is to be replaced: at once after a healthy spell, else ever later."""
        now = self._journal.now
        stage.restarts += 1
        if healthy:
            place.early = 0
            place.again = (now, now)
        else:
            place.early += 1
            exponent = min(place.early, 40)
            least = FIRST_BACKOFF * 2.0 ** (exponent - 2) if place.early > 1 else 0.0
            most = FIRST_BACKOFF * 2.0 ** (exponent - 1)
            place.again = (now + min(longest, least), now + min(longest, most))

    # -- what is owed ------------------------------------------------------------------------------------------------

    def settle(self, dues: Dues) -> None:
        """Check that dead workers were replaced, and that those which were given up do not live on."""
        if self._service.stopping is not None:
            return
        for stage in self._service.stages:
            for place in stage.places.values():
                if place.life is not None:
                    self._settle_given_up(place.life, dues)
                elif place.again is not None:
                    text = "a worker of stage %d was not replaced"
                    dues.require_by(place.again[1], Contract.RESPAWN, text, stage.index)

    @staticmethod
    def _settle_given_up(life: Life, dues: Dues) -> None:
        # It may end by itself until then.
        if life.given_up_at is not None and not life.killed:
            due = life.given_up_at + EXIT_SECONDS
            dues.require_by(due, Contract.RESPAWN, "%s is given up and lives", life)
