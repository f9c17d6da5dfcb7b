"""The two sides between which the web stands, both moved by the test: an `Engine`, and a client of an ASGI server.

`ManualLoop` is the time in which they move: it stands still until the test moves it on.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from common import pending_timers, settled_loop
from starlette.types import ASGIApp, Message

from mosec_asgi.batching.engine import Caller, Statistics
from mosec_asgi.errors import CLIENT_LEFT, Failure
from mosec_asgi.messages import OK, Call, Chunk, Credit, HeldPayload, Outcome


@dataclass
class FakeTask:
    """An admitted call, and the mind of the worker that has it.

    Attributes:
        taken: the bytes that its client has taken, report by report.
    """

    call: Call
    caller: Caller | None
    outcome: Outcome | None = None
    taken: list[int] = field(default_factory=list)

    @property
    def id(self) -> int:
        return self.call.id

    @property
    def body(self) -> bytes:
        return self.call.payload

    @property
    def done(self) -> bool:
        """Whether it has its outcome."""
        return self.outcome is not None

    def chunk(self, *chunks: bytes) -> None:
        """Send chunks."""
        assert self.caller is not None, "no chunk comes after the outcome"
        for chunk in chunks:
            self.caller.streamed(Chunk(self.id, chunk))

    def answer(self, payload: bytes = b"") -> None:
        """Answer it, or end its stream."""
        self.end(payload)

    def fail(self, code: int, text: str, retry_after: int | None = None) -> None:
        self.end(Failure(code, text, retry_after))

    def end(self, outcome: bytes | HeldPayload | Failure) -> None:
        assert self.caller is not None, "a call ends once"
        # As an engine does, it keeps nothing of a call that has ended.
        caller, self.caller = self.caller, None
        failed = isinstance(outcome, Failure)
        self.outcome = Outcome.of_failure(self.id, outcome) if failed else Outcome(self.id, OK, outcome)
        caller.settled(self.outcome)


class FakeEngine:
    """An `Engine` that does nothing by itself.

    Attributes:
        tasks: all that were admitted.
        refusal: what the next calls are told, where there is one.
        cancelled: the numbers of the calls that were cancelled before they had their outcome.
    """

    def __init__(self) -> None:
        self.tasks: list[FakeTask] = []
        self.refusal: Failure | None = None
        self.cancelled: list[int] = []
        self._numbers = itertools.count(1)

    def new_id(self) -> int:
        return next(self._numbers)

    def submit(self, call: Call, caller: Caller) -> None:
        if self.refusal is not None:
            outcome = Outcome.of_failure(call.id, self.refusal)
            asyncio.get_running_loop().call_soon(caller.settled, outcome)
        else:
            self.tasks.append(FakeTask(call, caller))

    def cancel(self, call_id: int) -> None:
        for task in self.tasks:
            if task.id == call_id and not task.done:
                self.cancelled.append(call_id)
                task.end(CLIENT_LEFT)

    def credit(self, credit: Credit) -> None:
        (task,) = (task for task in self.tasks if task.id == credit.call_id)
        task.taken.append(credit.size)

    def statistics(self) -> Statistics:
        return Statistics(sum(not task.done for task in self.tasks), False, ())

    @property
    def task(self) -> FakeTask:
        """The only call."""
        (task,) = self.tasks
        return task


class FakeClient:
    """One request, with its body complete, and the messages with which it was answered.

    Attributes:
        sent: the messages that have reached the client.
        passed: the messages whose sending has come to an end; those to a client that has left go nowhere.
        offered: the number of messages whose sending has begun.
        call: the app's task.
        error: raised by the next sends, where there is one.
    """

    def __init__(
        self, app: ASGIApp, body: bytes = b"1", headers: Iterable[tuple[bytes, bytes]] = (), path: str = "/"
    ) -> None:
        self.sent: list[Message] = []
        self.passed: list[Message] = []
        self.offered = 0
        self.error: OSError | None = None
        self._reads = asyncio.Event()
        self._reads.set()
        self._gone = asyncio.Event()
        self._body: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": list(headers)}
        self.call = asyncio.ensure_future(app(scope, self._receive, self._send))

    def leave(self) -> None:
        """Close the connection; the app hears of it where it listens, and sends in vain from then on."""
        self._gone.set()

    def stop_reading(self) -> None:
        """Keep what is sent from here on waiting."""
        self._reads.clear()

    def read_on(self) -> None:
        self._reads.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def pieces(self) -> list[bytes]:
        """The bodies of the messages, one by one."""
        return [message["body"] for message in self.sent[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def complete(self) -> bool:
        """Whether the response has come to its end."""
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    async def _receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.offered += 1
        await self._reads.wait()
        if self.error is not None:
            raise self.error
        assert message["type"] == ("http.response.body" if self.passed else "http.response.start")
        assert len(self.passed) < 2 or self.passed[-1]["more_body"], "nothing comes after the end"
        self.passed.append(message)
        if not self._gone.is_set():
            self.sent.append(message)


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock the test moves. Nothing that runs on it may wait for time to pass by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        """Let time pass, from one timer to the next."""
        end = self.now + seconds
        while self.now < end:
            self.now = min([end, *(timer.when() for timer in pending_timers(self) if timer.when() > self.now)])
            await settled_loop()


def in_manual_time(main: Callable[[ManualLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a test on a `ManualLoop`."""
    loop = ManualLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        # Of a test that has failed.
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(settled_loop())
        loop.close()
