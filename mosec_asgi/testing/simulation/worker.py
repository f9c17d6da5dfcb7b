"""A simulated worker: it works, answers and streams as real ones do, and goes wrong as they can."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from mosec_asgi.batching.stage import StagePlan
from mosec_asgi.errors import CANCELLED, StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc import frames
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.testing.simulation.agenda import Agenda
from mosec_asgi.testing.simulation.model import Case, Life
from mosec_asgi.testing.simulation.oracle import Oracle
from mosec_asgi.testing.simulation.pipe import MemoryPipe
from mosec_asgi.testing.simulation.scenario import Scenario

# Seconds between two signs of life of a worker that waits for a client, or runs an event loop.
BEAT_SECONDS = 0.1


@dataclass(slots=True)
class Surroundings:
    """What all simulated workers of a history share.

    Attributes:
        seed: of the history.
        scenario: what it consists of.
        agenda: the simulation's timers.
        oracle: watches.
        faulty: things go wrong; unset when the service is to come back to health.
    """

    seed: int
    scenario: Scenario
    agenda: Agenda
    oracle: Oracle
    faulty: bool = True


class SimulatedLauncher:
    """Starts the simulated workers of one stage."""

    def __init__(self, stage: int, around: Surroundings) -> None:
        self._stage = stage
        self._around = around
        self._random = Random(around.seed * 1_000 + stage)

    def launch(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> tuple[SimulatedWorker, WatchedPipe]:
        """Start a worker; see `Launcher.launch`."""
        around = self._around
        if around.faulty and self._random.random() < around.scenario.faults.get("launch is refused", 0.0):
            around.oracle.launch_refused(self._stage, spec.worker_id)
            raise StartupError("the launch was refused")
        life = around.oracle.launched(self._stage, spec.worker_id)
        worker = SimulatedWorker(life, self._stage, around)
        worker.start(on_frame, on_closed, on_exit)
        return worker, worker.pipe


class WatchedPipe(MemoryPipe):
    """A pipe that tells the oracle what the service does with it."""

    def __init__(
        self,
        life: Life,
        oracle: Oracle,
        later: Callable[[Callable[[], None]], object],
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        to_worker: Callable[[frames.Frame | None], None],
    ) -> None:
        super().__init__(
            later,
            lambda frame: oracle.hear(life, frame, on_frame),
            lambda reason: oracle.pipe_ends(life, reason, on_closed),
            to_worker,
        )
        self._life = life
        self._oracle = oracle

    def finish(self) -> None:
        """Ask the worker to stop."""
        self._oracle.finish(self._life)
        super().finish()

    def close(self) -> None:
        """Let go of the pipe."""
        self._oracle.let_go(self._life, unread=self.unread)
        super().close()

    def _pass_on(self, frame: frames.Frame | None) -> None:
        if frame is not None:
            self._oracle.sent(self._life, frame)
        super()._pass_on(frame)

    def _refuse(self, frame: frames.Frame) -> None:
        self._oracle.sent_in_vain(self._life, frame)
        super()._refuse(frame)


class SimulatedWorker:
    """One life of a simulated worker."""

    def __init__(self, life: Life, stage: int, around: Surroundings) -> None:
        self.pid: int | None = life.number
        self.memory = None
        self.pipe: WatchedPipe
        self._life = life
        self._stage = stage
        self._around = around
        self._oracle = around.oracle
        self._plan: StagePlan = around.scenario.world.stages[stage]
        self._pace = around.scenario.paces[stage]
        self._limit = around.scenario.world.limits.stream_buffer
        self._random = Random(around.seed * 1_000_003 + life.number)
        self._on_exit: Callable[[], None]
        self._timers: set[asyncio.Handle] = set()
        self._dead = False
        self._ending = "is still running"
        # Stopped by a signal, as it were; what it was about to do is kept for when it goes on.
        self._frozen = False
        self._held: list[Callable[[], None]] = []
        self._begun = 0
        self._beats = 0
        # Units of work that wait, how many run, and answers that have been made and not sent.
        self._waiting: deque[list[Case]] = deque()
        self._running = 0
        self._gathered: list[tuple[int, int, bytes, float]] = []
        self._left: set[int] = set()
        self._outstanding: dict[int, int] = {}
        self._stopping = False

    # -- what the service sees ---------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """How far it has come."""
        return Progress(self._begun, self._beats)

    def kill(self) -> None:
        """End it; it takes its time."""
        self._oracle.kill(self._life)
        if not self._dead:
            slow = self._random.random() < self._around.scenario.dies_slowly
            self._die("was killed by signal 9", self._random.uniform(0.0, 2.0) if slow else 0.0)

    def reap(self, timeout: float) -> None:
        """Wait for its end, which no simulation asks for."""
        raise AssertionError("reaped without the loop")

    def describe_exit(self) -> str:
        """Say how it ended."""
        return self._ending

    # -- life and death ----------------------------------------------------------------------------------------------

    def start(
        self,
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> None:
        """Come to life, or not."""
        self._on_exit = on_exit
        later = self._arrive_later
        self.pipe = WatchedPipe(self._life, self._oracle, later, on_frame, on_closed, partial(self._do, self._take))
        delay = self._random.choice((0.0, 0.001, 0.05))
        if self._strikes("exits at start"):
            self._after(delay, partial(self._die, "exited with status 1"))
        elif self._strikes("says why it cannot start"):
            self._after(delay, self._say_failed)
        elif self._strikes("garbage at start"):
            self._after(delay, self._write_garbage)
        elif self._strikes("answers before it is ready"):
            self._after(delay, partial(self._write_results, [(1, 200, b"1", 0.01)]))
        elif self._strikes("starts slowly"):
            self._after(self._random.uniform(0.1, 0.95) * self._plan.start_timeout, self._get_ready)
        elif not self._strikes("hangs at start"):
            self._after(delay, self._get_ready)

    def _say_failed(self) -> None:
        self.pipe.write(frames.encode_failed("OSError: no weights"))
        self._after(self._random.choice((0.0, 0.01)), partial(self._die, "exited with status 1"))

    def _get_ready(self) -> None:
        self.pipe.write(frames.encode_ready())
        at = self._random.choice((0.003, 0.1, 2.0)) * self._random.random()
        if self._strikes("crash when idle"):
            self._after(at, partial(self._die, "was killed by signal 11"))
        if self._strikes("freeze when idle"):
            self._after(at, self._freeze)
        if self._strikes("closes its pipe"):
            self._after(at, partial(self.pipe.hang_up))
        if self._strikes("garbage when idle"):
            self._after(at, self._write_garbage)
        if self._strikes("says twice that it is ready"):
            self._after(at, lambda: self.pipe.write(frames.encode_ready()))
        if self._strikes("sends tasks"):
            self._after(at, lambda: self.pipe.write(frames.encode_cancels(Cancels([1]))))
        if self._strikes("answers nothing"):
            self._after(at, lambda: self.pipe.write(frames.encode_results(Results([], [], [], 0.0))))
        if self._strikes("exits in silence"):
            self._after(at, partial(self._die, "exited with status 3", silent=True))

    def _strikes(self, fault: str) -> bool:
        """Whether a fault happens now."""
        often = self._around.scenario.faults.get(fault)
        happens = often is not None and self._around.faulty and self._random.random() < often
        if happens:
            self._oracle.note("%s: %s", self._life, fault)
            self._oracle.count(f"fault: {fault}")
        return happens

    def _die(self, ending: str, delay: float = 0.0, *, silent: bool = False) -> None:
        """End the process. The ends of its pipe and of itself are noticed in any order."""
        if self._dead:
            return
        self._dead = True
        self._ending = ending
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._held.clear()
        ends = [lambda: self._oracle.exits(self._life, self._on_exit)]
        if not silent:
            ends.insert(self._random.randrange(2), self.pipe.hang_up)
        for end in ends:
            self._around.agenda.after(delay, end)
            delay += self._random.choice((0.0, 0.0, 0.002))

    def _freeze(self) -> None:
        """Stop in the middle of all, and perhaps go on some time."""
        self._frozen = True
        if self._random.random() < self._around.scenario.thaws:
            seconds = self._random.uniform(0.0, 1.5) * (self._plan.timeout + 1.0)
            self._around.agenda.after(seconds, self._thaw)

    def _thaw(self) -> None:
        if not self._dead:
            self._frozen = False
            held, self._held = self._held, []
            for action in [*held, self._begin_units]:
                self._after(0.0, action)

    def _after(self, delay: float, action: Callable[[], None]) -> None:
        """Do something later, if it lives then."""

        def due() -> None:
            self._timers.discard(timer)
            if self._frozen:
                self._held.append(action)
            elif not self._dead:
                action()

        timer = self._around.agenda.after(delay, due)
        self._timers.add(timer)

    def _arrive_later(self, callback: Callable[[], None]) -> None:
        """Carry what is in the pipe, which does not end with the worker."""
        self._around.agenda.after(self._random.choice(self._around.scenario.latencies), callback)

    def _do(self, action: Callable[[frames.Frame | None], None], frame: frames.Frame | None) -> None:
        """Take what has come through the pipe, once it can."""
        if self._frozen:
            self._held.append(partial(action, frame))
        elif not self._dead:
            action(frame)

    # -- what it is sent ---------------------------------------------------------------------------------------------

    def _take(self, frame: frames.Frame | None) -> None:
        if isinstance(frame, Tasks):
            cases = [self._oracle.by_id[task_id] for task_id in frame.ids]
            self._waiting.extend([cases] if self._plan.batch_size > 1 else [[case] for case in cases])
            self._begin_units()
        elif isinstance(frame, Cancels):
            self._left.update(frame.ids)
        elif isinstance(frame, Credits):
            for task_id, size in zip(frame.ids, frame.sizes, strict=True):
                if task_id in self._outstanding:
                    self._outstanding[task_id] -= size
        elif self._random.random() >= self._around.scenario.ignores_stop:
            self._stopping = True
            if self._random.random() < 0.5:
                self._waiting.clear()
            self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self._stopping and not self._running and not self._waiting:
            self._after(self._random.choice((0.0, 0.01, 0.3)), partial(self._die, "exited with status 0"))

    # -- its work ----------------------------------------------------------------------------------------------------

    def _begin_units(self) -> None:
        """Begin what waits, in order, as far as there is room."""
        while self._waiting and self._running < self._plan.concurrency and not (self._dead or self._frozen):
            if self._strikes("crash before it begins"):
                self._die("was killed by signal 11")
            elif self._strikes("freeze before it begins"):
                self._freeze()
            else:
                self._running += 1
                self._begin(self._waiting.popleft())

    def _begin(self, unit: list[Case]) -> None:
        self._begun += len(unit)
        self._life.begun.update(case.id for case in unit)
        self._beat()
        self._go_on(self._work(unit))

    def _go_on(self, unit: Iterator[float]) -> None:
        """Run a unit of work until it has to wait; it yields the seconds."""
        delay = next(unit, None)
        if self._dead:
            return
        if delay is None:
            self._running -= 1
            self._begin_units()
            self._stop_if_done()
        else:
            self._after(delay, partial(self._go_on, unit))

    def _beat(self) -> None:
        self._beats += 1
        self._life.still_since = self._oracle.now

    def _work(self, unit: list[Case]) -> Iterator[float]:
        """Do a unit of work, and yield where it takes time."""
        seconds = self._random.uniform(self._pace.least, self._pace.most)
        yield seconds / 2
        if any(case.arrival.poison == self._stage for case in unit):
            self._oracle.count("fault: poison")
            self._die("was killed by signal 11")
            return
        if self._strikes("crash at work"):
            self._die("was killed by signal 11")
            return
        if self._strikes("freeze at work"):
            self._freeze()
            yield 0.0
        yield seconds / 2
        if self._plan.streams:
            yield from self._stream(unit)
        else:
            self._gathered += [(case.id, *self._result(case), seconds) for case in unit]
            self._send_gathered()
        if self._strikes("crash after its answer"):
            self._die("was killed by signal 11")

    def _result(self, case: Case) -> tuple[int, bytes]:
        """Return the answer to a request, which tells the way that it has come."""
        if case.id in self._left:
            return CANCELLED, b""
        if case.arrival.fails_at == self._stage:
            return 422, b"error of %s" % case.name.encode()
        return 200, b"" if self._plan.streams else case.payload + b">%d" % self._stage

    # -- its answers -------------------------------------------------------------------------------------------------

    def _send_gathered(self) -> None:
        """Send what it has made; a quick worker that has more to do may wait with it."""
        more = self._plan.ordered and self._plan.batch_size == 1 and self._waiting
        if not more or self._random.random() < 0.5:
            answers, self._gathered = self._gathered, []
            self._send_answers(answers)

    def _send_answers(self, answers: list[tuple[int, int, bytes, float]]) -> None:
        if self._strikes("garbage"):
            self._write_garbage()
        elif self._strikes("answers twice"):
            self._write_results(answers)
            self._write_results(answers)
        elif self._strikes("answers what it was not given"):
            self._write_results([(self._random.choice((0, 1, 2, 999)), 200, b"not mine", 0.01), *answers])
        elif self._strikes("answers in the wrong order"):
            self._write_results(answers[::-1])
        elif not self._plan.streams and self._strikes("streams what is no stream"):
            self.pipe.write(frames.encode_chunks(Chunks([answers[0][0]], [b"event"])))
        elif len(answers) > 1 and self._strikes("answers half"):
            self._write_results(answers[: len(answers) // 2])
        else:
            self._write_results(answers)

    def _write_results(self, answers: Sequence[tuple[int, int, bytes, float]]) -> None:
        ids, codes, payloads, seconds = zip(*answers, strict=True)
        self._beat()
        self.pipe.write(frames.encode_results(Results(ids, codes, payloads, sum(seconds))))

    def _write_garbage(self) -> None:
        """Write what is no frame, or not a whole one."""
        if self._random.random() < 0.5:
            self.pipe.write(self._random.randbytes(40))
        else:
            whole = frames.encode_ready()
            self.pipe.write(whole[: self._random.randrange(1, len(whole))])
            self._die("was killed by signal 11")

    # -- its streams -------------------------------------------------------------------------------------------------

    def _stream(self, unit: list[Case]) -> Iterator[float]:
        """Send events for each request of a unit, in turn, until all have ended."""
        left = {case: self._random.randint(0, self._pace.events) for case in unit}
        numbers = dict.fromkeys(unit, 0)
        while left:
            for case in [case for case in left if case.id in self._left or not left[case]]:
                del left[case]
                self._end(case, *self._result(case))
            full = [case for case in left if self._outstanding.get(case.id, 0) >= self._limit]
            if full and len(unit) > 1:
                # Nobody waits for one client of several.
                for case in full:
                    del left[case]
                    self._end(case, 408, b"the client does not read its stream")
            elif full and not self._strikes("too many events"):
                self._beat()
                yield BEAT_SECONDS
                continue
            if left:
                self._emit(left, numbers)
                yield self._random.uniform(self._pace.least, self._pace.most)

    def _emit(self, left: dict[Case, int], numbers: dict[Case, int]) -> None:
        """Send an event for some of the streams."""
        some = [case for case in left if len(left) == 1 or self._random.random() < 0.7]
        chunks = []
        for case in some:
            numbers[case] += 1
            left[case] -= 1
            chunk = b"%d.%d" % (case.number, numbers[case])
            chunks.append(chunk.ljust(self._random.choice((1, 1, 10, self._limit // 3, self._limit + 5)), b"."))
            self._outstanding[case.id] = self._outstanding.get(case.id, 0) + len(chunks[-1])
        ids = [case.id for case in some]
        if self._strikes("events for another"):
            ids = [task_id + self._random.choice((1, 999)) for task_id in ids]
        if ids:
            self._beat()
            self.pipe.write(frames.encode_chunks(Chunks(ids, chunks)))

    def _end(self, case: Case, code: int, payload: bytes) -> None:
        """Send the end of a stream."""
        self._outstanding.pop(case.id, None)
        self._send_answers([(case.id, code, payload, self._pace.most)])
