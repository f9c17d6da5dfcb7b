"""A simulated worker: it works, answers and streams as real ones do, and goes wrong as they can."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random

from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.errors import CANCELLED, StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.testing.simulation.link import SimulatedLink
from mosec_asgi.testing.simulation.messages import Asked, Failed, Ready
from mosec_asgi.testing.simulation.model import Case, Life
from mosec_asgi.testing.simulation.scenario import BARE_BYTES, LEAKED_BYTES, is_continuous
from mosec_asgi.testing.simulation.surroundings import Surroundings

# Seconds between two signs of life of a worker that waits for a client, or runs an event loop.
BEAT_SECONDS = 0.1


class SimulatedLauncher:
    """Starts the simulated workers of one stage."""

    def __init__(self, stage: int, around: Surroundings) -> None:
        self._stage = stage
        self._around = around
        self._random = Random(around.seed * 1_000 + stage)

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> SimulatedLink:
        """Start a worker; see `Launcher.launch`."""
        around = self._around
        if around.faulty and self._random.random() < around.scenario.faults.get("launch is refused", 0.0):
            around.oracle.respawn.launch_refused(self._stage, spec)
            raise StartupError("the launch was refused")
        life = around.oracle.respawn.launched(self._stage, spec)
        random = Random(around.seed * 1_000_003 + life.number)
        link = SimulatedLink(life, around, events, random)
        link.worker = worker = SimulatedWorker(life, self._stage, around, link, random)
        worker.start()
        return link

    def close(self) -> None:
        """Let go of nothing."""
        self._around.oracle.shutdown.launcher_closes(self._stage)


class SimulatedWorker:
    """One life of a simulated worker.

    Attributes:
        ending: how it ended, once it has.
    """

    def __init__(self, life: Life, stage: int, around: Surroundings, link: SimulatedLink, random: Random) -> None:
        self.ending = "is still running"
        self._life = life
        self._stage = stage
        self._around = around
        self._link = link
        self._oracle = around.oracle
        self._journal = around.oracle.journal
        self._plan: StagePlan = around.scenario.world.stages[stage]
        self._concurrency = life.spec.max_batch_size if is_continuous(self._plan) else self._plan.concurrency
        self._pace = around.scenario.paces[stage]
        self._limit = around.scenario.world.limits.stream_buffer
        self._random = random
        self._timers: set[asyncio.Handle] = set()
        self._dead = False
        # Stopped by a signal, as it were; what it was about to do is kept for when it goes on.
        self._frozen = False
        self._held: list[Callable[[], None]] = []
        self._begun = 0
        self._beats = 0
        # Units of work that wait, how many run, and answers that have been made and not sent.
        self._waiting: deque[list[Case]] = deque()
        self._running = 0
        self._gathered: list[tuple[int, int, bytes, float]] = []
        # An answer that it sends after the next one, which is the wrong order.
        self._late: list[tuple[int, int, bytes, float]] = []
        self._left: set[int] = set()
        self._outstanding: dict[int, int] = {}
        self._stopping = False

    # -- at its end of the link --------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return how far it has come."""
        return Progress(self._begun, self._beats)

    def memory(self) -> int | None:
        """Return the bytes of memory that it takes: it leaks with each task that it begins."""
        return BARE_BYTES + LEAKED_BYTES * self._begun

    def take(self, message: Asked | None) -> None:
        """Take what it was sent, once it can; None where it is asked to stop."""
        if self._frozen:
            self._held.append(partial(self._take, message))
        elif not self._dead:
            self._take(message)

    # -- life and death ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Come to life, or not."""
        delay = self._random.choice((0.0, 0.001, 0.05))
        if self._strikes("exits at start"):
            self._after(delay, partial(self.die, "exited with status 1"))
        elif self._strikes("says why it cannot start"):
            self._after(delay, self._say_failed)
        elif self._strikes("garbage at start"):
            self._after(delay, self._talk_nonsense)
        elif self._strikes("answers before it is ready"):
            self._after(delay, partial(self._say_results, [(1, 200, b"1", 0.01)]))
        elif self._strikes("starts slowly"):
            self._after(self._random.uniform(0.1, 0.95) * self._plan.start_timeout, self._get_ready)
        elif not self._strikes("hangs at start"):
            self._after(delay, self._get_ready)

    def _say_failed(self) -> None:
        self._link.say(Failed("OSError: no weights"))
        self._after(self._random.choice((0.0, 0.01)), partial(self.die, "exited with status 1"))

    def _get_ready(self) -> None:
        self._link.say(Ready())
        at = self._random.choice((0.003, 0.1, 2.0)) * self._random.random()
        if self._strikes("crash when idle"):
            self._after(at, partial(self.die, "was killed by signal 11"))
        if self._strikes("freeze when idle"):
            self._after(at, self._freeze)
        if self._strikes("closes its link"):
            self._after(at, self._link.hang_up)
        if self._strikes("garbage when idle"):
            self._after(at, self._talk_nonsense)
        if self._strikes("says twice that it is ready"):
            self._after(at, partial(self._link.say, Ready()))
        if self._strikes("says late that it cannot start"):
            self._after(at, partial(self._link.say, Failed("OSError: no weights")))
        if self._strikes("answers nothing"):
            self._after(at, partial(self._link.say, Results([], [], [], 0.0)))
        if self._strikes("exits in silence"):
            self._after(at, partial(self.die, "exited with status 3", silent=True))

    def _strikes(self, fault: str) -> bool:
        """Whether a fault happens now."""
        often = self._around.scenario.faults.get(fault)
        happens = often is not None and self._around.faulty and self._random.random() < often
        if happens:
            self._journal.note("%s: %s", self._life, fault)
            self._journal.count(f"fault: {fault}")
        return happens

    def die(self, ending: str, delay: float = 0.0, *, silent: bool = False) -> None:
        """End, in `delay` seconds. The ends of its link and of itself are noticed in any order."""
        if self._dead:
            return
        self._dead = True
        self.ending = ending
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._held.clear()
        ends = [self._link.exit]
        if not silent:
            reset = self._random.random() < 0.1
            hang_up = partial(self._link.hang_up, "broke its link (reading from it failed)" if reset else "")
            ends.insert(self._random.randrange(2), hang_up)
        for end in ends:
            self._around.agenda.after(delay, end)
            delay += self._random.choice((0.0, 0.0, 0.002))

    def _freeze(self) -> None:
        """Stop in the middle of all, and perhaps go on some time."""
        self._frozen = True
        if self._random.random() < self._around.scenario.thaws:
            seconds = self._random.uniform(0.0, 1.5) * (self._life.spec.timeout + 1.0)
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

    # -- what it is sent ---------------------------------------------------------------------------------------------

    def _take(self, message: Asked | None) -> None:
        if isinstance(message, Tasks):
            cases = [self._oracle.service.by_id[task_id] for task_id in message.ids]
            self._waiting.extend([cases] if self._plan.batch_size > 1 else [[case] for case in cases])
            self._begin_units()
        elif isinstance(message, Cancels):
            self._left.update(message.ids)
        elif isinstance(message, Credits):
            for task_id, size in zip(message.ids, message.sizes, strict=True):
                if task_id in self._outstanding:
                    self._outstanding[task_id] -= size
        elif self._random.random() >= self._around.scenario.ignores_stop:
            self._stopping = True
            if self._random.random() < 0.5:
                self._waiting.clear()
            self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self._stopping and not self._running and not self._waiting:
            self._after(self._random.choice((0.0, 0.01, 0.3)), partial(self.die, "exited with status 0"))

    # -- its work ----------------------------------------------------------------------------------------------------

    def _begin_units(self) -> None:
        """Begin what waits, in order, as far as there is room."""
        while self._waiting and self._running < self._concurrency and not (self._dead or self._frozen):
            if self._strikes("crash before it begins"):
                self.die("was killed by signal 11")
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
        self._life.still_since = self._journal.now

    def _work(self, unit: list[Case]) -> Iterator[float]:
        """Do a unit of work, and yield where it takes time."""
        seconds = self._random.uniform(self._pace.least, self._pace.most)
        yield seconds / 2
        if any(case.arrival.poison == self._stage for case in unit):
            self._journal.count("fault: poison")
            self.die("was killed by signal 11")
            return
        if self._strikes("crash at work"):
            self.die("was killed by signal 11")
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
            self.die("was killed by signal 11")

    def _result(self, case: Case) -> tuple[int, bytes]:
        """Return the answer to a request, which tells the way that it has come."""
        if case.id in self._left or self._strikes("says that its client left"):
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
        if self._late:
            answers, self._late = [*answers, *self._late], []
        if self._strikes("garbage"):
            self._talk_nonsense()
        elif self._strikes("answers twice"):
            self._say_results(answers)
            self._say_results(answers)
        elif self._strikes("answers what it was not given"):
            self._say_results([(self._random.choice((0, 1, 2, 999)), 200, b"not mine", 0.01), *answers])
        elif self._strikes("answers in the wrong order"):
            if len(answers) == 1 and self._plan.ordered:
                # If no other follows, it is one that never comes.
                self._late += answers
            else:
                self._say_results(answers[::-1])
        elif not self._plan.streams and self._strikes("streams what is no stream"):
            self._link.say(Chunks([answers[0][0]], [b"event"]))
        elif len(answers) > 1 and self._strikes("answers half"):
            self._say_results(answers[: len(answers) // 2])
        else:
            self._say_results(answers)

    def _say_results(self, answers: Sequence[tuple[int, int, bytes, float]]) -> None:
        ids, codes, payloads, seconds = zip(*answers, strict=True)
        self._beat()
        self._link.say(Results(ids, codes, payloads, sum(seconds), labels=self._labels(ids)))

    def _labels(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        """Return what the next stage may want to know; a worker labels whatever it makes up as well."""
        if all(stage.rules.plain for stage in self._oracle.service.world.stages):
            return []
        cases = [self._oracle.service.by_id.get(task_id) for task_id in ids]
        return [(1, "") if case is None else (case.arrival.cost, case.arrival.key) for case in cases]

    def _talk_nonsense(self) -> None:
        """Say what has no meaning, or break off in the middle of it."""
        if self._random.random() < 0.5:
            self._link.hang_up("broke its link (garbage came from it)")
        else:
            self._link.hang_up("broke its link (it was closed in the middle of a message)")
            self.die("was killed by signal 11")

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
            self._link.say(Chunks(ids, chunks))

    def _end(self, case: Case, code: int, payload: bytes) -> None:
        """Send the end of a stream."""
        self._outstanding.pop(case.id, None)
        self._send_answers([(case.id, code, payload, self._pace.most)])
