"""Each call is answered once, with the right answer, in time (contracts 1, 2 and 7)."""

from __future__ import annotations

from mosec_asgi.errors import (
    CLIENT_LEFT,
    CLOSING,
    NOT_BEGUN,
    STAGE_DOWN,
    STALLED,
    TIMED_OUT,
    UNSEEN,
    WORKER_DIED,
    Failure,
    describe,
    gave_way,
    too_slow,
)
from mosec_asgi.messages import Outcome
from mosec_asgi.testing.simulation.contracts.admission import Admission
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import TOLERANCE, Dues
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.contracts.streams import Streams
from mosec_asgi.testing.simulation.contracts.time_limits import STUCK, STUCK_OR_DRAINING
from mosec_asgi.testing.simulation.model import Case, ServiceModel


class Answers(Checker):
    """Checks what clients are answered."""

    def __init__(self, service: ServiceModel, journal: Journal, admission: Admission, streams: Streams) -> None:
        super().__init__(service, journal)
        self._admission = admission
        # Outcomes that clients were told.
        self.told = 0
        self._streams = streams

    def submit(self, case: Case, timeout: float) -> None:
        """A call is about to be submitted."""
        service, now = self._service, self._journal.now
        case.arrived_at = now
        case.soonest = case.latest = now + timeout
        self._journal.note("%s: arrives for stages %s", case.name, case.stages)
        new = case.id not in service.by_id
        self._journal.require(new, Contract.RIGHT_ANSWER, "the number %d was given out twice", case.id)
        service.by_id[case.id] = case
        service.open[case.name] = case
        service.stages[case.stage].arrive(case, now)

    def settled(self, case: Case, outcome: Outcome) -> None:
        """A client is told the outcome of its call; `judge` it when the service has done all that belongs to it."""
        require = self._journal.require
        self.told += 1
        require(outcome.call_id == case.id, Contract.RIGHT_ANSWER, "%s: got %s", case, outcome)
        require(case.submitted, Contract.ONE_ANSWER, "%s: %s before it was submitted", case, outcome)
        require(not case.done, Contract.ONE_ANSWER, "%s: %s after %s", case, outcome, case.outcome)
        case.outcome = outcome

    def judge(self, case: Case, outcome: Outcome) -> None:
        """Check what a client was told."""
        journal = self._journal
        self._service.open.pop(case.name)
        self._service.stages[case.stage].note_work(journal.now)
        journal.note("%s: answered %d %r", case.name, outcome.code, outcome.payload)
        if not case.admitted:
            self._admission.check_refusal(case, outcome)
            return
        journal.count(f"answered {outcome.code}")
        if case.expected is not None:
            right = outcome == case.expected
            journal.require(right, Contract.RIGHT_ANSWER, "%s: %s instead of %s", case, outcome, case.expected)
        elif outcome.failure is None:
            raise self._out_of_nowhere(case, Contract.RIGHT_ANSWER)
        else:
            self._check_failure(case, outcome.failure)

    def settle(self, dues: Dues) -> None:
        """Check that every call that can be answered has been."""
        for case in self._service.open.values():
            if case.expected is not None or case.left or not case.admitted:
                raise self._journal.fail(Contract.ONE_ANSWER, f"{case} should have its answer: {case.expected!r}")
            dues.require_by(case.latest, Contract.ONE_ANSWER, "%s is beyond its deadline", case)

    def _check_failure(self, case: Case, failure: Failure) -> None:
        """Check a failure that no worker has reported: the service's own answer."""
        require, now = self._journal.require, self._journal.now
        if failure in (TIMED_OUT, STALLED):
            self._check_timeout(case, failure)
        elif failure == self._stuck_failure(case):
            self._journal.count("answered 408 by the service")
            require(self._is_stuck(case), Contract.TIME, "%s: 408 of a stage that is not stuck", case)
        elif failure.text.startswith(self._dropped_by(case)):
            self._check_drop(case, failure)
        elif failure.text == gave_way(1).text:
            self._check_gave_way(case, failure)
        elif failure == CLOSING:
            stopping = self._service.stopping
            due = stopping is not None and now >= sum(stopping) - TOLERANCE
            require(due, Contract.SHUTDOWN, "%s: 503 before the grace was over", case)
        elif failure == STAGE_DOWN:
            stage = self._service.stages[case.stage]
            require(stage.down or stage.down_at == now, Contract.RESPAWN, "%s: 503 from a stage that is up", case)
        elif failure == CLIENT_LEFT:
            self._journal.count("calls cancelled")
            require(case.left, Contract.CANCELLATION, "%s: its client has not left", case)
        else:
            raise self._out_of_nowhere(case, Contract.CRASH if failure == WORKER_DIED else Contract.RIGHT_ANSWER)

    @staticmethod
    def _stuck_failure(case: Case) -> Failure | None:
        """Return the failure of a task whose worker makes no progress, which depends on what that was told."""
        return None if case.life is None else describe(too_slow(case.life.spec.timeout, UNSEEN))

    def _check_gave_way(self, case: Case, failure: Failure) -> None:
        """Check that a task has given its place to one that was admitted and has more right to it."""
        require = self._journal.require
        self._journal.count("refused 429")
        self._journal.count("gave way")
        now = self._journal.now
        has = self._is_on_a_worker(case)
        require(not has, Contract.BOUNDED, "%s gave way, and a worker has it", case)
        priority, tenant = case.arrival.priority, case.arrival.tenant
        heirs = [
            other
            for other in self._service.by_id.values()
            if other.admitted
            and abs(other.arrived_at - now) <= TOLERANCE
            and (other.arrival.priority > priority or other.arrival.tenant != tenant)
            and other.arrival.priority >= priority
        ]
        require(bool(heirs), Contract.BOUNDED, "%s gave way to nobody", case)
        after = failure.retry_after
        require(after is not None and after >= 1, Contract.BOUNDED, "%s: Retry-After %s", case, after)

    def _check_timeout(self, case: Case, failure: Failure) -> None:
        require = self._journal.require
        self._journal.count("answered 408 by the service")
        late = self._journal.now >= case.soonest - TOLERANCE
        require(late or self._is_stuck(case), Contract.TIME, "%s: 408 before its time", case)
        stalled = case.streams and not self._streams.is_free(case)
        require(failure == TIMED_OUT or stalled, Contract.TIME, "%s: called a stalled client", case)

    def _is_stuck(self, case: Case) -> bool:
        """Whether the worker that has begun a task makes no progress, or may be taken for one that makes none."""
        life = case.life
        return life is not None and life.fault in (STUCK, STUCK_OR_DRAINING) and case.unit.id in life.begun

    @staticmethod
    def _is_on_a_worker(case: Case) -> bool:
        """Whether a worker has a request; not where others share its work, who may have been sent without it."""
        shared = case.flight is not None and len(case.flight.callers) > 1
        return not shared and case.life is not None and case.unit.id in case.life.unheard

    def _check_drop(self, case: Case, failure: Failure) -> None:
        """Check that a task which cannot be done in time was dropped from a queue, not from a worker."""
        require = self._journal.require
        self._journal.count("answered 408 by the service")
        self._journal.count("dropped from the queue")
        shedding = self._service.world.limits.load_shedding and failure.code == TIMED_OUT.code
        require(shedding, Contract.TIME, "%s: dropped: %s", case, failure)
        has = self._is_on_a_worker(case)
        require(not has, Contract.TIME, "%s: dropped, and a worker has it", case)

    def _dropped_by(self, case: Case) -> str:
        """Return how the text begins with which the stage that a request is at drops it."""
        return NOT_BEGUN.partition(",")[0].format(self._service.stages[case.stage].plan.name)

    def _out_of_nowhere(self, case: Case, contract: Contract) -> Exception:
        return self._journal.fail(contract, f"{case}: {case.outcome} out of nowhere, after {case.deaths} deaths")
