"""The events of a stream reach its client whole and in order, within the buffer (contracts 2 and 3)."""

from __future__ import annotations

from mosec_asgi.messages import Chunks, Credits
from mosec_asgi.testing.simulation.contracts.checker import Checker
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.contracts.dues import Dues
from mosec_asgi.testing.simulation.model import Case, Life, Phase

OVERFLOW = "sent more of a stream than there was room for"
# The service may take it for an overflow, depending on what it had told the worker by then.
DOUBTFUL = "may have " + OVERFLOW


class Streams(Checker):
    """Checks what passes of streams, and counts what clients have read and workers were told of it."""

    # -- from a worker to its client ---------------------------------------------------------------------------------

    def heard(self, life: Life, message: Chunks) -> list[Case]:
        """A worker sends events; return the requests whose clients are to get them."""
        self._journal.note("%s: sends events of %s", life, message.ids)
        limit = self._service.world.limits.stream_buffer
        affected = []
        coming: dict[int, int] = {}
        for task_id, chunk in zip(message.ids, message.payloads, strict=True):
            case = life.unheard[task_id]
            case.alone = False
            if case.done:
                continue
            affected.append(case)
            unread = case.unread + coming.get(task_id, 0)
            unreported = case.unread + case.read - case.reported + coming.get(task_id, 0)
            if unread >= limit:
                life.fault = OVERFLOW
                break
            # What it was not yet told to be read may count against it or not.
            must = unreported < limit
            if not must:
                life.fault = DOUBTFUL
            case.events += 1
            coming[task_id] = coming.get(task_id, 0) + len(chunk)
            case.chunks.append((chunk, must))
        return affected

    def passed_on(self, cases: list[Case], *, lost: bool) -> None:
        """The service has passed events on to these clients; of a worker that it gives up it need not."""
        for case in cases:
            owed = [chunk for chunk, must in case.chunks if must]
            case.chunks.clear()
            self._journal.require(not owed or lost, Contract.RIGHT_ANSWER, "%s: events were not passed on", case)

    def chunk(self, case: Case, call_id: int, chunk: bytes) -> None:
        """A piece of a stream reaches its client."""
        require, now = self._journal.require, self._journal.now
        require(call_id == case.id, Contract.RIGHT_ANSWER, "%s: got an event of call %d", case, call_id)
        require(case.submitted, Contract.ONE_ANSWER, "%s: an event before it was submitted", case)
        require(not case.done, Contract.ONE_ANSWER, "%s: an event after the answer", case.name)
        right = bool(case.chunks) and case.chunks.popleft()[0] == chunk
        require(right, Contract.RIGHT_ANSWER, "%s: got the event %r", case.name, chunk)
        limit = self._service.world.limits.stream_buffer
        require(case.unread < limit, Contract.BOUNDED, "%s: an event beyond %d bytes", case.name, limit)
        case.unread += len(chunk)
        self._allow(case, now)
        self._journal.note("%s: event of %d bytes, %d unread", case.name, len(chunk), case.unread)

    # -- from a client to its worker ---------------------------------------------------------------------------------

    def reads(self, case: Case, size: int) -> None:
        """A client is about to say that it has read so much."""
        self._journal.note("%s: reads %d bytes", case.name, size)
        was_full, was_free = self._is_full(case), self.is_free(case)
        case.unread -= size
        case.read += size
        if case.done or was_free:
            return
        latest, soonest = case.latest, case.soonest
        self._allow(case, self._journal.now)
        if not was_full:
            # Perhaps the service did not take it for full, and then nothing has changed.
            case.latest, case.soonest = max(latest, case.latest), min(soonest, case.soonest)

    def reported(self, life: Life, message: Credits) -> None:
        """A worker is told what clients have read."""
        self._journal.note("%s: is told of what was read: %s", life, message)
        for task_id, size in zip(message.ids, message.sizes, strict=True):
            case = self._service.by_id[task_id]
            case.reported += size
            right = case.reported <= case.read
            self._journal.require(right, Contract.BOUNDED, "%s: %d reported, %d read", case, case.reported, case.read)

    def settle(self, dues: Dues) -> None:
        """Check that workers know what their clients have read, but for a quarter of the buffer."""
        if dues.idle:
            return
        limit = self._service.world.limits.stream_buffer
        for life in self._service.lives(Phase.READY, Phase.DRAINING):
            for case in life.unheard.values():
                if case.streams and not case.done and (case.read - case.reported) * 4 >= limit:
                    text = f"{life} was not told what the client of {case.name} has read"
                    raise self._journal.fail(Contract.PROGRESS, text)

    # -- how much is unread ------------------------------------------------------------------------------------------

    def is_free(self, case: Case) -> bool:
        """Whether so little is unread that its worker need not wait, though up to a quarter was not yet reported."""
        return case.unread * 4 < self._service.world.limits.stream_buffer * 3

    def _is_full(self, case: Case) -> bool:
        """Whether so much is unread that its worker must wait."""
        return case.unread >= self._service.world.limits.stream_buffer

    def _allow(self, case: Case, now: float) -> None:
        """Note until when the next event must come, or the client must read."""
        limits = self._service.world.limits
        spans = []
        if not self._is_full(case):
            spans.append(limits.event_timeout)
        if not self.is_free(case):
            spans.append(limits.stall_timeout)
        case.soonest, case.latest = now + min(spans), now + max(spans)
