"""Workers are replaced, after waits that grow, and a stage whose workers cannot start is down (contract 6)."""

from __future__ import annotations

from mosec_asgi.errors import STAGE_DOWN
from mosec_asgi.inside.spec import WorkerSpec
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

    def launched(self, index: int, spec: WorkerSpec) -> Life:
        """A worker is started."""
        stage = self._service.stages[index]
        place = self._place_to_fill(stage, spec.worker_id)
        self._lives += 1
        life = Life(stage, spec, self._lives, self._journal.now)
        if place is None:
            stage.candidates[spec.worker_id] = life
        elif place.life is None:
            place.life = life
        else:
            self._journal.count("successors launched" if stage.changes else "workers recycled")
            place.successor = life
        self._journal.note("%s: launched", life)
        self._journal.count("workers launched")
        return life

    def launch_refused(self, index: int, spec: WorkerSpec) -> None:
        """A worker is about to be refused its start."""
        stage = self._service.stages[index]
        place = self._place_to_fill(stage, spec.worker_id)
        self._journal.note("stage %d: the launch of worker %d is refused", index, spec.worker_id)
        stage.failed_starts += 1
        if place is not None and place.life is None:
            self._start_failed(stage, place)

    def ready(self, life: Life) -> None:
        """A worker says that it is ready."""
        self._journal.note("%s: is ready", life)
        life.phase = Phase.READY
        life.ready_at = life.heard_at = self._journal.now
        life.stage.longest_start = max(life.stage.longest_start, life.ready_at - life.launched_at)
        place = self._take_place(life)
        place.tried, place.failing = True, False
        life.stage.down = False

    def _take_place(self, life: Life) -> Place:
        """Let a worker that is ready have its place, if it has none yet; who was there before leaves."""
        stage = life.stage
        if stage.candidates.get(life.worker_id) is life:
            del stage.candidates[life.worker_id]
            stage.places[life.worker_id] = Place(life)
        place = stage.places[life.worker_id]
        if place.successor is life:
            before, place.life, place.successor = place.life, life, None
            place.early = 0
            if before is not None:
                stage.leave(before, self._journal.now)
        return place

    def _place_to_fill(self, stage: StageModel, worker_id: int) -> Place | None:
        """Return the place for which a worker is started; None where it is to be a new one."""
        require, now = self._journal.require, self._journal.now
        require(not self._service.stopped, Contract.SHUTDOWN, "a worker was launched after the stop")
        place = stage.places.get(worker_id)
        if place is None:
            new = bool(stage.changes) and worker_id not in stage.candidates
            require(new, Contract.CHANGE, "worker %d of stage %d was launched, unasked", worker_id, stage.index)
        elif place.life is not None:
            wanted = bool(stage.changes) or place.life.is_full
            require(wanted, Contract.RESPAWN, "launched beside %s, which still lives", place.life)
            require(place.successor is None, Contract.CHANGE, "launched beside %s", place.successor)
        elif place.again is not None:
            soon = bool(stage.changes) or now >= place.again[0] - TOLERANCE
            require(soon, Contract.RESPAWN, "launched %.3f s too early", place.again[0] - now)
            place.again = None
        return place

    # -- ends --------------------------------------------------------------------------------------------------------

    def ended(self, life: Life) -> None:
        """A worker has ended, and the service knows it."""
        stage = life.stage
        if life.ready_at is None:
            stage.failed_starts += 1
        place = self._let_go(life)
        if self._service.stopped or place is None:
            return
        if life.ready_at is None:
            self._start_failed(stage, place)
        elif place.life is None:
            healthy = life.quickest is not None or self._journal.now - life.ready_at >= HEALTHY_SECONDS
            self._expect_another(stage, place, healthy=healthy, longest=MOST_BACKOFF_READY)

    @staticmethod
    def _let_go(life: Life) -> Place | None:
        """Let a worker that has ended be nowhere; return its place, where it had one, which is its successor's now."""
        stage = life.stage
        if life in stage.leaving:
            stage.leaving.remove(life)
            return None
        if stage.candidates.get(life.worker_id) is life:
            del stage.candidates[life.worker_id]
            return None
        place = stage.places[life.worker_id]
        if place.successor is life:
            place.successor = None
            return None
        place.life, place.successor = place.successor, None
        return place

    def _start_failed(self, stage: StageModel, place: Place) -> None:
        place.tried = place.failing = True
        stage.down = all(other.failing for other in stage.places.values())
        if stage.down:
            self._journal.note("stage %d is down", stage.index)
            self._journal.count("stages down")
            stage.down_at = self._journal.now
            for case in stage.live():
                case.fails(STAGE_DOWN)
        if place.life is None:
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
            for life in stage.lives:
                self._settle_given_up(life, dues)
            for place in stage.places.values():
                if place.life is None and place.again is not None:
                    text = "a worker of stage %d was not replaced"
                    dues.require_by(place.again[1], Contract.RESPAWN, text, stage.index)

    @staticmethod
    def _settle_given_up(life: Life, dues: Dues) -> None:
        # It may end by itself until then.
        if life.given_up_at is not None and not life.killed:
            due = life.given_up_at + EXIT_SECONDS
            dues.require_by(due, Contract.RESPAWN, "%s is given up and lives", life)
