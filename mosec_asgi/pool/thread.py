"""Workers in threads of the server's own process: for models that release the GIL, for notebooks and for tests.

A thread runs the same code as a process (`inside`); only the link differs: messages go through a queue, unchanged. A
thread cannot have:

- *A soft time limit.* No exception can be raised in a thread that runs C code or a loop. One that exceeds the stage's
  timeout is **given up**: its tasks are answered 408, a new thread takes its place, and the old one goes on until its
  `forward` returns; its results are dropped. No thread is started while `MOST_GIVEN_UP` of them still run.
- *An environment of its own*, a crash of its own, memory of its own: a model that crashes takes the server with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.codec import examples
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.loading import load, runner_for, speaker_for, warm_up
from mosec_asgi.inside.port import Port, ProgressNotes
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.worker import Worker

# The most threads of a stage that were given up and still run; above that no others are started.
MOST_GIVEN_UP = 8

STILL_RUNNING = "is still running"
GIVEN_UP = "was given up"

# A report of a worker: called with the worker's events, on the server's loop.
Report: TypeAlias = Callable[[WorkerEvents], None]

logger = log.internal_logger(__name__)


class Notes:
    """Where a worker notes how far it has come; server and worker share the object."""

    __slots__ = ("_beats", "_begun")

    def __init__(self) -> None:
        self._begun = self._beats = 0

    def begin(self, tasks: int = 1) -> None:
        """Note that the worker begins the next `tasks` of those that it was sent."""
        self._begun += tasks
        self._beats += 1

    def beat(self) -> None:
        """Note that the worker does a step."""
        self._beats += 1

    def read(self) -> Progress:
        """Return how far the worker has come."""
        return Progress(self._begun, self._beats)


class QueuePort(Port):
    """A worker's end of a link that passes messages as they are. `put`, `end` and `give_up` are the server's."""

    def __init__(self, progress: ProgressNotes, post: Callable[[Report], None]) -> None:
        """Connect a worker to its server.

        Args:
            progress: where the worker notes how far it has come.
            post: takes what the worker says, from any thread.
        """
        super().__init__(progress)
        self._post = post
        self._inbox: deque[Tasks | Cancels | Credits] = deque()
        self._news = threading.Condition()
        self._finished = False
        self._given_up = False
        # Tells the worker's event loop, if it has one, that there is news.
        self._tell: Callable[[], None] | None = None

    # -- the server's side -------------------------------------------------------------------------------------------

    def put(self, message: Tasks | Cancels | Credits) -> None:
        """Send the worker a message."""
        with self._news:
            self._inbox.append(message)
            self._wake()

    def end(self) -> None:
        """Send no more tasks: the worker stops once it has answered those that it has."""
        with self._news:
            self._finished = True
            self._wake()

    def give_up(self) -> None:
        """Make the worker end as soon as it receives or sends; what it sends is dropped."""
        with self._news:
            self._finished = self._given_up = True
            self._wake()

    def _wake(self) -> None:
        self._news.notify_all()
        if self._tell is not None:
            self._tell()

    # -- the worker's side -------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Wait until something comes, then take it in."""
        with self._news:
            self._news.wait_for(self._has_news, seconds)
        self.poll()

    def watch(self, loop: asyncio.AbstractEventLoop, on_news: Callable[[], None]) -> None:
        """Have an event loop call `on_news` whenever something has come, or the end has."""
        # Tasks that start in this callback belong to the worker's context, not to that of the sender.
        context = contextvars.copy_context()

        def tell() -> None:
            # The loop is closed if the worker has just ended by itself.
            if not loop.is_closed():
                loop.call_soon_threadsafe(on_news, context=context)

        with self._news:
            self._tell = tell
            if self._has_news():
                tell()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop these calls."""
        with self._news:
            self._tell = None

    def ready(self) -> None:
        """Say that the worker can be given tasks."""
        self._say(lambda events: events.ready())

    def failed(self, text: str) -> None:
        """Say why the worker could not start."""
        self._say(lambda events: events.failed(text))

    def _has_news(self) -> bool:
        return bool(self._inbox) or self._finished

    def _receive(self, *, wait: bool) -> bool:
        with self._news:
            if wait:
                self._news.wait_for(self._has_news)
            return self._take_in()

    def _take_in(self) -> bool:
        """Take in what is in the queue; False where nothing is."""
        self._check()
        came = bool(self._inbox)
        while self._inbox:
            self.take(self._inbox.popleft())
        if not came and self._finished:
            self.ended = True
        return came

    def _send_results(self, results: Results) -> None:
        self._say(lambda events: events.results(results))

    def _send_chunks(self, chunks: Chunks) -> None:
        self._say(lambda events: events.chunks(chunks))

    def _say(self, report: Report) -> None:
        self._check()
        self._post(report)

    def _check(self) -> None:
        if self._given_up:
            raise Ending("the server has given this thread up")


class InProcessLink:
    """One life of a worker in the server's own process; see `pool.link.WorkerLink`.

    A subclass runs the worker, and ends it.
    """

    def __init__(self, spec: WorkerSpec, events: WorkerEvents, loop: asyncio.AbstractEventLoop) -> None:
        """Put the two ends together.

        Args:
            spec: what to run.
            events: hears what the worker does.
            loop: on which the events are reported.
        """
        self.spec = spec
        self.loop = loop
        self.notes = self._make_notes()
        self.port = self._make_port()
        self.ending = STILL_RUNNING
        self._events = events
        # Reports of the worker, made in any thread, that wait to be passed on on the loop.
        self._said: deque[Report] = deque()
        self._lock = threading.Lock()
        self._telling = False
        self._closed = False
        self._gone = False

    def _make_notes(self) -> Notes:
        return Notes()

    def _make_port(self) -> QueuePort:
        return QueuePort(self.notes, self.post)

    @property
    def pid(self) -> int | None:
        """Its process: none of its own."""
        return None

    @property
    def name(self) -> str:
        """What the logs call it."""
        return f"thread '{self.spec.stage} {self.spec.worker_id}'"

    # -- to the worker -----------------------------------------------------------------------------------------------

    def send(self, tasks: Tasks) -> None:
        """Give the worker tasks; what another link holds of their payloads is copied."""
        if not all(isinstance(payload, bytes) for payload in tasks.payloads):
            payloads = [payload if isinstance(payload, bytes) else payload.read() for payload in tasks.payloads]
            tasks = tasks._replace(payloads=payloads)
        self.port.put(tasks)

    def cancel(self, cancels: Cancels) -> None:
        """Tell the worker that nobody waits for some of its tasks any more."""
        self.port.put(cancels)

    def credit(self, credits: Credits) -> None:
        """Tell the worker what clients have taken of its streams."""
        self.port.put(credits)

    def progress(self) -> Progress:
        """Return how far it has come."""
        return self.notes.read()

    def memory(self) -> int | None:
        """Return None: it has no memory of its own."""
        return None

    def busy_poll(self, seconds: float) -> bool | None:
        """Do not poll: the worker needs the interpreter, which polling would keep busy."""
        return False

    def drain(self) -> None:
        """Report what the worker has said."""
        with self._lock:
            self._telling = False
            said, self._said = self._said, deque()
        for report in said:
            # The receiver of a report may close the link.
            if not self._closed:
                report(self._events)

    def finish(self) -> None:
        """Ask the worker to stop once it has answered what it has."""
        self.port.end()

    def close(self) -> None:
        """Report only the worker's exit from here on."""
        self._closed = True

    def kill(self) -> None:
        """End the worker, or give it up."""
        raise NotImplementedError

    def reap(self, timeout: float) -> None:
        """Wait for its end without a loop."""
        raise NotImplementedError

    def describe_exit(self) -> str:
        """Say how it ended."""
        return self.ending

    # -- from the worker ---------------------------------------------------------------------------------------------

    def post(self, report: Report) -> None:
        """Have something reported on the loop; called from any thread."""
        with self._lock:
            self._said.append(report)
            told, self._telling = self._telling, True
        if not told:
            self.on_the_loop(self.drain)

    def on_the_loop(self, callback: Callable[[], None]) -> None:
        """Call something on the loop, in a later turn."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed, and nobody receives reports any more.
            self.port.ended = True

    def exit(self) -> None:
        """Report that the worker has ended; on the loop, and only once."""
        if not self._gone:
            self._gone = True
            if self.ending == STILL_RUNNING:
                self.ending = "ended"
            self._events.exited()

    # -- where the worker runs ---------------------------------------------------------------------------------------

    def load(self) -> Worker:
        """Make the user's worker."""
        return load(self.spec)

    def loaded(self, worker: Worker) -> None:
        """Note that the worker has been made and warmed up."""

    def run(self) -> None:
        """Run the worker, as `pool.process.child.main` does in a process; `Ending` passes through."""
        spec, port = self.spec, self.port
        try:
            worker = self.load()
            rehearsals = examples(worker)
            runner = runner_for(worker, spec, port, interrupts=False)
            log.speak_as(speaker_for(runner, spec), context=True)
        except Ending:
            raise
        except BaseException:
            self.ending = "could not start"
            port.failed(traceback.format_exc())
            return
        try:
            warm_up(runner, rehearsals, spec)
            self.loaded(worker)
            port.ready()
            runner.serve()
        finally:
            runner.close()


