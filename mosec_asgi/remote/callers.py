"""The engine's side: web processes that connect, each the caller of its own calls.

A web process numbers its calls itself. Here they get numbers of the engine's: those of connection 3 begin at 3 · 2^40.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import CANCELLED, INTERNAL_ERROR
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.ipc.shm import SharedMemory
from mosec_asgi.lazy_timer import later
from mosec_asgi.messages import Chunk, Credit, Outcome
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.ration import Ration
from mosec_asgi.remote import counts, frames, handshake
from mosec_asgi.remote.frames import CALL_FIELDS, MOST_CALL_ID
from mosec_asgi.remote.handshake import HandshakeError, Hello, RouteShape, Welcome
from mosec_asgi.remote.memory import CallerMemory
from mosec_asgi.remote.outbox import Outbox
from mosec_asgi.within import within

# Seconds that a web process may take to tell what it has counted; then its last word counts, and until it has answered
# it is not waited for again.
COUNT_SECONDS = 1.0
# Seconds in which a connection must begin: a web process may have to be loaded first.
HELLO_SECONDS = 60.0
# Seconds in which the last answers are still written when the engine has stopped, and between two looks at them.
LAST_SECONDS, POLL_SECONDS = 2.0, 0.01
# Reasons to refuse a web process of which a line is logged, and letters of one.
MOST_REASONS, MOST_LETTERS = 100, 4000
# Questions of one web process that are answered at a time.
MOST_QUESTIONS = 64

logger = log.internal_logger(__name__)


class Answers(Protocol):
    """What web processes ask beside calls: "standing", "metrics" or "dashboard"; `text` says more of what is wanted."""

    def __call__(self, kind: str, text: str) -> Awaitable[bytes]:
        """Return the answer; raises `LookupError` where there is none."""


class Callers:
    """The web processes of one engine."""

    def __init__(
        self,
        engine: Engine,
        routes: Sequence[RouteShape],
        apart: Sequence[bool],
        metrics: ServiceMetrics,
        memory: SharedMemory | None,
        answer: Answers,
        timeout: float = math.inf,
    ) -> None:
        """Begin with none.

        Args:
            engine: runs their calls.
            routes: that it serves.
            apart: for each of them, whether its first workers can read shared memory.
            metrics: to which is added what web processes have counted.
            memory: that is shared with workers, if any is.
            answer: answers their other questions.
            timeout: of the service, in seconds.
        """
        self.engine = engine
        self.routes = routes
        self.metrics = metrics
        self.answer = answer
        self._apart = tuple(apart)
        self._timeout = timeout
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._numbers = 0
        self._connected: set[WebProcess] = set()
        self._greeting: set[asyncio.Task[None]] = set()
        # Those that were refused, by the reason: of each a line is logged once.
        self._refused: set[str] = set()
        self.ration = Ration(logger, later)

    def __len__(self) -> int:
        return len(self._connected)

    def add(self, connection: socket.socket) -> None:
        """Take a connection, of somebody who may be trusted."""
        task = self._loop.create_task(self._greet(connection))
        self._greeting.add(task)

        def greeted(task: asyncio.Task[None]) -> None:
            self._greeting.discard(task)
            # Perhaps before it has begun.
            if task.cancelled():
                connection.close()

        task.add_done_callback(greeted)

    async def gather_counts(self) -> None:
        """Have all web processes tell what they have counted, and wait for those that answer."""
        asked = {each.ask_counts(): each for each in self._connected if not each.is_silent}
        if asked:
            _, late = await asyncio.wait(asked, timeout=COUNT_SECONDS)
            for question in late:
                asked[question].fall_silent()

    def standing(self) -> tuple[int, int]:
        """Return how many web processes are connected, and how many of them do not answer."""
        return len(self._connected), sum(each.is_silent for each in self._connected)

    async def finish(self) -> None:
        """End all connections, once the last answers are on their way."""
        end = self._loop.time() + LAST_SECONDS
        # Nothing tells when the last of them has gone out.
        while any(not each.is_clear for each in self._connected) and self._loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        self.close()

    def close(self) -> None:
        """End all connections, and cancel what they have asked for."""
        for task in self._greeting:
            task.cancel()
        for each in list(self._connected):
            each.finish()
        self.ration.say_all()

    def discard(self, process: WebProcess) -> None:
        """Forget a web process that is gone."""
        self._connected.discard(process)

    async def _greet(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            hello = await within(HELLO_SECONDS, self._hello(connection))
            if why := hello.differs_from(self.routes)[:MOST_LETTERS]:
                self._refuse(connection, why)
                return
            memory = None if self._memory is None else CallerMemory(self._memory)
            try:
                self._welcome(connection, memory)
            except BaseException:
                if memory is not None:
                    memory.close()
                raise
        except (OSError, HandshakeError, asyncio.TimeoutError) as error:
            logger.debug("a web process was not welcomed: %s", error or "it says nothing")
            connection.close()
            return
        except BaseException:
            connection.close()
            raise
        self._numbers += 1
        process = WebProcess(self, connection, self._numbers, hello.pid, memory, self._loop)
        self._connected.add(process)
        logger.info("the web process %d is connected", hello.pid)

    async def _hello(self, connection: socket.socket) -> Hello:
        said, descriptors = await handshake.received(self._loop, connection)
        for descriptor in descriptors:
            os.close(descriptor)
        return Hello.read(said)

    def _welcome(self, connection: socket.socket, memory: CallerMemory | None) -> None:
        message = Welcome(pid=os.getpid(), apart=self._apart, timeout=self._timeout)
        if memory is None:
            connection.send(handshake.encoded(message))
            return
        share = memory.share
        message = replace(message, memory=share.total, region=share.region)
        socket.send_fds(connection, [handshake.encoded(message)], [share.descriptor])

    def _refuse(self, connection: socket.socket, why: str) -> None:
        if why not in self._refused and len(self._refused) < MOST_REASONS:
            self._refused.add(why)
            logger.error("a web process is refused: %s", why)
        connection.send(handshake.encoded(Welcome(refused=why, pid=os.getpid())))
        connection.close()


class WebProcess:
    """A web process, as the engine has it: the caller of its calls; see `batching.engine.Caller`."""

    takes_held = True

    def __init__(
        self,
        callers: Callers,
        connection: socket.socket,
        number: int,
        pid: int,
        memory: CallerMemory | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Begin to listen to a process that was welcomed.

        Args:
            callers: to which it belongs.
            connection: to it.
            number: of the connection.
            pid: of the process.
            memory: the account of what it shares with the workers.
            loop: to listen on.
        """
        self._callers = callers
        self._engine = callers.engine
        self._routes = len(callers.routes)
        self._base = number * MOST_CALL_ID
        self._pid = pid
        self._memory = memory
        self._loop = loop
        self._open: set[int] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._counts: asyncio.Future[None] | None = None
        # It was asked what it has counted, and has not answered in time; and how often that was so.
        self._silences = 0
        self.is_silent = False
        self._channel = Channel(connection, self._on_frame, self._gone, decoder=frames.Decoder())
        self._channel.open(loop)
        self._outbox = Outbox(self._channel, loop, self._cannot_tell, self._freed)
        # Each answer and each piece of a stream is said, without a call in between.
        self._say = self._outbox.say
        if memory is not None:
            memory.on_full(self._outbox.flush_soon)

    def __repr__(self) -> str:
        return f"<WebProcess {self._pid}, {len(self._open)} calls>"

    # -- as the caller of its calls ----------------------------------------------------------------------------------

    def settled(self, outcome: Outcome) -> None:
        """Tell what has become of a call."""
        call_id = outcome.call_id - self._base
        self._open.discard(call_id)
        payload = outcome.payload
        if type(payload) is not bytes:
            outcome, payload = self._plain(call_id, outcome)
        if outcome.code != CANCELLED:
            self._say(frames.plain_outcome(outcome, call_id, payload))

    def streamed(self, chunk: Chunk) -> None:
        """Pass a piece of a stream on."""
        self._say((chunk.call_id - self._base, chunk.payload, frames.plain_times(chunk.times)))

    def _plain(self, call_id: int, outcome: Outcome) -> tuple[Outcome, Any]:
        """Return what the web process is told of a result that a link holds: the outcome, and its payload there."""
        payload = outcome.payload
        given = None if self._memory is None else self._memory.give(call_id, payload)
        if given is not None:
            return outcome, given
        assert not isinstance(payload, bytes)
        try:
            return outcome, payload.copy()
        except KeyboardInterrupt:
            raise
        # It may have to be unpickled here, which runs the code of its classes; or only workers can read it.
        except BaseException as error:
            text = "answered 500: a result cannot be copied for the web process %d"
            self._callers.ration.fault(logging.ERROR, text, self._pid, error=error)
            return Outcome.of_failure(outcome.call_id, INTERNAL_ERROR), INTERNAL_ERROR.text.encode()
        finally:
            payload.drop()

    # -- to the web process ------------------------------------------------------------------------------------------

    def _freed(self) -> list[int] | None:
        """Return the blocks that it may write to again, which it is told with all else."""
        return None if self._memory is None else self._memory.freed()

    def _cannot_tell(self, entry: Any, error: ValueError) -> None:
        """Say, in the place of a result that cannot be said, that the call has failed."""
        text = "the web process %d cannot be told a result: %s"
        self._callers.ration.fault(logging.ERROR, text, self._pid, error, error=error)
        if type(entry) is tuple and len(entry) in (2, frames.OUTCOME_FIELDS):
            call_id = entry[0]
            if type(entry[1 if len(entry) == 2 else 2]) is tuple:
                # Nobody reads it.
                self._taken(call_id)
            outcome = Outcome.of_failure(call_id, INTERNAL_ERROR)
            self._say(frames.plain_outcome(outcome, call_id, INTERNAL_ERROR.text.encode()))

    @property
    def is_clear(self) -> bool:
        """Whether all that was said to it is on its way."""
        return self._outbox.is_clear

    def ask_counts(self) -> asyncio.Future[None]:
        """Have it tell what it has counted; return what is done once it has, or is gone."""
        if self._counts is None:
            self._counts = self._loop.create_future()
            self._say(None)
        return self._counts

    def fall_silent(self) -> None:
        """Note that it does not answer: nobody waits for it until it has answered what it was asked."""
        if self._counts is None or self.is_silent:
            return
        self.is_silent, self._silences = True, self._silences + 1
        # Of one that is slow each time the metric tells: `web_processes_silent`.
        level = logger.warning if self._silences == 1 else logger.debug
        level(
            "the web process %d has not told for %g s what it has counted: it is stopped, or busy; /metrics shows what "
            "it has said before, and does not wait for it until it answers",
            self._pid,
            COUNT_SECONDS,
        )

    def finish(self) -> None:
        """End the connection."""
        self._outbox.flush()
        self._channel.close()
        self._gone("")

    # -- from the web process ----------------------------------------------------------------------------------------

    def _on_frame(self, entries: list[Any]) -> None:
        try:
            for entry in entries:
                if type(entry) is tuple:
                    size = len(entry)
                    if size == CALL_FIELDS:
                        self._submit(entry)
                    elif size == 2:
                        self._engine.credit(Credit(self._base + entry[0], entry[1]))
                    elif size == 1:
                        self._taken(entry[0])
                    else:
                        self._asked(*entry)
                elif type(entry) is int:
                    self._engine.cancel(self._base + entry)
                else:
                    self._counted(entry)
        except (FrameError, TypeError, ValueError) as error:
            logger.exception("the connection to the web process %d is closed: what it says cannot be read", self._pid)
            self._channel.close()
            self._gone(str(error))

    def _submit(self, entry: tuple[Any, ...]) -> None:
        call_id, route, payload = entry[:3]
        if not (0 < call_id < MOST_CALL_ID and 0 <= route < self._routes) or call_id in self._open:
            raise FrameError(f"a call with the number {call_id} for the route {route}")
        if type(payload) is tuple:
            if self._memory is None:
                raise FrameError("a payload lies in shared memory, and there is none")
            payload = self._memory.payload(payload[0])
        call = frames.call_of(entry, self._base + call_id, payload)
        self._open.add(call_id)
        try:
            self._engine.submit(call, self)
        except Exception as error:
            extra = {"request_id": call.request_id}
            self._callers.ration.fault(logging.ERROR, "a call was not submitted", error=error, extra=extra)
            self._open.discard(call_id)
            failed = Outcome.of_failure(call_id, INTERNAL_ERROR)
            self._say(frames.plain_outcome(failed, call_id, INTERNAL_ERROR.text.encode()))

    def _taken(self, call_id: int) -> None:
        if self._memory is None:
            raise FrameError("a result lies in shared memory, and there is none")
        self._memory.taken(call_id)

    def _counted(self, told: list[Any]) -> None:
        counts.add(self._callers.metrics, told)
        if self.is_silent:
            self.is_silent = False
            level = logger.info if self._silences == 1 else logger.debug
            level("the web process %d answers again", self._pid)
        waiting, self._counts = self._counts, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _asked(self, number: int, kind: str, text: str) -> None:
        if len(self._answering) >= MOST_QUESTIONS:
            self._say((number, False, b"", None))
            return
        task = self._loop.create_task(self._answer(number, kind, text))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, kind: str, text: str) -> None:
        try:
            self._say((number, True, await self._callers.answer(kind, text), None))
        except LookupError:
            self._say((number, False, b"", None))
        except Exception as error:
            text = "a question of the web process %d was not answered: %s"
            self._callers.ration.fault(logging.ERROR, text, self._pid, kind, error=error)
            self._say((number, False, b"", None))

    def _gone(self, reason: str) -> None:
        """Drop all that it has asked for: nobody waits for it any more."""
        open_calls, self._open = self._open, set()
        level = logger.info if not open_calls and not reason else logger.warning
        level(
            "the web process %d is gone%s; %d calls are dropped", self._pid, reason and f" ({reason})", len(open_calls)
        )
        for call_id in open_calls:
            self._engine.cancel(self._base + call_id)
        for task in self._answering:
            task.cancel()
        self._outbox.close()
        if self._counts is not None and not self._counts.done():
            self._counts.set_result(None)
        if self._memory is not None:
            memory, self._memory = self._memory, None
            memory.close()
        self._callers.discard(self)
