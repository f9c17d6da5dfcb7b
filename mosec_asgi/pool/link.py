"""What the pool holds of a worker, whatever the worker runs on: a process, a thread, an actor.

A `Launcher` starts a worker and returns its `WorkerLink`; what the worker does is reported to the `WorkerEvents` that
the launcher was given. All of it is on the event loop that the launcher was made for, and nothing is reported before
`launch` has returned. Both sides speak in messages (`mosec_asgi.messages`); how these cross, and how the link knows
what the worker had begun and whether it makes progress, is the link's own business.

The life of a link, which the supervisor follows by the table of `pool.lifecycle`:

    launch ──► ready ──► results, chunks ... ──► [closed] ──► exited
       └─────► failed ──────────────────────────────────────► exited

`exited` is the last report of each life, and the only one that always comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks


class WorkerEvents(Protocol):
    """Receives what a link reports of its worker. May close, finish or kill the link in the middle of a call."""

    def ready(self) -> None:
        """Note that the worker has loaded and warmed up."""

    def failed(self, traceback: str) -> None:
        """Note that the worker could not start, and why; it exits by itself."""

    def results(self, results: Results) -> None:
        """Take the worker's answers; the receiver must drop their payloads."""

    def chunks(self, chunks: Chunks) -> None:
        """Take pieces of streams."""

    def closed(self, reason: str = "") -> None:
        """Note that nothing more can be said to the worker or heard from it; not reported after `WorkerLink.close`.

        Args:
            reason: how the connection broke, or what the worker must not have sent; empty where the worker has
                ended it in good order.
        """

    def exited(self) -> None:
        """Note that the worker has ended, and left nothing behind."""


class WorkerLink(Protocol):
    """One life of a worker.

    Only `busy_poll` and `drain` report something before they return: the caller of any other method may be in the
    middle of a change.
    """

    @property
    def name(self) -> str:
        """What the logs call what it runs on, such as "process 1234"."""

    @property
    def pid(self) -> int | None:
        """Its process; None where it has none of its own."""

    def send(self, tasks: Tasks) -> None:
        """Give the worker tasks. After the link has closed this does nothing, as do the next two."""

    def cancel(self, cancels: Cancels) -> None:
        """Tell the worker that nobody waits for some of its tasks any more."""

    def credit(self, credits: Credits) -> None:
        """Tell the worker what clients have taken of its streams."""

    def progress(self) -> Progress:
        """Return how far it has come; known until `WorkerEvents.exited` has returned."""

    def memory(self) -> int | None:
        """Return the bytes of resident memory that it takes; None where that is not its own, or not known."""

    def busy_poll(self, seconds: float) -> bool | None:
        """Poll for `seconds`, without sleeping, until the worker says something, and report it.

        Returns:
            whether there was anything; None where the event loop has other events to handle.
        """

    def drain(self) -> None:
        """Report at once all that the worker has said, when it has ended."""

    def finish(self) -> None:
        """Ask the worker to stop once it has answered what it has."""

    def close(self) -> None:
        """Send the worker nothing more, and report only its exit from here on. Idempotent."""

    def kill(self) -> None:
        """End the worker now, by force. Idempotent; its exit is reported like any other."""

    def reap(self, timeout: float) -> None:
        """Wait for its end without the event loop, which is closed; kill it after `timeout` seconds."""

    def describe_exit(self) -> str:
        """Say how it ended, once it has."""


class Launcher(Protocol):
    """Starts the workers of one stage."""

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> WorkerLink:
        """Start a worker.

        Args:
            spec: what it is to run.
            variables: environment variables to set before it starts.
            events: hears what it does.

        Raises:
            StartupError: it cannot be started; the text names the cause and the remedy.
        """

    def close(self) -> None:
        """Release what workers were started from, once all of them have ended. Idempotent."""