class ThreadLink(InProcessLink):
    """One life of a worker in a thread."""

    def __init__(self, spec: WorkerSpec, events: WorkerEvents, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare the thread; `start` starts it."""
        super().__init__(spec, events, loop)
        # A daemon thread: one that was given up must not keep the program from ending.
        self._thread = threading.Thread(target=self._main, name=f"{spec.stage} {spec.worker_id}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def is_given_up(self) -> bool:
        """Whether the thread was given up and still runs."""
        return self.ending == GIVEN_UP and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def kill(self) -> None:
        """Give the thread up: it ends when its code next uses the port. Idempotent."""
        if not self._gone and self.ending != GIVEN_UP:
            self.ending = GIVEN_UP
            self.port.give_up()
            self.on_the_loop(self.exit)

    def reap(self, timeout: float) -> None:
        """Wait for the thread to end, without a loop; give it up after `timeout` seconds."""
        self.port.give_up()
        self._thread.join(timeout)
        self._gone = True

    def describe_exit(self) -> str:
        """Say how it ended."""
        if self.is_given_up:
            return "was given up, and runs on until its `forward` returns: a thread cannot be killed"
        return self.ending

    def _main(self) -> None:
        try:
            self.run()
        except Ending:
            logger.debug("the thread that was given up has ended", extra=self._extra())
        except BaseException:
            self.ending = "failed"
            logger.exception("the worker's thread has failed", extra=self._extra())
        finally:
            self.on_the_loop(self.exit)

    def _extra(self) -> dict[str, object]:
        return {"stage": self.spec.stage, "worker": self.spec.worker_id}


class ThreadLauncher:
    """Starts workers as threads, on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare; nothing is started.

        Args:
            loop: on which the workers' events are reported.
        """
        self._loop = loop
        self._links: list[ThreadLink] = []

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> ThreadLink:
        """Start a worker in a thread; see `Launcher.launch`."""
        who = f"worker {spec.worker_id} of {spec.stage}"
        if variables:
            raise StartupError(
                f"{who} is a thread, which has no environment of its own: leave `env` out, or use executor='process'"
            )
        self._links = [link for link in self._links if link.is_alive]
        given_up = sum(link.is_given_up for link in self._links)
        if given_up >= MOST_GIVEN_UP:
            raise StartupError(
                f"{who} is not started: {given_up} threads of this stage were given up after its timeout of "
                f"{spec.timeout:g} s and still run. Raise the stage's timeout, or use executor='process'"
            )
        link = ThreadLink(spec, events, self._loop)
        try:
            link.start()
        except RuntimeError as error:
            raise StartupError(f"{who} cannot be started: {error}") from error
        self._links.append(link)
        logger.debug("started in process %d", os.getpid(), extra={"stage": spec.stage, "worker": spec.worker_id})
        return link

    def close(self) -> None:
        """Forget the threads."""
        self._links.clear()
