"""The link to a worker in an actor: frames over the connection that it has opened, and its end as Ray tells it."""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.stream import Stream
from mosec_asgi.messages import OK, Cancels, Chunks, Credits, LinkError, Payload, Progress, Results, Tasks
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.pool.ray.orders import Ended
from mosec_asgi.pool.ray.store import HEAD

# Seconds after which it is told what an actor waits for that has not begun.
PATIENCE_SECONDS = 15.0
# Seconds in which Ray confirms the end of an actor that was killed. Its node may be gone, of which Ray hears later; the
# actor ends by itself then, as its connection has ended.
CONFIRM_SECONDS = 5.0

logger = log.internal_logger(__name__)


class Cluster(Protocol):
    """What a link asks of `RayCluster`."""

    def kill(self, number: int, *, why: bool) -> None:
        """End an actor."""

    def ask(self, number: int) -> None:
        """Ask why it has not begun."""

    def forget(self, number: int) -> None:
        """Hear of it no more."""

    def reap(self, timeout: float) -> None:
        """End all without the event loop."""


class RayLink:
    """One life of a worker in an actor; see `pool.link.WorkerLink`."""

    def __init__(
        self,
        spec: WorkerSpec,
        events: WorkerEvents,
        loop: asyncio.AbstractEventLoop,
        cluster: Cluster,
        counts: CustomMetrics | None = None,
        *,
        confirm_seconds: float = CONFIRM_SECONDS,
    ) -> None:
        """Prepare; `begin` is called once the actor has a number.

        Args:
            spec: what the worker runs.
            events: hears what it does.
            loop: to listen on.
            cluster: ends the actor.
            counts: where what the worker counts is shown, if it is.
            confirm_seconds: in which Ray confirms its end.
        """
        self._confirm_seconds = confirm_seconds
        self._spec = spec
        self._events = events
        self._loop = loop
        self._cluster = cluster
        self._counts = counts
        self._number = 0
        self._host = ""
        self._channel: Channel | None = None
        # Nothing is reported any more but the exit.
        self._closed = False
        self._gone = False
        self._ending = "has not ended"
        self._begun = self._beats = 0
        self._memory = 0
        # Objects in the store that nobody needs any more, of which the actor is told in the next turn.
        self._freed: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """What the logs call it."""
        return f"Ray actor {self._number} on {self._host}" if self._host else f"Ray actor {self._number}"

    @property
    def pid(self) -> int | None:
        """Its process: it may be on another machine."""
        return None

    def begin(self, number: int) -> None:
        """Note that the actor has been asked for."""
        self._number = number
        self._timer = self._loop.call_later(PATIENCE_SECONDS, self._cluster.ask, number)

    # -- to the worker -----------------------------------------------------------------------------------------------

    def send(self, tasks: Tasks) -> None:
        """Give the worker tasks; what a link of another kind holds of their payloads is copied."""
        if not all(isinstance(payload, bytes) for payload in tasks.payloads):
            tasks = _sendable(tasks)
        self._send(frames.encode_tasks(tasks))

    def cancel(self, cancels: Cancels) -> None:
        """Tell the worker that nobody waits for some of its tasks any more."""
        self._send(frames.encode_cancels(cancels))

    def credit(self, credits: Credits) -> None:
        """Tell the worker what clients have taken of its streams."""
        self._send(frames.encode_credits(credits))

    def _send(self, frame: bytes) -> None:
        if self._channel is not None:
            self._channel.send(frame)

    def progress(self) -> Progress:
        """Return how far it has come, as it has said."""
        return Progress(self._begun, self._beats)

    def memory(self) -> int | None:
        """Return the bytes of memory that it takes, as it has said."""
        return self._memory or None

    def busy_poll(self, seconds: float) -> bool | None:
        """Do not poll: what it says comes by the network."""
        return False

    def drain(self) -> None:
        """Report what it has said before its end."""
        if self._channel is not None:
            self._channel.drain()

    def finish(self) -> None:
        """Ask it to stop."""
        if self._channel is not None:
            self._channel.send(frames.encode_finish())
        else:
            self.kill()

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def kill(self) -> None:
        """End the actor."""
        if not self._gone:
            self._stop_timer()
            self._timer = self._loop.call_later(self._confirm_seconds, self._unconfirmed)
            # In a later turn: where nothing has been started yet, its end is reported at once.
            self._loop.call_soon(self._kill)

    def _kill(self) -> None:
        self._cluster.kill(self._number, why=self._channel is None)

    def reap(self, timeout: float) -> None:
        """End the actor without a loop: with the connection to Ray, as the others of the service."""
        self._cluster.reap(timeout)
        self._let_go()

    def describe_exit(self) -> str:
        """Say how it ended."""
        return self._ending

    # -- from the cluster --------------------------------------------------------------------------------------------

    def connected(self, sock: Stream, host: str) -> None:
        """Take over the connection, on which the actor has proved that it is this one."""
        if self._gone or self._closed:
            sock.close()
            return
        self._stop_timer()
        self._host = host
        self._channel = Channel(sock, self._on_frame, self._on_closed)
        self._channel.open(self._loop)

    def waits(self, text: str) -> None:
        """Say what the actor lacks."""
        if self._channel is None and not self._gone:
            logger.warning(
                "the worker has not begun after %.0f s: %s",
                PATIENCE_SECONDS,
                text,
                extra={"stage": self._spec.stage, "worker": self._spec.worker_id},
            )

    def ended(self, ended: Ended) -> None:
        """Note the end of the actor, as Ray tells it."""
        if self._gone:
            return
        self._ending = ended.text
        if ended.fault and self._channel is None and not self._closed:
            self._events.failed(ended.fault)
        self._exit()

    def _unconfirmed(self) -> None:
        """Go on without Ray's word: the connection has ended, and the actor ends with it."""
        self._cluster.forget(self._number)
        self._ending = f"was killed, which Ray has not confirmed within {self._confirm_seconds:g} s"
        self._exit()

    def _exit(self) -> None:
        if not self._gone:
            self._events.exited()
            self._let_go()

    def _let_go(self) -> None:
        self._gone = True
        self._stop_timer()
        if self._channel is not None:
            self._channel.close()
        if self._counts is not None:
            self._counts.foreign_ended(self._number)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- from the worker ---------------------------------------------------------------------------------------------

    def _on_frame(self, frame: frames.Frame) -> None:
        self._beats += 1
        if isinstance(frame, Results):
            self._on_results(frame)
        elif isinstance(frame, frames.Noted):
            self._begun, self._memory = frame.begun, frame.memory
        elif isinstance(frame, Chunks):
            self._events.chunks(frame)
        elif isinstance(frame, frames.Ready):
            self._events.ready()
        elif isinstance(frame, frames.Failed):
            self._events.failed(frame.text)
        elif isinstance(frame, frames.Counted):
            # A thread of its own sends it, also where the worker hangs: that is no step.
            self._beats -= 1
            if self._counts is not None:
                self._counts.counted(self._number, frame.kind, frame.values)
        else:
            self._broke(f"a worker does not send {type(frame).__name__}")

    def _on_results(self, results: Results) -> None:
        if frames.IN_MEMORY in results.codes:
            try:
                results = self._held(results)
            except struct.error:
                self._broke("it refers to Ray's store by what is no reference")
                return
        self._events.results(results)

    def _held(self, results: Results) -> Results:
        """Return results with payloads that lie in Ray's store."""
        payloads: list[Payload] = [
            StoredPayload(payload, self) if code == frames.IN_MEMORY and isinstance(payload, bytes) else payload
            for code, payload in zip(results.codes, results.payloads, strict=True)
        ]
        codes = [OK if code == frames.IN_MEMORY else code for code in results.codes]
        return results._replace(codes=codes, payloads=payloads)

    def free(self, number: int) -> None:
        """Let the actor know that nobody needs an object any more which it has put into the store."""
        if not self._freed and not self._gone:
            # In a later turn, with others, and because the caller is in the middle of a change.
            self._loop.call_soon(self._tell_freed)
        self._freed.append(number)

    def _tell_freed(self) -> None:
        freed, self._freed = self._freed, []
        self._send(frames.encode_blocks(frames.Freed(freed)))

    def _broke(self, reason: str) -> None:
        """End the link, because the worker has sent something invalid."""
        assert self._channel is not None
        self._channel.close()
        self._on_closed(reason)

    def _on_closed(self, reason: str) -> None:
        if not self._closed:
            self._events.closed(f"broke its connection ({reason})" if reason else "")


