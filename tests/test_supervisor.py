from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fakes import PATIENCE, FakeClock, FakeLauncher, FakeWorker, Held, settled_loop, spec

from mosec_asgi.errors import StartupError
from mosec_asgi.messages import Chunks, LinkError, Results
from mosec_asgi.pool import rolling
from mosec_asgi.pool.lifecycle import State
from mosec_asgi.pool.supervisor import CLOSE_SECONDS, DRAIN_SECONDS, EXIT_SECONDS, PoolWorker, Supervisor

START_TIMEOUT = 1234.5
GARBAGE = "broke its pipe (garbage came from it: no frame)"


@dataclass
class Timer:
    """A timer of `Timers`."""

    delay: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        """Do what the loop does when its time has come."""
        if not self.cancelled:
            self.cancelled = True
            self.callback()


class Timers:
    """Stands in for the loop's timers: what was asked for, to be fired by hand."""

    def __init__(self) -> None:
        # Of replacements, of workers that start, and of workers that should exit by themselves.
        self.relaunches: list[Timer] = []
        self.starts: list[Timer] = []
        self.exits: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        timer = Timer(delay, lambda: callback(*arguments))
        if delay == START_TIMEOUT:
            self.starts.append(timer)
        elif delay == EXIT_SECONDS and not arguments:
            self.exits.append(timer)
        else:
            self.relaunches.append(timer)
        return timer

    @property
    def delays(self) -> list[float]:
        """The waits before the replacements."""
        return [timer.delay for timer in self.relaunches]

    @property
    def running(self) -> list[Timer]:
        """The timers that are still to fire."""
        return [timer for timer in [*self.relaunches, *self.starts, *self.exits] if not timer.cancelled]

    def relaunch(self) -> None:
        """Let the last replacement be due."""
        self.relaunches[-1].fire()


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.results: list[tuple[PoolWorker, Results]] = []
        self.streamed: list[tuple[PoolWorker, Chunks]] = []
        self.ready: list[PoolWorker] = []
        self.refuses = False
        # Workers that have tasks, and how many workers there were to be.
        self.busy: set[PoolWorker] = set()
        self.sizes: list[int] = []

    def worker_draining(self, worker: PoolWorker) -> None:
        self.events.append(("draining", worker.worker_id))

    def has_tasks(self, worker: PoolWorker) -> bool:
        return worker in self.busy

    def resized(self, num: int) -> None:
        self.sizes.append(num)

    def worker_ready(self, worker: PoolWorker) -> None:
        self.events.append(("ready", worker.worker_id))
        self.ready.append(worker)

    def worker_results(self, worker: PoolWorker, results: Results) -> None:
        if self.refuses:
            raise LinkError("answered task 9, which it did not have")
        self.results.append((worker, results))

    def worker_chunks(self, worker: PoolWorker, chunks: Chunks) -> None:
        if self.refuses:
            raise LinkError("sent events of task 9, which it did not have")
        self.streamed.append((worker, chunks))

    def worker_gone(self, worker: PoolWorker) -> None:
        # It can still be told how far it has come.
        worker.link.progress()
        self.events.append(("gone", worker.worker_id))

    def stage_down(self) -> None:
        self.events.append(("down", 0))


class Pool:
    """A supervisor with all that it talks to."""

    def __init__(self, num: int = 1, variables: list[dict[str, str]] | None = None) -> None:
        self.clock = FakeClock()
        self.timers = Timers()
        self.launcher = FakeLauncher()
        self.heard = Heard()
        self.supervisor = Supervisor(
            [spec(worker_id=number) for number in range(1, num + 1)],
            variables,
            self.launcher,
            self.heard,
            self.clock,
            self.timers,  # type: ignore[arg-type]
            START_TIMEOUT,
        )
        self.supervisor.start()

    @property
    def last(self) -> FakeWorker:
        """The worker that was launched last."""
        return self.launcher.launched[-1]

    async def started(self) -> None:
        """Let all workers become ready."""
        for worker in self.launcher.alive():
            worker.ready()
        await self.wait_started()

    async def wait_started(self) -> None:
        await asyncio.wait_for(self.supervisor.wait_started(), PATIENCE)

    async def wait_stopped(self) -> None:
        await asyncio.wait_for(self.supervisor.wait_stopped(), PATIENCE)


