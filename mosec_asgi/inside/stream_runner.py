"""Runs tasks on a worker whose `forward` streams: by `send_stream_event`, or as a generator (`batch`)."""

from __future__ import annotations

import threading
import time
from typing import Any

from mosec_asgi.inside.batch import BatchAlgorithm, Unit
from mosec_asgi.inside.outlet import Outlet, PassingOutlet
from mosec_asgi.inside.plain_runner import PlainRunner
from mosec_asgi.inside.port import Port
from mosec_asgi.inside.returned import events_of
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import NoTimer, Timer
from mosec_asgi.messages import Tasks
from mosec_asgi.streaming import SSEWorker
from mosec_asgi.worker import Worker


class _PushRunner(PlainRunner):
    """Runs an `SSEWorker`, whose `forward` may push events."""

    # What a subclass has made.
    _outlet: Outlet

    def __init__(self, worker: Worker, spec: WorkerSpec, port: Port, timer: Timer | NoTimer) -> None:
        super().__init__(worker, spec, port, timer)
        self._rehearsing = False
        # Threads that push into one stream wait for its client one after the other.
        self._pushing = threading.Lock()
        if isinstance(worker, SSEWorker):
            worker._send_event = self._push

    def run(self, tasks: Tasks) -> None:
        """Run tasks and send their events and answers."""
        places = range(len(tasks.ids))
        for group in [places] if self._batches else [(place,) for place in places]:
            self._port.progress.begin(len(group))
            unit = self._unit = Unit(tasks, group)
            self._drive(self._algorithm.run(unit))

    def _push(self, event: Any, index: int) -> None:
        """Send an event from within `forward`: `SSEWorker.send_stream_event`."""
        if self._rehearsing:
            return
        paused = self._timer.pause()
        with self._pushing:
            inside = self._unit.inside
            self._port.poll()
            self._outlet.drop_left(inside)
            for wanted in self._algorithm.room(inside, self._outlet):
                self._do(wanted)
            self._outlet.push(event, index, inside)
        self._port.progress.beat()
        self._timer.restart()
        if paused:
            self._timer.resume()


class StreamRunner(_PushRunner):
    """Runs the tasks that come through a port as streams."""

    def __init__(self, worker: Worker, spec: WorkerSpec, port: Port, timer: Timer | NoTimer) -> None:
        """Bind a worker to its port; see `PlainRunner`."""
        super().__init__(worker, spec, port, timer)
        self._outlet = Outlet(worker, spec, self._codec, port)
        self._algorithm = BatchAlgorithm(spec, self._codec, port, time.perf_counter, self._outlet, port.poll)

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example, whose events nobody receives."""
        self._rehearsing = True
        try:
            for _ in events_of(self._worker.forward(example), batched=self._batches) or ():
                pass
        finally:
            self._rehearsing = False


class MiddleRunner(_PushRunner):
    """Runs the tasks of a stage before the last, as mosec does: what `forward` returns is passed on.

    What it pushes goes to the client. A task whose client does not read waits, if it is alone in `forward`; in a batch
    it fails.
    """

    def __init__(self, worker: Worker, spec: WorkerSpec, port: Port, timer: Timer | NoTimer) -> None:
        """Bind a worker to its port; see `PlainRunner`."""
        super().__init__(worker, spec, port, timer)
        self._outlet = outlet = PassingOutlet(worker, spec, self._codec, port)
        self._algorithm = BatchAlgorithm(spec, self._codec, port, time.perf_counter, passing=outlet)

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example, whose events nobody receives."""
        self._rehearsing = True
        try:
            super().rehearse(example)
        finally:
            self._rehearsing = False
