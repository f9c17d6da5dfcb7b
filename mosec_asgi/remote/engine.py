"""The engine as a web process has it: another process at the end of a socket, which may come and go."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mosec_asgi import log
from mosec_asgi.batching.engine import TAKES_HELD, Caller, Statistics
from mosec_asgi.errors import CLOSING, ENGINE_AWAY, ENGINE_LOST, INTERNAL_ERROR, TIMED_OUT, Failure
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.lazy_timer import later
from mosec_asgi.messages import Call, Credit, Outcome, Payload, Pieces, drop_all
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.observing.statistics import ServiceReport
from mosec_asgi.ration import Ration
from mosec_asgi.remote import counts, frames
from mosec_asgi.remote.frames import TIMEOUT
from mosec_asgi.remote.memory import LyingPayload, PutPayload, WebMemory
from mosec_asgi.remote.outbox import Outbox
from mosec_asgi.remote.standing import Standing
from mosec_asgi.within import within

# Seconds in which a question is answered. An engine that takes longer does not run at this moment: it is stopped,
# swapped out, or holds Python's lock. Until it answers again, it is given no calls, which would only gather here.
ASK_SECONDS = 10.0
# Seconds between two looks for calls that should have been answered. An engine that runs ends them by itself, to the
# millisecond; where it does not run, clients are told a second or two late.
LOOK_SECONDS = 1.0
# The part of the room for results, or for a stream, that is much.
MUCH = 1 / 4

logger = log.internal_logger(__name__)


class Away(LookupError):
    """There is no engine to ask."""


class RemoteEngine:
    """Runs calls in another process; see `batching.engine.Engine`. Where that is gone, calls are answered 503.

    Attributes:
        takes_pieces: see `batching.engine.TAKES_PIECES`.
        memory: that is shared with the workers, if any is.
    """

    takes_pieces = True

    def __init__(
        self, loop: asyncio.AbstractEventLoop, metrics: ServiceMetrics, *, stream_buffer: int = 256 * 1024
    ) -> None:
        """Begin without an engine.

        Args:
            loop: of the callers.
            metrics: in which this process's answers are counted, for the engine to add up.
            stream_buffer: bytes of a stream that may wait for its client.
        """
        self._stream_buffer = stream_buffer
        # Of the service that the engine runs, in seconds.
        self._timeout = math.inf
        self._loop = loop
        self._metrics = metrics
        # Returns a number for a call. The same are not used again with the next engine.
        self.new_id: Callable[[], int] = itertools.count(1).__next__
        self.memory: WebMemory | None = None
        self._channel: Channel | None = None
        self._outbox: Outbox | None = None
        # For each route, whether its first workers can read shared memory.
        self._apart: Sequence[bool] = ()
        self._on_lost: Callable[[str], object] = _nobody
        self._open: dict[int, Caller] = {}
        # Looks for calls that should have been answered: when the last one was, and where the service's timeout is
        # looked at, when each was, and a number that no call before it has.
        self._looked_at = 0.0
        self._looks: deque[tuple[float, int]] = deque()
        self._look_timer: asyncio.TimerHandle | None = None
        # Calls that have less time than the service gives, and when that ends.
        self._own_times: list[tuple[int, float]] = []
        # Of what is looked at, streams that have begun, which take as long as they like.
        self._begun: set[int] = set()
        self._closing = self._ending = False
        # A question was not answered in time.
        self._silent = False
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)
        self._standing: Standing | None = None
        # Set when the last call is settled, once nobody may make another.
        self._idle: asyncio.Future[None] | None = None
        self._ration = Ration(logger, later)

    def __repr__(self) -> str:
        return f"<RemoteEngine {'connected' if self.is_there else 'away'}, {len(self._open)} calls>"

    @property
    def is_there(self) -> bool:
        """Whether there is an engine."""
        return self._channel is not None

    @property
    def is_silent(self) -> bool:
        """Whether there is an engine that does not answer."""
        return self._silent

    # -- the connection ----------------------------------------------------------------------------------------------

    def connect(
        self,
        sock: socket.socket,
        apart: Sequence[bool],
        memory: WebMemory | None,
        on_lost: Callable[[str], object],
        timeout: float = math.inf,
    ) -> None:
        """Take a connection to an engine that has said welcome.

        Args:
            sock: the connection.
            apart: for each route, whether its first workers can read shared memory.
            memory: that is shared with them.
            on_lost: called with the reason when the connection has ended, once all calls are answered.
            timeout: of the service that it runs, in seconds.
        """
        self._timeout = timeout
        self._apart, self.memory, self._on_lost = apart, memory, on_lost
        self._channel = channel = Channel(sock, self._on_frame, self._lost, decoder=frames.Decoder())
        channel.open(self._loop)
        self._outbox = Outbox(channel, self._loop, self._cannot_tell)
        if self._looks_at_all:
            self._begin_to_look()

    def disconnect(self) -> None:
        """End the connection; what has no outcome yet is answered 503. Idempotent."""
        if self._outbox is not None:
            self._outbox.say(counts.taken(self._metrics))
            self._outbox.flush()
            self._let_go()
        self._ration.say_all()

    def announce_end(self) -> None:
        """Say in the statistics that the end is near; calls are still taken."""
        self._ending = True

    def close(self) -> None:
        """Take no more calls."""
        self._closing = self._ending = True

    async def finish(self, grace: float) -> None:
        """Take no more calls, and let those that run finish within `grace` seconds."""
        self.close()
        if self._open:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=grace)

    def _lost(self, reason: str) -> None:
        on_lost = self._on_lost
        self._let_go()
        on_lost(reason)

    def _let_go(self) -> None:
        channel, self._channel = self._channel, None
        outbox, self._outbox = self._outbox, None
        memory, self.memory = self.memory, None
        self._on_lost = _nobody
        self._standing, self._silent = None, False
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._end_looking()
        if outbox is not None:
            outbox.close()
        if channel is not None:
            channel.close()
        if memory is not None:
            memory.close()
        self._lose_calls(ENGINE_LOST)
        questions, self._questions = self._questions, {}
        for question in questions.values():
            if not question.done():
                question.set_exception(Away())

    def _lose_calls(self, failure: Failure) -> list[int]:
        """Answer all calls 503; return their numbers."""
        callers, self._open = self._open, {}
        for call_id, caller in callers.items():
            self._tell(caller, Outcome.of_failure(call_id, failure))
        return list(callers)

    def _fall_silent(self) -> None:
        """Note that the engine does not answer: nobody waits for it."""
        if self._channel is None or self._silent:
            return
        self._silent, self._standing = True, None
        lost = self._lose_calls(ENGINE_AWAY)
        logger.warning(
            "the engine has not answered for %g s; until it answers, calls get 503, and so do the %d that it was given",
            ASK_SECONDS,
            len(lost),
        )
        # It may hear that when it runs again.
        for call_id in lost:
            self._say(call_id)

    def _look(self) -> None:
        """End the calls that the engine should have answered: it is stopped, or something holds Python's lock there."""
        now = self._loop.time()
        self._begun.intersection_update(self._open)
        if now > self._looked_at + 2 * LOOK_SECONDS:
            # This process has not run itself, and has answers to read.
            self._looks.clear()
        else:
            self._end_overdue(self._past_their_own_time(now - LOOK_SECONDS))
        self._looked_at = now
        if self._looks_at_all:
            self._end_overdue(self._past_the_timeout(now))
        if self._looks_at_all or self._own_times:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)
        else:
            self._end_looking()

    @property
    def _looks_at_all(self) -> bool:
        """Whether the service's timeout is looked at. Where that is longer, the engine is found to be silent before."""
        return self._timeout < ASK_SECONDS

    def _begin_to_look(self) -> None:
        self._looked_at = self._loop.time()
        self._look()

    def _end_looking(self) -> None:
        self._look_timer = None
        self._looks.clear()
        self._own_times.clear()
        self._begun.clear()

    def _note_own_time(self, call_id: int, seconds: float) -> None:
        """Look at the time of a call that has brought its own, where that is the shorter one."""
        if seconds < min(self._timeout, ASK_SECONDS):
            self._own_times.append((call_id, self._loop.time() + seconds))
            if self._look_timer is None:
                self._begin_to_look()

    def _past_their_own_time(self, now: float) -> list[int]:
        """Return the calls whose own time had ended by `now`, and forget them and those that are answered."""
        times = [each for each in self._own_times if each[0] in self._open and each[0] not in self._begun]
        self._own_times = [each for each in times if each[1] > now]
        return [call_id for call_id, end in times if end <= now]

    def _past_the_timeout(self, now: float) -> list[int]:
        """Return the calls that are older than the service's timeout, but for streams that have begun."""
        self._looks.append((now, self.new_id()))
        before = 0
        while self._looks[0][0] <= now - self._timeout - LOOK_SECONDS:
            _, before = self._looks.popleft()
        if not before:
            return []
        return [call_id for call_id in self._open if call_id < before and call_id not in self._begun]

    def _end_overdue(self, overdue: Sequence[int]) -> None:
        """Answer 408 to calls."""
        if overdue:
            logger.warning("the engine has not answered %d calls within their time: 408", len(overdue))
        for call_id in overdue:
            self._say(call_id)
            self._tell(self._open.pop(call_id), Outcome.of_failure(call_id, TIMED_OUT))

    # -- asked by callers --------------------------------------------------------------------------------------------

    def submit(self, call: Call, caller: Caller) -> None:
        """Have a call run; see `Engine.submit`."""
        call_id, payload = call.id, call.payload
        if call_id in self._open:
            raise ValueError(f"a call with the number {call_id} runs already; take numbers from new_id()")
        outbox = self._outbox
        if outbox is None or self._closing or self._silent:
            self._refuse(call, caller, CLOSING if self._closing else ENGINE_AWAY)
            return
        told: bytes | tuple[bytes]
        if isinstance(payload, bytes):
            told = payload
            if len(payload) >= LARGE and self.memory is not None and self._apart[call.route]:
                description = self.memory.put_payload(payload)
                if description is not None:
                    told = (description,)
        elif isinstance(payload, Pieces):
            told = self._put(call.route, payload)
        elif isinstance(payload, PutPayload):
            if payload.memory is not self.memory:
                # It was put where an engine before this one could read it.
                self._refuse(call, caller, ENGINE_LOST)
                return
            told = (payload.description,)
        else:
            told = payload.copy()
            payload.drop()
        self._open[call_id] = caller
        entry = frames.plain_call(call, told)
        outbox.say(entry)
        # From the entry, as it is a plain tuple, which costs least.
        if entry[TIMEOUT] is not None:
            self._note_own_time(call_id, entry[TIMEOUT])

    def _put(self, route: int, pieces: Pieces) -> bytes | tuple[bytes]:
        """Return what the engine is told of a payload that came in pieces."""
        if len(pieces) >= LARGE and self.memory is not None and self._apart[route]:
            description = self.memory.put_pieces(pieces)
            if description is not None:
                return (description,)
        return pieces.read()

    def cancel(self, call_id: int) -> None:
        """Drop a call that nobody waits for; see `Engine.cancel`."""
        caller = self._open.pop(call_id, None)
        if caller is not None:
            self._say(call_id)
            self._tell(caller, frames.cancelled(call_id))

    def credit(self, credit: Credit) -> None:
        """Note what the client has taken of a stream; see `Engine.credit`."""
        if credit.call_id in self._open and self._outbox is not None:
            self._outbox.say_later((credit.call_id, credit.size), credit.size / (MUCH * self._stream_buffer))

    def statistics(self) -> Statistics:
        """Return how things stood when the engine has last said so."""
        if self._standing is None:
            return Statistics(0, self._ending, (), away=True)
        now = self._standing.statistics
        return replace(now, closing=True) if self._ending else now

    @property
    def room(self) -> Mapping[str, tuple[int, int]]:
        """By route, how many calls the workers run at once, and how many are worth having in flight, as last heard."""
        return {} if self._standing is None else self._standing.room

    def report(self) -> ServiceReport:
        """Return the same as a report of the whole service."""
        return ServiceReport() if self._standing is None else self._standing.report

    async def refresh(self) -> Standing:
        """Ask how things stand.

        Raises:
            Away: there is no engine.
        """
        told = Standing.read(await self._asked("standing", ""))
        if self._channel is not None:
            self._standing = told
        return told

    async def ask(self, kind: str, text: str = "") -> bytes:
        """Ask the engine's process something else than to run a call; what there is, see `callers.Answers`.

        Raises:
            Away: there is no engine, or it does not answer.
        """
        if self._silent:
            raise Away
        return await self._asked(kind, text)

    async def _asked(self, kind: str, text: str) -> bytes:
        if self._channel is None:
            raise Away
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._questions[number] = answer
        self._say(counts.taken(self._metrics))
        self._say((number, kind, text))
        try:
            return await within(ASK_SECONDS, answer)
        except asyncio.TimeoutError:
            self._fall_silent()
            raise Away from None
        finally:
            self._questions.pop(number, None)

    def _refuse(self, call: Call, caller: Caller, failure: Failure) -> None:
        drop_all((call.payload,))
        # Later: nobody is answered before he has done asking.
        self._loop.call_soon(self._tell, caller, Outcome.of_failure(call.id, failure))

    def _say(self, entry: Any) -> None:
        if self._outbox is not None:
            self._outbox.say(entry)

    def _cannot_tell(self, entry: Any, error: ValueError) -> None:
        """Fail a call that cannot be said."""
        self._ration.fault(logging.ERROR, "a call cannot be told to the engine: %s", error, error=error)
        if type(entry) is not tuple or len(entry) != frames.CALL_FIELDS:
            return
        call_id, payload = entry[0], entry[2]
        if type(payload) is tuple and self.memory is not None:
            self.memory.hold(payload[0]).drop()
        caller = self._open.pop(call_id, None)
        if caller is not None:
            self._tell(caller, Outcome.of_failure(call_id, INTERNAL_ERROR))

    # -- heard from the engine ---------------------------------------------------------------------------------------

    def _on_frame(self, entries: list[Any]) -> None:
        try:
            for entry in entries:
                if type(entry) is tuple:
                    size = len(entry)
                    if size == 2 or size == frames.OUTCOME_FIELDS:
                        self._on_outcome(entry)
                    elif size == 3:
                        caller = self._open.get(entry[0])
                        if caller is not None:
                            if self._look_timer is not None:
                                self._begun.add(entry[0])
                            self._pass_on(caller, entry)
                    else:
                        self._on_answer(*entry)
                elif entry is None:
                    # Told where there is nothing, too: somebody waits for it.
                    self._say(counts.taken(self._metrics))
                elif self.memory is not None:
                    self.memory.freed(entry)
        except (FrameError, TypeError, ValueError, IndexError) as error:
            logger.exception("the connection to the engine is given up, because what it says cannot be read")
            self._lost(str(error))

    def _on_outcome(self, entry: tuple[Any, ...]) -> None:
        call_id = entry[0]
        caller = self._open.pop(call_id, None)
        payload = entry[1] if len(entry) == 2 else entry[2]
        if type(payload) is tuple:
            payload = self._result(call_id, payload[0], caller)
        if caller is not None:
            self._tell(caller, frames.outcome_of(entry, payload))

    def _result(self, call_id: int, description: bytes, caller: Caller | None) -> Payload:
        """Return a result that lies in shared memory: as it is where its caller reads it there, else a copy."""
        memory = self.memory
        if memory is None:
            raise FrameError("a result lies in shared memory, and there is none")
        if caller is None:
            self._was_read(memory, call_id, 0)
            return b""
        if getattr(caller, TAKES_HELD, False) and (span := memory.span_of_bytes(description)) is not None:
            return LyingPayload(span, memory, call_id, self._was_read)
        payload = memory.read(description)
        self._was_read(memory, call_id, len(payload))
        return payload

    def _was_read(self, memory: WebMemory, call_id: int, size: int) -> None:
        """Have the engine told, in a while, that a result was read, unless it is another engine by now."""
        if memory is self.memory and self._outbox is not None:
            self._outbox.say_later((call_id,), size / (MUCH * memory.size))

    def _on_answer(self, number: int, answered: bool, data: bytes, _: None) -> None:
        if self._silent:
            self._silent = False
            logger.info("the engine answers again")
        question = self._questions.get(number)
        if question is not None and not question.done():
            if answered:
                question.set_result(data)
            else:
                question.set_exception(Away())

    def _tell(self, caller: Caller, outcome: Outcome) -> None:
        try:
            caller.settled(outcome)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A fault of this caller, of whatever kind, must not stop the work for the others.
            self._ration.fault(logging.ERROR, "the outcome of a request was not passed on", error=error)
        if self._idle is not None and not self._open and not self._idle.done():
            self._idle.set_result(None)

    def _pass_on(self, caller: Caller, entry: tuple[Any, ...]) -> None:
        try:
            caller.streamed(frames.chunk_of(entry))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._ration.fault(logging.ERROR, "a piece of a stream was not passed on", error=error)


def _nobody(_: str) -> None:
    """Hear nothing of a connection that was ended here."""