pytestmark = pytest.mark.usefixtures("logged")


def messages(logged: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in logged.records if record.levelno == level]


# -- the start ---------------------------------------------------------------------------------------------------------


async def test_each_place_gets_its_worker_with_its_own_environment() -> None:
    pool = Pool(num=3, variables=[{"GPU": "0"}, {"GPU": "1"}, {"GPU": "2"}])
    assert [worker.spec.worker_id for worker in pool.launcher.launched] == [1, 2, 3]
    assert [worker.variables for worker in pool.launcher.launched] == [{"GPU": "0"}, {"GPU": "1"}, {"GPU": "2"}]
    assert (pool.supervisor.size, pool.supervisor.ready, len(pool.supervisor.workers)) == (3, 0, 3)


async def test_the_start_is_over_when_every_worker_has_said_so() -> None:
    pool = Pool(num=2)
    start = asyncio.ensure_future(pool.supervisor.wait_started())
    pool.launcher.launched[1].ready()
    await settled_loop()
    assert not start.done()
    assert pool.heard.events == [("ready", 2)]
    pool.launcher.launched[0].ready()
    await asyncio.wait_for(start, PATIENCE)
    assert pool.supervisor.ready == 2


async def test_when_no_worker_can_start_the_traceback_is_raised() -> None:
    pool = Pool(num=2)
    for worker in pool.launcher.launched:
        worker.fail_to_start("Traceback ...\nOSError: no weights")
    with pytest.raises(StartupError, match=r"(?s)no worker of stage Echo_1 could be started.*status 1.*no weights"):
        await pool.wait_started()
    assert pool.supervisor.down
    assert "ready" not in dict(pool.heard.events)


async def test_a_worker_that_dies_before_it_is_ready_has_failed_to_start() -> None:
    pool = Pool()
    pool.last.exit("was killed by signal 9")
    with pytest.raises(StartupError, match="was killed by signal 9"):
        await pool.wait_started()


async def test_a_launch_that_is_refused_is_a_failed_start() -> None:
    pool = Pool()
    pool.launcher.refusal = StartupError("the worker class cannot be sent")
    pool.last.exit()
    pool.timers.relaunch()
    with pytest.raises(StartupError, match="cannot be sent"):
        await pool.wait_started()
    assert pool.supervisor.workers == []


