"""What workers say: wrong messages are not believed, and right ones decide what comes next (contract 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mosec_asgi.errors import CANCELLED, INTERNAL_ERROR, STAGE_DOWN
from mosec_asgi.messages import OK, Chunks, Outcome, Results
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.journal import Journal
from mosec_asgi.testing.simulation.contracts.respawn import Respawn
from mosec_asgi.testing.simulation.contracts.streams import DOUBTFUL, Streams
from mosec_asgi.testing.simulation.messages import Failed, Ready, Said, as_bytes
from mosec_asgi.testing.simulation.model import Case, Life, Phase, ServiceModel


class Replies(Checker):
    """Checks what the service makes of its workers' messages."""

    def __init__(self, service: ServiceModel, journal: Journal, streams: Streams, respawn: Respawn) -> None:
        super().__init__(service, journal)
        self._streams = streams
        self._respawn = respawn

    def hear(self, life: Life, message: Said, take: Callable[[Said], None], held: Sequence[bool] = ()) -> None:
        """A message of a worker reaches the service, which `take`s it; `held` says which results lie in memory."""
        before, life.fault = life.fault, ""
        affected: list[Case] = []
        if life.phase is Phase.STOPPING:
            # Whatever it says: nobody waits for it any more.
            if isinstance(message, Failed):
                life.failed_at = self._journal.now
        else:
            life.fault = _wrong(life, message)
            if not life.fault:
                affected = self._heard(life, message, held)
        wrong = life.fault
        if wrong:
            self._journal.note("%s: %s", life, wrong)
            self._journal.count("faults noticed in messages")
        life.fault = life.fault or before
        take(message)
        lost = life.phase is Phase.LOST
        if not lost:
            self._journal.require(wrong in ("", DOUBTFUL), Contract.RIGHT_ANSWER, "%s %s, and lives", life, wrong)
            life.fault = before
        self._streams.passed_on(affected, lost=lost)

    def _heard(self, life: Life, message: Said, held: Sequence[bool]) -> list[Case]:
        """Take what a worker says into the model; return the requests whose clients are to get events."""
        if isinstance(message, Ready):
            self._respawn.ready(life)
        elif isinstance(message, Failed):
            life.failed_at = self._journal.now
        elif isinstance(message, Results):
            self._heard_results(life, message, held)
        else:
            return self._streams.heard(life, message)
        return []

    def _heard_results(self, life: Life, message: Results, held: Sequence[bool]) -> None:
        self._journal.note("%s: answers %s", life, message.ids)
        now = life.heard_at = self._journal.now
        life.stage.note_work(now)
        life.calls += len(message.ids)
        if life.calls - len(message.ids) < life.stage.plan.recycling.most_calls <= life.calls:
            life.full_since_failure = life.stage.failed_starts
        if message.ids:
            seconds = message.seconds / len(message.ids)
            life.quickest = seconds if life.quickest is None else min(seconds, life.quickest)
        cases = [life.unheard.pop(task_id) for task_id in message.ids]
        for task_id in message.ids:
            del life.units[task_id]
        for unit, code, payload, is_held in zip(cases, message.codes, message.payloads, held, strict=True):
            for place, case in enumerate(life.stage.land(unit)):
                # One of them has what lies in memory, and the others a copy.
                case.held = is_held and not place
                self._answer(case, code, as_bytes(payload), now)
        life.stage.note_work(now)

    def _answer(self, case: Case, code: int, payload: bytes, now: float) -> None:
        """Note where a request goes on its worker's answer."""
        if code == CANCELLED:
            # Not true: the request is not done.
            code, payload = INTERNAL_ERROR.code, INTERNAL_ERROR.text.encode()
        if code != OK or case.is_last:
            case.expected = Outcome(case.id, code, payload)
        else:
            case.position += 1
            case.payload = payload
            case.deaths = 0
            case.alone = False
            case.life = None
            stage = self._service.stages[case.stage]
            stage.arrive(case, now)
            if stage.down:
                case.fails(STAGE_DOWN)


def _wrong(life: Life, message: Said) -> str:
    """Return what is wrong with a message; nothing where nothing is."""
    starting = life.phase is Phase.STARTING
    if isinstance(message, (Ready, Failed)):
        return "" if starting else f"sent {type(message).__name__} while it was ready"
    if starting:
        return f"sent {type(message).__name__}"
    return _wrong_results(life, message) if isinstance(message, Results) else _wrong_events(life, message)


def _wrong_results(life: Life, message: Results) -> str:
    ids = list(message.ids)
    if life.stage.plan.ordered:
        return "" if list(life.unheard)[: len(ids)] == ids else "answered out of turn"
    return "" if len(set(ids)) == len(ids) and life.unheard.keys() >= set(ids) else "answered what it has not"


def _wrong_events(life: Life, message: Chunks) -> str:
    if not life.stage.plan.streams:
        return "sent events, and does not stream"
    return "" if life.unheard.keys() >= set(message.ids) else "sent events of what it does not have"
