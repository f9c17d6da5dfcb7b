"""A request of several calls: which of them the engine has, and what becomes of the request.

A request may ask for hundreds of items. Were they all in the engine at once, everybody else's calls would wait behind
them, as stages are first come, first served. So requests of several calls take **turns** at a route: together they have
as many calls in the engine as the route's workers run at one time, the next one from each request in its turn, and a
request always has at least one there. What others send meanwhile stands behind those alone, and shares their batches.
It bounds as well what all these requests take of the service's `capacity`.

The first call that fails decides: it is the request's answer, the calls that wait are never made, and those that run
are cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import CANCELLED, Failure
from mosec_asgi.messages import OK, Call, Chunk, Outcome, drop_all


class Asker(Protocol):
    """Whose calls they are: an `Exchange`."""

    def answered(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of all calls, in the order of the calls; or that of the first which has failed."""

    def streamed(self, chunk: Chunk) -> None:
        """Take a piece of one call's stream."""

    def abandoned(self) -> None:
        """Hear that nobody waits any more."""

    def fault(self, error: BaseException) -> Failure:
        """Return what the client is told of an exception, which is logged where that is to be done."""


class CallsInTurn(Protocol):
    """Calls that are made one by one, when their turn comes.

    Attributes:
        turns: those of their route.
    """

    turns: Turns

    def __len__(self) -> int:
        """Return how many there are to make."""

    def __getitem__(self, place: int) -> Call:
        """Make the call at a place; asked once for each. Raises what is wrong with it."""


class Turns:
    """The turns of all requests of several calls to one route."""

    def __init__(self, limit: int) -> None:
        """Begin with no request.

        Args:
            limit: calls that they have in the engine together, but for the one that each may always have.
        """
        self._limit = limit
        self._taken = 0
        self._waiting: deque[Several] = deque()
        # Those that have no call in the engine.
        self._idle: list[Several] = []
        self._scheduled = False

    def resize(self, limit: int) -> None:
        """Let them have so many calls in the engine together from here on."""
        self._limit = limit
        self.pass_on()

    def join(self, request: Several) -> None:
        """Give a request turns until it says that it wants none."""
        self._waiting.append(request)
        self.pass_on()

    def took(self) -> None:
        """Note that a call has gone to the engine."""
        self._taken += 1

    def gave_back(self, idle: Several | None) -> None:
        """Note that a call is settled; `idle` is its request, where that has no other in the engine and wants one.

        The next calls are made in the next turn of the event loop: this is said in the middle of the engine's work.
        """
        self._taken -= 1
        if idle is not None:
            self._idle.append(idle)
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.pass_on)

    def pass_on(self) -> None:
        """Make the calls for which there is room."""
        self._scheduled = False
        idle, self._idle = self._idle, []
        for request in idle:
            request.submit_next()
        while self._waiting and self._taken < self._limit:
            request = self._waiting.popleft()
            if request.wants_more:
                request.submit_next()
                self._waiting.append(request)
        while self._waiting and not self._waiting[0].wants_more:
            self._waiting.popleft()


class Several:
    """The calls of one request, and their caller."""

    def __init__(self, calls: Sequence[Call] | CallsInTurn, engine: Engine, asker: Asker, trace: str = "") -> None:
        """Prepare; `begin` makes the first calls.

        Args:
            calls: at least two. A sequence that has them already is not one of those that take turns.
            engine: runs them.
            asker: hears what becomes of them.
            trace: of the request; see `Call`.
        """
        self._calls = calls
        self._turns: Turns = getattr(calls, "turns", None) or Turns(len(calls))
        self._engine = engine
        self._asker = asker
        self._trace = trace
        self._outcomes: list[Outcome | None] = [None] * len(calls)
        # The calls in the engine, and their places.
        self._open: dict[int, int] = {}
        self._made = 0
        self._left = len(calls)
        self._over = False

    def begin(self) -> None:
        """Make the first call, and the next ones in their turns."""
        self._submit()
        if self.wants_more:
            self._turns.join(self)

    @property
    def wants_more(self) -> bool:
        """Whether there are calls to make."""
        return not self._over and self._made < len(self._outcomes)

    def submit_next(self) -> None:
        """Make the next call, if there is one to make; a call that cannot be made has failed."""
        if not self.wants_more:
            return
        try:
            self._submit()
        except BaseException as error:
            failed = Outcome.of_failure(-1, self._asker.fault(error))
            self._end()
            self._asker.answered((failed,))

    def _submit(self) -> None:
        place = self._made
        self._made += 1
        call = self._calls[place]
        if self._trace:
            call = call._replace(trace=self._trace)
        self._engine.submit(call, self)
        self._open[call.id] = place
        self._turns.took()

    # -- as the caller of its calls ----------------------------------------------------------------------------------

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of a call; see `batching.engine.Caller`."""
        place = self._open.pop(outcome.call_id)
        self._turns.gave_back(self if not self._open and self.wants_more and outcome.code == OK else None)
        if self._over:
            drop_all((outcome.payload,))
        elif outcome.code == CANCELLED:
            self._end()
            self._asker.abandoned()
        elif outcome.code != OK:
            self._end()
            self._asker.answered((outcome,))
        else:
            self._outcomes[place] = outcome
            self._left -= 1
            if not self._left:
                self._over = True
                self._asker.answered([each for each in self._outcomes if each is not None])

    def streamed(self, chunk: Chunk) -> None:
        """Pass a piece of a stream on."""
        if not self._over:
            self._asker.streamed(chunk)

    def leave(self) -> None:
        """Drop all calls: nobody waits for an answer any more."""
        if not self._over:
            self._drop()
            self._cancel()
            self._asker.abandoned()

    def _end(self) -> None:
        """Make no more calls, and cancel those that run: later, as this may be in the middle of the engine's work."""
        self._drop()
        if self._open:
            asyncio.get_running_loop().call_soon(self._cancel)

    def _drop(self) -> None:
        self._over = True
        drop_all([each.payload for each in self._outcomes if each is not None])
        self._outcomes = [None] * len(self._outcomes)

    def _cancel(self) -> None:
        for call_id in list(self._open):
            self._engine.cancel(call_id)