async def test_one_worker_is_enough_and_the_others_are_tried_again(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool(num=2)
    pool.launcher.launched[0].fail_to_start("OSError: no GPU")
    pool.launcher.launched[1].ready()
    await pool.wait_started()
    (message,) = messages(logged, logging.ERROR)
    assert "no GPU" in message
    assert not pool.supervisor.down
    pool.timers.relaunch()
    assert pool.last.spec.worker_id == 1
    pool.last.ready()
    assert pool.supervisor.ready == 2


# -- deaths ------------------------------------------------------------------------------------------------------------


async def test_the_place_of_a_dead_worker_is_taken_at_once_the_first_time(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool(num=2)
    await pool.started()
    pool.launcher.launched[1].exit("was killed by signal 11")
    assert pool.heard.events[-1] == ("gone", 2)
    assert pool.timers.delays == [0.0]
    assert any("was killed by signal 11" in message for message in messages(logged, logging.ERROR))
    pool.timers.relaunch()
    assert (len(pool.launcher.launched), pool.last.spec.worker_id) == (3, 2)
    pool.last.ready()
    assert pool.heard.events[-1] == ("ready", 2)
    assert pool.supervisor.restarts == 1


@pytest.mark.parametrize("killed", [False, True])
async def test_the_log_says_who_may_have_killed_a_worker_that_the_pool_has_not(
    killed: bool, logged: pytest.LogCaptureFixture
) -> None:
    pool = Pool()
    await pool.started()
    pool.last.dies_when_killed = False
    if killed:
        pool.supervisor.kill(pool.supervisor.workers[0], "was stuck")
    pool.last.exit("was killed by signal 9 (SIGKILL)")
    (message, *_) = messages(logged, logging.ERROR)
    assert ("not by this server: perhaps by the system for lack of memory" in message) is not killed
    assert ("(SIGKILL); it was stuck" in message) is killed


async def test_workers_that_keep_dying_are_replaced_ever_more_slowly() -> None:
    pool = Pool()
    await pool.started()
    for _ in range(5):
        pool.last.exit()
        pool.timers.relaunch()
        pool.last.ready()
    first, second, *later = pool.timers.delays
    assert first == 0.0 < second
    assert later == pytest.approx([2 * second, 4 * second, 8 * second])


async def test_workers_that_have_answered_are_replaced_at_once_however_often_they_die() -> None:
    pool = Pool()
    await pool.started()
    for _ in range(5):
        pool.last.reply_unasked([1])
        pool.last.exit()
        pool.timers.relaunch()
        pool.last.ready()
    assert pool.timers.delays == [0.0] * 5


async def test_an_answer_to_nothing_and_one_that_is_refused_are_no_answers() -> None:
    pool = Pool()
    await pool.started()
    for _ in range(2):
        pool.last.reply_unasked([])
        pool.last.exit()
        pool.timers.relaunch()
        pool.last.ready()
    pool.heard.refuses = True
    pool.last.reply_unasked([9])
    pool.last.exit()
    first, *later = pool.timers.delays
    assert first == 0.0
    assert later == pytest.approx([0.1, 0.2])


async def test_starts_that_keep_failing_are_tried_ever_more_slowly() -> None:
    pool = Pool()
    for _ in range(12):
        pool.last.fail_to_start("no")
        pool.timers.relaunch()
    assert pool.timers.delays[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert pool.timers.delays[-1] == 30.0


async def test_a_healthy_spell_makes_early_deaths_forgotten() -> None:
    pool = Pool()
    await pool.started()
    for _ in range(4):
        pool.last.exit()
        pool.timers.relaunch()
        pool.last.ready()
    pool.clock.advance(60.0)
    pool.last.exit()
    assert pool.timers.delays[-1] == 0.0


async def test_no_worker_is_launched_before_its_forerunner_has_left_the_system() -> None:
    pool = Pool()
    await pool.started()
    pool.last.dies_when_killed = False
    pool.last.close_pipe("broke its pipe (writing to it failed)")
    assert pool.last.killed
    assert pool.timers.relaunches == []
    assert len(pool.supervisor.workers) == 1
    pool.last.exit()
    assert len(pool.timers.relaunches) == 1


ENDS = pytest.mark.parametrize("first", ["pipe", "process", "process, and a child holds the pipe"])


def end(worker: FakeWorker, first: str, ending: str = "exited with status 3") -> None:
    """End a worker in one of the orders in which the ends of its pipe and of its process may be noticed."""
    if first == "pipe":
        worker.drain()
        worker.close_pipe()
        worker.exit(ending)
    else:
        worker.pipe_outlives_it = first != "process"
        worker.exit(ending)
        worker.close_pipe()


@ENDS
async def test_a_worker_is_gone_once_whatever_of_it_ends_first(first: str, logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    end(pool.last, first)
    assert pool.heard.events == [("ready", 1), ("gone", 1)]
    assert not pool.last.killed
    assert pool.supervisor.workers == []
    (message,) = messages(logged, logging.ERROR)
    assert "process 100 exited with status 3; another" in message
    assert [timer.delay for timer in pool.timers.running] == [0.0], "nothing is left but its replacement"


@ENDS
async def test_a_worker_is_heard_to_its_last_word(first: str) -> None:
    pool = Pool()
    await pool.started()
    pool.last.unread = [("chunks", Chunks([7], [b"event"])), ("results", Results([7], [200], [b""], 0.1))]
    end(pool.last, first)
    assert [list(events.ids) for _, events in pool.heard.streamed] == [[7]]
    assert [list(results.ids) for _, results in pool.heard.results] == [[7]]
    assert pool.heard.events == [("ready", 1), ("gone", 1)]


@ENDS
async def test_the_traceback_of_a_failed_start_is_heard_whatever_ends_first(first: str) -> None:
    pool = Pool()
    pool.last.unread = [("failed", "OSError: no weights")]
    end(pool.last, first)
    with pytest.raises(StartupError, match=r"(?s)exited with status 3; it could not start\nOSError: no weights"):
        await pool.wait_started()
    assert pool.heard.events == [("down", 0)]


@ENDS
async def test_a_worker_that_ends_just_after_it_was_ready_has_been_ready(first: str) -> None:
    pool = Pool()
    pool.last.unread = [("ready",)]
    end(pool.last, first)
    await pool.wait_started()
    assert pool.heard.events == [("ready", 1), ("gone", 1)]
    assert not pool.supervisor.down


@ENDS
async def test_garbage_in_its_last_words_changes_nothing_for_a_dead_worker(first: str) -> None:
    pool = Pool()
    await pool.started()
    pool.last.unread = [("results", Results([7], [200], [b""], 0.1)), ("closed", GARBAGE)]
    end(pool.last, first)
    await settled_loop()
    assert len(pool.heard.results) == 1
    assert pool.heard.events == [("ready", 1), ("gone", 1)]
    assert len(pool.timers.relaunches) == 1


async def test_a_worker_that_has_closed_its_pipe_gets_a_moment_to_exit_by_itself(
    logged: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()
    await pool.started()
    pool.last.close_pipe()
    assert pool.heard.events[-1] == ("gone", 1)
    assert not pool.last.killed
    pool.last.exit("exited with status 3")
    assert pool.timers.running == pool.timers.relaunches
    assert any("exited with status 3" in message for message in messages(logged, logging.ERROR))


async def test_a_worker_that_has_closed_its_pipe_and_stays_is_killed(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    pool.last.close_pipe()
    (timer,) = pool.timers.exits
    timer.fire()
    assert pool.last.killed
    await settled_loop()
    assert any("it had closed its link, and did not exit" in message for message in messages(logged, logging.ERROR))
    assert len(pool.timers.relaunches) == 1
    assert pool.heard.events == [("ready", 1), ("gone", 1)]


async def test_a_worker_that_could_not_start_and_stays_is_killed() -> None:
    pool = Pool()
    pool.last.say("failed", "OSError: no weights")
    assert not pool.last.killed
    (timer,) = pool.timers.exits
    assert pool.timers.running == [timer], "the time of its start is over"
    timer.fire()
    assert pool.last.killed
    with pytest.raises(StartupError, match="no weights"):
        await pool.wait_started()


async def test_a_worker_that_breaks_its_pipe_is_killed_and_the_log_says_why(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    pool.last.close_pipe(GARBAGE)
    assert pool.last.killed
    assert pool.heard.events[-1] == ("gone", 1)
    await settled_loop()
    assert any("garbage came from it" in message for message in messages(logged, logging.ERROR))


async def test_answers_are_handed_on_with_their_worker() -> None:
    pool = Pool(num=2)
    await pool.started()
    pool.launcher.launched[1].reply_unasked([3, 4])
    ((worker, results),) = pool.heard.results
    assert worker is pool.heard.ready[1]
    assert list(results.ids) == [3, 4]


async def test_a_worker_whose_answers_are_refused_is_killed(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    pool.heard.refuses = True
    pool.last.reply_unasked([9])
    assert pool.last.killed
    assert pool.heard.events[-1] == ("gone", 1)
    await settled_loop()
    assert any("answered task 9" in message for message in messages(logged, logging.ERROR))


async def test_events_are_handed_on_with_their_worker() -> None:
    pool = Pool(num=2)
    await pool.started()
    pool.launcher.launched[1].emit([3, 4, 3], [b"a", b"b", b"c"])
    ((worker, events),) = pool.heard.streamed
    assert worker is pool.heard.ready[1]
    assert (list(events.ids), list(events.payloads)) == ([3, 4, 3], [b"a", b"b", b"c"])


async def test_a_worker_whose_events_are_refused_is_killed(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    pool.heard.refuses = True
    pool.last.emit([9], [b""])
    assert pool.last.killed
    assert pool.heard.events[-1] == ("gone", 1)
    await settled_loop()
    assert any("sent events of task 9" in message for message in messages(logged, logging.ERROR))


@pytest.mark.parametrize(
    ("before", "event", "what"),
    [
        ("starting", "results", [Results([1], [200], [b""], 0.0)]),
        ("starting", "chunks", [Chunks([1], [b""])]),
        ("ready", "ready", []),
        ("ready", "failed", ["too late"]),
    ],
    ids=["results too early", "events too early", "ready twice", "failed after ready"],
)
async def test_a_worker_that_speaks_out_of_turn_is_killed_and_the_log_says_why(
    before: str, event: str, what: list[Any], logged: pytest.LogCaptureFixture
) -> None:
    pool = Pool()
    if before == "ready":
        await pool.started()
    pool.last.say(event, *what)
    assert pool.last.killed
    assert pool.heard.results == pool.heard.streamed == []
    assert pool.supervisor.ready == 0
    pool.supervisor.ask_to_stop()
    await pool.wait_stopped()
    assert any(f"while it was {before}" in message for message in messages(logged, logging.WARNING))


async def test_payloads_that_come_too_early_or_too_late_are_given_back() -> None:
    pool = Pool()
    await pool.started()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    late, early = Held(), Held()
    pool.last.say("results", Results([1, 2], [200, 200], [late, b"x"], 0.1))
    assert (late.drops, pool.last.killed) == (1, False)
    pool.last.exit()
    pool = Pool()
    pool.last.say("results", Results([1], [200], [early], 0.1))
    assert (early.drops, pool.last.killed) == (1, True)
    await settled_loop()


async def test_what_follows_nonsense_is_not_heard() -> None:
    pool = Pool()
    await pool.started()
    pool.last.say("ready")
    pool.last.say("results", Results([1], [200], [b""], 0.0))
    assert pool.last.killed
    assert pool.heard.results == []


# -- the time of a start -----------------------------------------------------------------------------------------------


async def test_no_worker_starts_within_its_time_and_the_start_fails_with_what_to_change() -> None:
    pool = Pool(num=2)
    for timer in pool.timers.starts:
        timer.fire()
    assert all(worker.killed for worker in pool.launcher.launched)
    with pytest.raises(
        StartupError,
        match=r"(?s)no worker of stage Echo_1 could.*not ready within 1234.5 s.*raise the setting start_timeout",
    ):
        await pool.wait_started()
    assert pool.heard.events == [("down", 0)]


async def test_one_worker_that_is_not_ready_in_time_does_not_stop_the_others(
    logged: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(num=2)
    pool.launcher.launched[1].ready()
    pool.timers.starts[0].fire()
    await pool.wait_started()
    (message,) = messages(logged, logging.ERROR)
    assert "not ready within" in message
    pool.timers.relaunch()
    assert pool.last.spec.worker_id == 1
    pool.last.ready()
    assert pool.supervisor.ready == 2


async def test_a_replacement_that_is_not_ready_in_time_is_tried_again_ever_more_slowly() -> None:
    pool = Pool()
    await pool.started()
    pool.last.exit()
    for _ in range(3):
        pool.timers.relaunch()
        pool.timers.starts[-1].fire()
        await settled_loop()
    assert pool.supervisor.down
    assert pool.timers.delays == pytest.approx([0.0, 0.1, 0.2, 0.4])
    pool.timers.relaunch()
    pool.last.ready()
    assert not pool.supervisor.down


@pytest.mark.parametrize("end", ["ready", "failed", "died", "stop"])
async def test_the_time_of_a_start_ends_with_the_start(end: str) -> None:
    pool = Pool()
    if end == "ready":
        pool.last.ready()
    elif end == "failed":
        pool.last.fail_to_start("no")
    elif end == "died":
        pool.last.exit()
    else:
        pool.supervisor.ask_to_stop()
    (timer,) = pool.timers.starts
    assert timer.cancelled
    assert not pool.last.killed


async def test_a_worker_that_is_still_starting_at_the_end_may_take_its_time_to_stop(
    logged: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    assert pool.timers.running == []
    pool.last.exit("exited with status 0")
    await pool.wait_stopped()
    assert messages(logged, logging.WARNING) + messages(logged, logging.ERROR) == []


# -- a stage that is down ----------------------------------------------------------------------------------------------


async def test_a_stage_is_down_when_no_worker_is_ready_and_every_last_start_failed() -> None:
    pool = Pool(num=2)
    await pool.started()
    first, second = pool.launcher.launched
    first.exit()
    pool.timers.relaunch()
    pool.last.fail_to_start("no")
    assert not pool.supervisor.down, "the second still works"
    second.exit()
    assert not pool.supervisor.down, "the second's next start may work"
    pool.timers.relaunch()
    pool.last.fail_to_start("no")
    assert pool.supervisor.down
    assert pool.heard.events[-1] == ("down", 0)
    pool.timers.relaunch()
    pool.last.ready()
    assert not pool.supervisor.down
    assert pool.supervisor.ready == 1


async def test_a_start_that_failed_long_ago_and_then_worked_does_not_count() -> None:
    pool = Pool(num=2)
    first, second = pool.launcher.launched
    first.fail_to_start("no")
    pool.timers.relaunch()
    pool.last.ready()
    second.fail_to_start("no")
    assert not pool.supervisor.down
    assert ("down", 0) not in pool.heard.events


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_workers_are_asked_to_stop_and_waited_for() -> None:
    pool = Pool(num=2)
    await pool.started()
    for worker in pool.launcher.launched:
        worker.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    assert all(worker.asked_to_stop and not worker.killed for worker in pool.launcher.launched)
    assert pool.heard.events[-2:] == [("gone", 1), ("gone", 2)]
    assert pool.supervisor.ready == 0
    end = asyncio.ensure_future(pool.supervisor.wait_stopped())
    pool.launcher.launched[0].exit("exited with status 0")
    await settled_loop()
    assert not end.done()
    pool.launcher.launched[1].exit("exited with status 0")
    await asyncio.wait_for(end, PATIENCE)
    assert pool.timers.relaunches == [], "nobody is started any more"


async def test_a_worker_that_stops_as_asked_is_no_news(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    pool.supervisor.ask_to_stop()
    await pool.wait_stopped()
    assert messages(logged, logging.WARNING) + messages(logged, logging.ERROR) == []


async def test_a_worker_that_closes_its_pipe_while_it_stops_may_end_in_its_own_time() -> None:
    pool = Pool()
    await pool.started()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    pool.last.close_pipe()
    assert not pool.last.killed
    pool.last.exit("exited with status 0")
    await pool.wait_stopped()


async def test_a_worker_that_finishes_its_work_while_it_stops_is_left_in_peace(
    logged: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()
    await pool.started()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    pool.heard.refuses = True  # as the coordinator does: it has taken back all tasks of a worker that is gone
    pool.last.emit([1], [b"event"])
    pool.last.reply_unasked([1])
    assert not pool.last.killed
    pool.last.exit("exited with status 0")
    await pool.wait_stopped()
    assert messages(logged, logging.WARNING) == []


async def test_a_worker_that_was_still_starting_may_say_that_it_is_ready_and_gets_no_work() -> None:
    pool = Pool()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    pool.last.ready()
    assert pool.heard.events == []
    assert not pool.last.killed
    pool.last.exit("exited with status 0")
    await pool.wait_stopped()


async def test_workers_that_do_not_stop_can_be_killed(logged: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.started()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    pool.supervisor.kill_all("did not stop when asked")
    await pool.wait_stopped()
    assert pool.last.killed
    assert any("did not stop when asked" in message for message in messages(logged, logging.WARNING))
    assert pool.heard.events.count(("gone", 1)) == 1


async def test_a_replacement_that_was_due_is_not_started_after_the_end() -> None:
    pool = Pool()
    await pool.started()
    pool.last.exit()
    pool.supervisor.ask_to_stop()
    pool.timers.relaunch()
    assert len(pool.launcher.launched) == 1
    await pool.wait_stopped()


async def test_a_worker_that_fails_to_start_during_the_end_is_not_tried_again() -> None:
    pool = Pool()
    pool.last.stops_when_asked = False
    pool.supervisor.ask_to_stop()
    pool.last.fail_to_start("interrupted")
    assert pool.timers.relaunches == []
    await pool.wait_stopped()


async def test_stopping_twice_asks_once() -> None:
    pool = Pool()
    await pool.started()
    pool.supervisor.ask_to_stop()
    pool.supervisor.ask_to_stop()
    assert pool.heard.events == [("ready", 1), ("gone", 1)]
    await pool.wait_stopped()


async def test_a_worker_that_was_lost_before_the_end_is_told_of_and_not_replaced(
    logged: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()
    await pool.started()
    pool.last.dies_when_killed = False
    pool.last.close_pipe(GARBAGE)
    pool.supervisor.ask_to_stop()
    assert not pool.last.asked_to_stop, "its pipe is gone"
    assert pool.heard.events == [("ready", 1), ("gone", 1)]
    pool.last.exit("was killed by signal 9")
    await pool.wait_stopped()
    (message,) = messages(logged, logging.WARNING)
    assert "garbage came from it" in message
    assert pool.timers.running == []


async def test_a_worker_that_is_to_exit_by_itself_is_killed_in_time_though_the_end_has_begun() -> None:
    pool = Pool()
    await pool.started()
    pool.last.close_pipe()
    pool.supervisor.ask_to_stop()
    (timer,) = pool.timers.running
    timer.fire()
    assert pool.last.killed
    await pool.wait_stopped()


async def test_abandoned_workers_are_killed_and_reaped_without_the_loop() -> None:
    pool = Pool(num=2)
    await pool.started()
    for worker in pool.launcher.launched:
        worker.dies_when_killed = False
    pool.supervisor.abandon()
    assert all(worker.killed and worker.reaped for worker in pool.launcher.launched)


async def test_killing_a_worker_twice_gives_its_tasks_back_once_and_the_first_reason_counts(
    logged: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()
    await pool.started()
    (worker,) = pool.supervisor.workers
    pool.last.dies_when_killed = False
    pool.supervisor.kill(worker, "hung")
    pool.supervisor.kill(worker, "hung again")
    assert pool.heard.events == [("ready", 1), ("gone", 1)]
    pool.last.exit()
    assert any(message.endswith("it hung; another is started in 0.0 s") for message in messages(logged, logging.ERROR))


async def test_a_supervisor_and_its_workers_say_what_they_are() -> None:
    pool = Pool(num=2)
    pool.launcher.launched[0].ready()
    assert repr(pool.supervisor) == "<Supervisor Echo_1 1 of 2 ready>"
    assert [repr(worker) for worker in pool.supervisor.workers] == [
        "<PoolWorker Echo_1 1 ready>",
        "<PoolWorker Echo_1 2 starting>",
    ]


# -- workers that leave ------------------------------------------------------------------------------------------------


async def test_a_worker_drains_once_its_successor_is_ready_and_ends_when_it_has_answered_all() -> None:
    pool = Pool()
    await pool.started()
    first, place = pool.last, pool.supervisor.places[0]
    old = place.worker
    assert old is not None
    pool.heard.busy.add(old)
    pool.supervisor.begin(place, place.spec)
    assert old.state is State.READY
    pool.last.ready()
    assert place.worker is not old
    assert (old.state, pool.supervisor.ready, pool.supervisor.draining) == (State.DRAINING, 1, 1)
    assert not first.asked_to_stop
    first.reply_unasked([1])
    assert old.state is State.DRAINING
    pool.heard.busy.clear()
    first.reply_unasked([2])
    assert (old.state, first.asked_to_stop) == (State.STOPPING, True)
    first.exit()
    await asyncio.wait_for(pool.supervisor.wait_ended([old]), PATIENCE)
    assert pool.supervisor.workers == [place.worker]
    assert pool.supervisor.restarts == 0
    assert not pool.timers.running


async def test_a_worker_that_drains_too_long_is_killed_and_gives_back_what_it_has() -> None:
    pool = Pool()
    await pool.started()
    first, place = pool.last, pool.supervisor.places[0]
    old = place.worker
    assert old is not None
    pool.heard.busy.add(old)
    pool.supervisor.begin(place, place.spec)
    pool.last.ready()
    next(timer for timer in pool.timers.relaunches if timer.delay == DRAIN_SECONDS and not timer.cancelled).fire()
    assert ("gone", 1) in pool.heard.events
    assert first.killed
    first.exit()
    assert pool.supervisor.workers == [place.worker]


async def test_a_worker_that_does_not_stop_when_asked_is_killed() -> None:
    pool = Pool()
    await pool.started()
    first, place = pool.last, pool.supervisor.places[0]
    pool.supervisor.begin(place, place.spec)
    pool.last.ready()
    assert first.asked_to_stop
    assert not first.killed
    next(timer for timer in pool.timers.relaunches if timer.delay == CLOSE_SECONDS and not timer.cancelled).fire()
    assert first.killed


async def test_a_successor_that_cannot_start_changes_nothing() -> None:
    pool = Pool()
    await pool.started()
    place = pool.supervisor.places[0]
    old = place.worker
    worker = pool.supervisor.begin(place, place.spec)
    pool.last.fail_to_start("OSError: no weights")
    with pytest.raises(StartupError, match="no weights"):
        await pool.supervisor.wait_ready(worker)
    assert (place.worker, pool.supervisor.ready, pool.supervisor.down) == (old, 1, False)
    assert pool.supervisor.workers == [old]


async def test_a_successor_takes_the_place_of_a_worker_that_dies_meanwhile() -> None:
    pool = Pool()
    await pool.started()
    first, place = pool.last, pool.supervisor.places[0]
    worker = pool.supervisor.begin(place, place.spec)
    launched = len(pool.launcher.launched)
    first.exit("was killed by signal 9")
    assert place.worker is worker
    assert len(pool.launcher.launched) == launched
    pool.last.ready()
    await pool.supervisor.wait_ready(worker)
    assert (pool.supervisor.ready, pool.supervisor.restarts) == (1, 0)


async def test_a_change_waits_for_what_one_that_was_given_up_has_left() -> None:
    pool = Pool()
    await pool.started()
    given_up = asyncio.ensure_future(rolling.renew(pool.supervisor))
    await asyncio.sleep(0)
    left = pool.last
    left.stops_when_asked = False
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert left.asked_to_stop
    launched = len(pool.launcher.launched)
    renewed = asyncio.ensure_future(rolling.renew(pool.supervisor))
    await settled_loop()
    assert len(pool.launcher.launched) == launched, "two beside the one that serves"
    left.exit()
    await settled_loop()
    assert len(pool.launcher.launched) == launched + 1
    pool.last.ready()
    await asyncio.wait_for(renewed, PATIENCE)


async def test_places_without_a_worker_that_serves_are_taken_away_first() -> None:
    pool = Pool(num=3)
    pool.launcher.launched[1].ready()
    pool.launcher.launched[0].fail_to_start("OSError: no GPU")
    pool.launcher.launched[2].ready()
    await pool.wait_started()
    pool.supervisor.remove_places(1)
    assert [place.spec.worker_id for place in pool.supervisor.places] == [2, 3]
    pool.supervisor.remove_places(1)
    assert [place.spec.worker_id for place in pool.supervisor.places] == [2]
    assert pool.heard.sizes == [2, 1]
