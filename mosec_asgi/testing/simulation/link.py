"""The simulated link to a worker, from end to end: messages and the time that they are on their way.

What a real link does with bytes ends here with its result. Garbage, a broken pipe and half a frame are one thing to
the pool: the link reports that it is closed, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from mosec_asgi.messages import OK, Cancels, Chunks, Credits, Payload, Progress, Results, Tasks
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.testing.simulation.contracts.contract import Contract
from mosec_asgi.testing.simulation.messages import Asked, Failed, Ready, Said, as_bytes
from mosec_asgi.testing.simulation.model import Life
from mosec_asgi.testing.simulation.surroundings import Surroundings


class LinkedWorker(Protocol):
    """What the link asks of the worker at its other end."""

    ending: str

    def progress(self) -> Progress:
        """Return how far it has come."""

    def memory(self) -> int | None:
        """Return the bytes of memory that it takes."""

    def take(self, message: Asked | None) -> None:
        """Take what was sent; None where it is asked to stop."""

    def die(self, ending: str, delay: float = 0.0) -> None:
        """End, in `delay` seconds."""


class SimulatedLink:
    """One life of a simulated worker, as its pool holds it; see `pool.link.WorkerLink`.

    What the service does with it is told to the oracle, and so is what it reports, before and after.

    Attributes:
        worker: at the other end.
    """

    worker: LinkedWorker

    def __init__(self, life: Life, around: Surroundings, events: WorkerEvents, random: Random) -> None:
        self._life = life
        self._around = around
        self._oracle = around.oracle
        self._journal = around.oracle.journal
        self._events = events
        self._random = random
        self._is_open = True
        self._finished = False
        # Sending has failed, which is about to be reported.
        self._broken = False
        self._gone = False
        # Which of the results that are being read lie in memory.
        self._holds: Sequence[bool] = ()
        # What is on its way; None asks the worker to stop.
        self._for_worker: list[Asked | None] = []
        self._for_server: list[Said] = []
        # Why the worker's side has ended, once it has; empty where in good order.
        self._ended: str | None = None

    @property
    def name(self) -> str:
        """What the logs call it."""
        return f"life {self._life.number}"

    @property
    def pid(self) -> int | None:
        """Its process: none."""
        return None

    # -- the service's end -------------------------------------------------------------------------------------------

    def send(self, tasks: Tasks) -> None:
        """Give the worker tasks."""
        self._send(tasks._replace(payloads=[as_bytes(payload) for payload in tasks.payloads]))

    def cancel(self, cancels: Cancels) -> None:
        """Tell the worker that nobody waits for some of its tasks any more."""
        self._send(cancels)

    def credit(self, credits: Credits) -> None:
        """Tell the worker what clients have taken of its streams."""
        self._send(credits)

    def progress(self) -> Progress:
        """Return how far it has come."""
        self._journal.require(not self._gone, Contract.PROTOCOL, "the progress of %s, which has ended", self._life)
        return self.worker.progress()

    def memory(self) -> int | None:
        """Return the bytes of memory that it takes."""
        return self.worker.memory()

    def busy_poll(self, seconds: float) -> bool | None:
        """Look for what it says; mostly there is nothing, since no time passes meanwhile."""
        self._journal.count("answers looked for")
        if self._is_open and self._random.random() < 0.2:
            return None
        found = self._is_open and (bool(self._for_server) or self._ended is not None)
        self._read()
        return found

    def drain(self) -> None:
        """Report what the worker has said before its end."""
        self._read()

    def finish(self) -> None:
        """Ask the worker to stop."""
        self._oracle.shutdown.finish(self._life)
        if self._is_open and not self._finished:
            self._finished = True
            self._pass_on(None)

    def close(self) -> None:
        """Let go of it."""
        self._oracle.crash.let_go(self._life, unread=bool(self._for_server))
        self._shut()

    def kill(self) -> None:
        """End the worker; it takes its time."""
        self._oracle.protocol.kill(self._life)
        slow = self._random.random() < self._around.scenario.dies_slowly
        self.worker.die("was killed by signal 9", self._random.uniform(0.0, 2.0) if slow else 0.0)

    def reap(self, timeout: float) -> None:
        """Wait for its end, which no simulation asks for."""
        raise AssertionError("reaped without the loop")

    def describe_exit(self) -> str:
        """Say how it ended."""
        return self.worker.ending

    # -- the worker's end --------------------------------------------------------------------------------------------

    def say(self, message: Said) -> None:
        """Say something to the service."""
        if self._is_open and self._ended is None:
            if not self._for_server:
                self._later(self._read)
            self._for_server.append(self._around.crosses(message))

    def hang_up(self, reason: str = "") -> None:
        """End the worker's side; what it has said before is still read.

        Args:
            reason: what breaks off, or makes no sense; empty where it ends in good order.
        """
        if self._is_open and self._ended is None:
            self._ended = reason
            self._for_worker.clear()
            self._later(self._read)

    def exit(self) -> None:
        """Report that the worker has ended."""
        self._oracle.crash.exits(self._life, self._events.exited)
        self._gone = True
        self._shut()

    # -- under way ---------------------------------------------------------------------------------------------------

    def _later(self, callback: Callable[[], None]) -> None:
        self._around.agenda.after(self._random.choice(self._around.scenario.latencies), callback)

    def _send(self, message: Asked) -> None:
        self._oracle.protocol.sent(self._life, message)
        if self._is_open and self._ended is None:
            self._pass_on(self._around.crosses(message))
        elif self._is_open and not self._broken:
            # Whoever sends is in the middle of a change: he hears of it later.
            self._broken = True
            self._around.agenda.after(0.0, self._report_broken)

    def _report_broken(self) -> None:
        if self._is_open:
            self._report_closed("broke its link (sending to it failed)")

    def _pass_on(self, message: Asked | None) -> None:
        if not self._for_worker:
            self._later(self._arrive)
        self._for_worker.append(message)

    def _arrive(self) -> None:
        arrived, self._for_worker = self._for_worker, []
        for message in arrived:
            self.worker.take(message)

    def _read(self) -> None:
        """Report all that has come, then the worker's end if that has."""
        said, self._for_server = self._for_server, []
        for message in said:
            if self._is_open:
                self._holds = self._draw_holds(message) if isinstance(message, Results) else ()
                self._oracle.replies.hear(self._life, message, self._report, self._holds)
        if self._ended is not None and self._is_open:
            self._report_closed(self._ended)

    def _report(self, message: Said) -> None:
        if isinstance(message, Results):
            self._events.results(message._replace(payloads=self._in_memory(message)))
        elif isinstance(message, Chunks):
            self._events.chunks(message)
        elif isinstance(message, Ready):
            self._events.ready()
        elif isinstance(message, Failed):
            self._events.failed(message.traceback)

    def _in_memory(self, results: Results) -> list[Payload]:
        """Return the payloads of results, those of them in memory that were drawn."""
        payloads = map(as_bytes, results.payloads)
        return [
            self._oracle.memory.hold(payload) if held else payload
            for held, payload in zip(self._holds, payloads, strict=True)
        ]

    def _draw_holds(self, results: Results) -> Sequence[bool]:
        """Return which results are to lie in memory: as many as the scenario wants."""
        often = self._around.scenario.holds
        return [code == OK and self._random.random() < often for code in results.codes]

    def _report_closed(self, reason: str) -> None:
        self._shut()
        self._oracle.crash.link_ends(self._life, reason, self._events.closed)

    def _shut(self) -> None:
        self._is_open = False
        self._for_server.clear()
        self._for_worker.clear()
