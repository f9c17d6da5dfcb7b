"""A worker that breaks is given up, with what it had, and tasks are run again or answered 500 (contracts 5 and 7)."""

from __future__ import annotations

from collections.abc import Callable

from mosec_asgi.errors import WORKER_DIED
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.contracts.respawn import Respawn
from mosec_asgi.testing.simulation.contracts.time_limits import STUCK, TimeLimits
from mosec_asgi.testing.simulation.model import Case, Life, Phase, ServiceModel


class Crash(Checker):
    """Checks how workers are given up, and takes back what they had."""

    def __init__(self, service: ServiceModel, journal: Journal, respawn: Respawn, time_limits: TimeLimits) -> None:
        super().__init__(service, journal)
        self._respawn = respawn
        self._time_limits = time_limits

    def let_go(self, life: Life, *, unread: bool) -> None:
        """The service closes a worker's link: it gives it up."""
        if life.phase is Phase.LOST:
            return
        journal, now = self._journal, self._journal.now
        read = not unread or life.fault != "died"
        journal.require(read, Contract.CRASH, "the last words of %s were not read", life)
        journal.note("%s: is given up: %s", life, life.fault or "by the service's own choice")
        if not life.fault:
            life.fault = self._time_limits.exceeded(life)
            journal.count(f"workers {life.fault}")
        life.stage.note_work(now)
        if life.phase is Phase.READY:
            # One that drains is given no tasks: since when there is no worker does not depend on it.
            life.stage.lost_at = now
        life.phase = Phase.LOST
        life.lost_at = now
        held, life.unheard = life.unheard, {}
        life.units.clear()
        for case in held.values():
            self._take_back(life, case)
        life.stage.note_work(now)

    def _take_back(self, life: Life, case: Case) -> None:
        """Note what becomes of a task that a worker had when it was given up."""
        begun = case.id in life.begun
        if begun:
            case.deaths += 1
        if case.done:
            return
        answered = not (begun and life.fault == STUCK)
        self._journal.require(answered, Contract.TIME, "%s: on a stuck worker, no 408", case)
        if case.events or case.deaths >= life.stage.plan.max_attempts:
            case.fails(WORKER_DIED)
        else:
            case.alone = case.deaths > 0
            case.belongs_to(None)
            life.stage.come_back(case)

    def link_ends(self, life: Life, reason: str, take: Callable[[str], None]) -> None:
        """A worker's link has ended, or what it says has no meaning, which the service hears by `take`."""
        self._journal.note("%s: its link has ended: %s", life, reason or "in good order")
        stops = life.phase is Phase.STOPPING
        life.fault = life.fault or "lost its link"
        take(reason)
        given_up = stops or life.phase is Phase.LOST
        self._journal.require(given_up, Contract.CRASH, "%s lost its link and is kept", life)
        if reason and not stops:
            self._journal.require(life.killed, Contract.RESPAWN, "%s has no meaning any more and lives", life)

    def exits(self, life: Life, take: Callable[[], None]) -> None:
        """A worker has ended, which the service hears by `take`."""
        self._journal.note("%s: has ended", life)
        if life.phase is not Phase.LOST:
            self._journal.count("workers died by themselves")
        life.fault = life.fault or "died"
        take()
        self._journal.require(life.phase is Phase.LOST, Contract.CRASH, "%s has died and is kept", life)
        self._respawn.ended(life)