class StoredPayload:
    """A payload in Ray's object store, which the server does not read; see `messages.HeldPayload`.

    Attributes:
        reference: by which an actor finds it.
    """

    __slots__ = ("_link", "_number", "_size", "reference")

    def __init__(self, reference: bytes, link: RayLink) -> None:
        numbers: tuple[int, int] = HEAD.unpack_from(reference)
        self._number, self._size = numbers
        self.reference = reference
        self._link = link

    def __len__(self) -> int:
        return self._size

    def read(self) -> bytes:
        """Refuse: it is for the next stage, whose workers are actors as well."""
        raise LinkError("a result lies in Ray's store, where the server does not read it")

    def lend(self) -> memoryview:
        """Refuse, as `read` does."""
        return memoryview(self.read())

    def copy(self) -> bytes:
        """Refuse, as `read` does."""
        return self.read()

    def load(self) -> object:
        """Refuse, as `read` does."""
        return self.read()

    def drop(self) -> None:
        """Have it freed."""
        self._link.free(self._number)


def _sendable(tasks: Tasks) -> Tasks:
    """Return tasks whose payloads are bytes: references to Ray's store, and copies of what lies elsewhere."""
    flags, payloads = list(tasks.flags), list(tasks.payloads)
    for place, payload in enumerate(payloads):
        if isinstance(payload, StoredPayload):
            flags[place] |= frames.SHARED
            payloads[place] = payload.reference
        elif not isinstance(payload, bytes):
            payloads[place] = payload.read()
    return tasks._replace(flags=flags, payloads=payloads)
