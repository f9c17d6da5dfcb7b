from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mosec_asgi.batching.scheduler import MAX_WINDOW, WINDOW_SECONDS, Assignment, Scheduler
from mosec_asgi.batching.task import State, Task

_numbers = itertools.count(1)


def enqueue(scheduler: Scheduler[str], count: int = 1, now: float = 0.0) -> list[Task]:
    tasks = [Task(next(_numbers), "", 0, (0,), b"", now, now + 100.0) for _ in range(count)]
    for task in tasks:
        scheduler.enqueue(task, now)
    return tasks


def assign(scheduler: Scheduler[str], now: float = 0.0) -> dict[str, list[list[Task]]]:
    """Return the assigned tasks by worker, a list for each frame."""
    by_worker: dict[str, list[list[Task]]] = {}
    for assignment in scheduler.assign(now)[0]:
        by_worker.setdefault(assignment.worker, []).append(assignment.tasks)
    return by_worker


def answered(scheduler: Scheduler[str], worker: str, tasks: Sequence[Task], seconds: float = 0.01) -> None:
    assert scheduler.answered(worker, [task.id for task in tasks], seconds) == list(tasks)
    for task in tasks:
        if task.state is not State.SETTLED:
            task.settle()


def drop(scheduler: Scheduler[str], task: Task) -> None:
    """Settle a task as the coordinator does."""
    if task.state is State.QUEUED:
        scheduler.discard(task)
    task.settle()


def unbatched(*workers: str, seconds: float | None = None) -> Scheduler[str]:
    """Return a scheduler of workers that take one task at a time and were measured at `seconds` for one."""
    scheduler: Scheduler[str] = Scheduler(1, 0.0)
    for worker in workers:
        scheduler.add_worker(worker)
    if seconds is not None:
        tasks = enqueue(scheduler, len(workers))
        given = assign(scheduler)
        assert sorted(given) == sorted(workers)
        for worker, [batch] in given.items():
            answered(scheduler, worker, batch, seconds * len(batch))
        assert all(task.state is State.SETTLED for task in tasks)
    return scheduler


def batched(*workers: str, size: int = 4, max_wait: float = 1.0, adaptive: bool = False) -> Scheduler[str]:
    scheduler: Scheduler[str] = Scheduler(size, max_wait, adaptive=adaptive)
    for worker in workers:
        scheduler.add_worker(worker)
    return scheduler


# -- without batching: the window --------------------------------------------------------------------------------------


def test_a_worker_that_was_never_measured_has_one_task_at_a_time() -> None:
    scheduler = unbatched("a")
    first, second, _ = enqueue(scheduler, 3)
    assert assign(scheduler) == {"a": [[first]]}
    assert assign(scheduler) == {}
    answered(scheduler, "a", [first], 1.0)
    assert assign(scheduler) == {"a": [[second]]}


def test_a_slow_worker_keeps_a_window_of_one() -> None:
    scheduler = unbatched("a", seconds=0.1)
    (first, *_) = enqueue(scheduler, 10)
    assert assign(scheduler) == {"a": [[first]]}


def test_a_quick_worker_is_sent_in_one_frame_what_it_does_in_the_window_time() -> None:
    scheduler = unbatched("a", seconds=WINDOW_SECONDS / 5.5)
    tasks = enqueue(scheduler, 10)
    assert assign(scheduler) == {"a": [tasks[:5]]}
    # As soon as it has room it is sent more, not only when it is idle.
    answered(scheduler, "a", tasks[:2], 2 * WINDOW_SECONDS / 5.5)
    assert assign(scheduler) == {"a": [tasks[5:7]]}


def test_the_window_has_a_bound_however_quick_the_worker() -> None:
    scheduler = unbatched("a", seconds=0.0)
    tasks = enqueue(scheduler, MAX_WINDOW + 10)
    assert assign(scheduler) == {"a": [tasks[:MAX_WINDOW]]}


def test_the_window_closes_when_a_quick_worker_turns_slow() -> None:
    scheduler = unbatched("a", seconds=0.00001)
    tasks = enqueue(scheduler, 20)
    assert assign(scheduler) == {"a": [tasks]}
    answered(scheduler, "a", tasks, 20 * 1.0)
    first, *_ = enqueue(scheduler, 20)
    assert assign(scheduler) == {"a": [[first]]}


def test_slow_workers_share_tasks_evenly_and_none_waits_behind_another() -> None:
    scheduler = unbatched("a", "b", "c", seconds=0.1)
    tasks = enqueue(scheduler, 4)
    given = assign(scheduler)
    assert sorted(len(batch) for [batch] in given.values()) == [1, 1, 1]
    assert list(scheduler.waiting()) == [tasks[3]]


def test_the_worker_with_the_least_measured_work_ahead_gets_the_task() -> None:
    scheduler = unbatched("quick", "slow")
    first, second = enqueue(scheduler, 2)
    assign(scheduler)
    answered(scheduler, "quick", [first], WINDOW_SECONDS / 12)
    answered(scheduler, "slow", [second], WINDOW_SECONDS / 4)
    enqueue(scheduler, 8)
    given = assign(scheduler)
    work = {"quick": len(given["quick"][0]) / 12, "slow": len(given["slow"][0]) / 4}
    assert len(given["quick"][0]) == 6
    assert work["quick"] == pytest.approx(work["slow"])


def test_among_idle_workers_the_one_unused_for_longest_gets_the_task() -> None:
    scheduler = unbatched("a", "b", "c")
    order = []
    for _ in range(6):
        (task,) = enqueue(scheduler)
        ((worker, _),) = assign(scheduler).items()
        order.append(worker)
        answered(scheduler, worker, [task])
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_a_worker_that_joins_takes_its_part_at_once() -> None:
    scheduler = unbatched("a")
    first, second = enqueue(scheduler, 2)
    assert assign(scheduler) == {"a": [[first]]}
    scheduler.add_worker("b")
    assert assign(scheduler) == {"b": [[second]]}


def test_without_batching_nothing_is_waited_for() -> None:
    scheduler = unbatched("a")
    enqueue(scheduler, 3)
    assert scheduler.assign(0.0)[1] is None


# -- with batching -----------------------------------------------------------------------------------------------------


def test_a_burst_of_a_full_batch_is_one_batch_though_all_workers_are_idle() -> None:
    scheduler = batched("a", "b", "c", "d", size=8)
    tasks = enqueue(scheduler, 8)
    assert assign(scheduler) == {"a": [tasks]}


def test_a_larger_burst_is_cut_into_full_batches_and_the_rest_waits() -> None:
    scheduler = batched("a", "b", "c", size=4, max_wait=1.0)
    tasks = enqueue(scheduler, 10, now=5.0)
    assignments, wake_at = scheduler.assign(5.0)
    assert assignments == [Assignment("a", tasks[:4]), Assignment("b", tasks[4:8])]
    assert wake_at == 6.0
    assert assign(scheduler, 6.0) == {"c": [tasks[8:]]}


def test_waiting_counts_from_the_arrival_of_the_oldest() -> None:
    scheduler = batched("a", max_wait=1.0)
    (first,) = enqueue(scheduler, now=10.0)
    assert scheduler.assign(10.0) == ([], 11.0)
    (second,) = enqueue(scheduler, now=10.9)
    assert scheduler.assign(10.9) == ([], 11.0)
    assert scheduler.assign(11.0)[0] == [Assignment("a", [first, second])]


def test_time_that_a_task_has_waited_for_a_busy_worker_counts() -> None:
    scheduler = batched("a", size=2, max_wait=1.0)
    tasks = enqueue(scheduler, 2, now=10.0)
    assert assign(scheduler, 10.0) == {"a": [tasks]}
    (late,) = enqueue(scheduler, now=10.1)
    assert scheduler.assign(10.1) == ([], None)
    answered(scheduler, "a", tasks)
    assert assign(scheduler, 11.5) == {"a": [[late]]}


def test_when_the_oldest_is_gone_the_wait_is_that_of_the_next() -> None:
    scheduler = batched("a", max_wait=1.0)
    (first,) = enqueue(scheduler, now=10.0)
    enqueue(scheduler, now=10.5)
    drop(scheduler, first)
    assert scheduler.assign(11.0) == ([], 11.5)


def test_only_a_full_batch_goes_ahead_to_a_busy_worker() -> None:
    scheduler = batched("a", size=4)
    first = enqueue(scheduler, 4)
    assert assign(scheduler) == {"a": [first]}
    second = enqueue(scheduler, 3)
    assert scheduler.assign(100.0) == ([], None)
    second += enqueue(scheduler, 1)
    assert assign(scheduler) == {"a": [second]}


def test_a_worker_has_one_batch_ahead_and_no_more() -> None:
    scheduler = batched("a", size=2)
    tasks = enqueue(scheduler, 8)
    assert assign(scheduler) == {"a": [tasks[:2], tasks[2:4]]}
    answered(scheduler, "a", tasks[:2])
    assert assign(scheduler) == {"a": [tasks[4:6]]}


def test_a_batch_answered_in_parts_is_done_with_its_last_answer() -> None:
    scheduler = batched("a", size=2)
    tasks = enqueue(scheduler, 6)
    assign(scheduler)
    answered(scheduler, "a", tasks[:1])
    assert assign(scheduler) == {}
    answered(scheduler, "a", tasks[1:3])
    assert assign(scheduler) == {"a": [tasks[4:]]}
    begun, ahead = scheduler.remove_worker("a")
    assert (begun, ahead) == (tasks[3:4], tasks[4:])


def test_idle_workers_come_before_busy_ones() -> None:
    scheduler = batched("a", "b", size=2)
    tasks = enqueue(scheduler, 8)
    assert assign(scheduler) == {"a": [tasks[:2], tasks[4:6]], "b": [tasks[2:4], tasks[6:]]}


def test_the_batch_ahead_goes_to_the_worker_with_the_least_work() -> None:
    scheduler = batched("a", "b", size=4, max_wait=0.0)
    first = enqueue(scheduler, 4)
    assert assign(scheduler) == {"a": [first]}
    (lonely,) = enqueue(scheduler)
    assert assign(scheduler) == {"b": [[lonely]]}
    ahead = enqueue(scheduler, 4)
    assert assign(scheduler) == {"b": [ahead]}


def test_among_idle_workers_the_one_unused_for_longest_gets_the_batch() -> None:
    scheduler = batched("a", "b", size=2)
    order = []
    for _ in range(4):
        tasks = enqueue(scheduler, 2)
        ((worker, _),) = assign(scheduler).items()
        order.append(worker)
        answered(scheduler, worker, tasks)
    assert order == ["a", "b", "a", "b"]


# -- waiting must pay --------------------------------------------------------------------------------------------------


def arrivals(scheduler: Scheduler[str], gap: float, count: int) -> float:
    """Let single tasks come `gap` seconds apart and be run, and return the time after them."""
    now = 0.0
    for _ in range(count):
        now += gap
        enqueue(scheduler, now=now)
        for worker, batches in assign(scheduler, now + 100.0).items():
            answered(scheduler, worker, [task for batch in batches for task in batch])
    return now


def test_the_first_request_of_all_does_not_wait() -> None:
    scheduler = batched("a", size=8, max_wait=0.01, adaptive=True)
    tasks = enqueue(scheduler)
    assert assign(scheduler) == {"a": [tasks]}


def test_an_idle_worker_goes_at_once_where_the_rate_cannot_fill_the_batch() -> None:
    scheduler = batched("a", size=8, max_wait=0.01, adaptive=True)
    now = arrivals(scheduler, gap=0.005, count=30)
    tasks = enqueue(scheduler, now=now + 0.005)
    assert assign(scheduler, now + 0.005) == {"a": [tasks]}


def test_an_idle_worker_waits_where_the_rate_fills_the_batch() -> None:
    scheduler = batched("a", size=8, max_wait=0.01, adaptive=True)
    now = arrivals(scheduler, gap=0.0005, count=30) + 0.0005
    enqueue(scheduler, now=now)
    assert scheduler.assign(now) == ([], now + 0.01)


def test_a_wait_that_was_set_is_kept_whatever_the_rate() -> None:
    scheduler = batched("a", size=8, max_wait=0.01)
    now = arrivals(scheduler, gap=1.0, count=30) + 1.0
    tasks = enqueue(scheduler, now=now)
    assert scheduler.assign(now) == ([], now + 0.01)
    assert assign(scheduler, now + 0.02) == {"a": [tasks]}


# -- deaths ------------------------------------------------------------------------------------------------------------


def test_a_dead_worker_leaves_what_it_may_have_begun_and_what_was_sent_ahead() -> None:
    scheduler = batched("a", size=2)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    assert scheduler.remove_worker("a") == (tasks[:2], tasks[2:])


def test_without_batching_all_that_a_dead_worker_had_may_be_begun() -> None:
    scheduler = unbatched("a", seconds=0.00001)
    tasks = enqueue(scheduler, 3)
    assign(scheduler)
    assert scheduler.remove_worker("a") == (tasks, [])


def test_tasks_of_a_dead_worker_come_first_each_alone_and_in_order() -> None:
    scheduler = batched("a", size=2)
    lost = enqueue(scheduler, 4)
    assign(scheduler)
    late = enqueue(scheduler, 2)
    begun, ahead = scheduler.remove_worker("a")
    scheduler.requeue(reversed(begun + ahead))
    assert list(scheduler.waiting()) == lost + late
    scheduler.add_worker("b")
    for task in lost:
        assert assign(scheduler) == {"b": [[task]]}
        answered(scheduler, "b", [task])
    assert assign(scheduler) == {"b": [late]}


def test_the_same_without_batching_though_the_window_is_wide() -> None:
    scheduler = unbatched("a", "b", seconds=0.00001)
    lost = enqueue(scheduler, 6)
    assign(scheduler)
    late = enqueue(scheduler, 2)
    for worker in ("a", "b"):
        scheduler.requeue(scheduler.remove_worker(worker)[0])
    assert set(list(scheduler.waiting())[:6]) == set(lost)
    scheduler.add_worker("c")
    for _ in lost:
        ((worker, [[task]]),) = assign(scheduler).items()
        assert task in lost
        answered(scheduler, worker, [task], 0.00001)
    assert assign(scheduler) == {"c": [late]}


def test_nothing_joins_a_task_that_must_be_alone() -> None:
    scheduler = unbatched("a", "b", seconds=0.00001)
    tasks = enqueue(scheduler, 1)
    assign(scheduler)
    victim = "a" if scheduler.sent_to("a") else "b"
    survivor = "b" if victim == "a" else "a"
    begun, _ = scheduler.remove_worker(victim)
    scheduler.requeue(begun)
    assert assign(scheduler) == {survivor: [tasks]}
    more = enqueue(scheduler, 3)
    assert assign(scheduler) == {}
    answered(scheduler, survivor, tasks, 0.00001)
    assert assign(scheduler) == {survivor: [more]}


def test_a_task_that_must_be_alone_waits_for_a_worker_with_nothing() -> None:
    scheduler = unbatched("a", "b", seconds=0.00001)
    first, second = enqueue(scheduler, 2)
    given = assign(scheduler)
    assert given == {"a": [[first]], "b": [[second]]}
    scheduler.requeue(scheduler.remove_worker("b")[0])
    assert assign(scheduler) == {}
    answered(scheduler, "a", [first], 0.00001)
    assert assign(scheduler) == {"a": [[second]]}


def test_a_task_that_must_be_alone_is_not_sent_ahead_to_a_busy_worker() -> None:
    scheduler = batched("a", "b", size=2)
    first, second = enqueue(scheduler, 2), enqueue(scheduler, 2)
    assert assign(scheduler) == {"a": [first], "b": [second]}
    scheduler.requeue(scheduler.remove_worker("b")[0])
    assert assign(scheduler) == {}
    answered(scheduler, "a", first)
    assert assign(scheduler) == {"a": [second[:1]]}


def test_no_batch_goes_ahead_to_a_worker_that_runs_a_task_alone() -> None:
    scheduler = batched("a", size=2)
    tasks = enqueue(scheduler, 2)
    assign(scheduler)
    drop(scheduler, tasks[1])
    scheduler.requeue(scheduler.remove_worker("a")[0][:1])
    scheduler.add_worker("b")
    assert assign(scheduler) == {"b": [tasks[:1]]}
    enqueue(scheduler, 2)
    assert assign(scheduler) == {}


def test_a_task_alone_does_not_wait_for_a_batch_to_fill() -> None:
    scheduler = batched("a", size=4, max_wait=50.0)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    scheduler.requeue(scheduler.remove_worker("a")[0])
    scheduler.add_worker("b")
    assert assign(scheduler, 0.001) == {"b": [tasks[:1]]}


# -- book-keeping ------------------------------------------------------------------------------------------------------


def test_a_discarded_task_is_never_sent_and_counts_no_more() -> None:
    scheduler = batched("a", size=2)
    first, second, third = enqueue(scheduler, 3)
    drop(scheduler, second)
    assert scheduler.queued == 2
    assert assign(scheduler) == {"a": [[first, third]]}
    assert (scheduler.queued, scheduler.in_flight) == (0, 2)


def test_the_queue_compacts_when_most_of_it_is_dead() -> None:
    scheduler = batched(size=4)
    tasks = enqueue(scheduler, 2000)
    survivors = tasks[::100]
    for task in tasks:
        if task not in survivors:
            drop(scheduler, task)
    assert list(scheduler.waiting()) == survivors
    assert scheduler.queued == len(survivors)
    assert len(scheduler._queue) <= 2 * len(survivors) + 65


def test_results_of_settled_tasks_are_taken_all_the_same() -> None:
    scheduler = unbatched("a")
    (task,) = enqueue(scheduler)
    assign(scheduler)
    drop(scheduler, task)
    assert scheduler.in_flight == 1
    answered(scheduler, "a", [task])
    assert scheduler.in_flight == 0


@pytest.mark.parametrize("wrong", [[1, 99], [1, 1], [3, 2, 99]], ids=["unknown", "twice", "unknown, others swapped"])
@pytest.mark.parametrize("size", [1, 2])
def test_answers_to_tasks_that_a_worker_does_not_have_change_nothing(size: int, wrong: list[int]) -> None:
    scheduler: Scheduler[str] = Scheduler(size, 0.0)
    scheduler.add_worker("a")
    if size == 1:
        task = Task(50, "", 0, (0,), b"", 0.0, 1.0)
        scheduler.enqueue(task, 0.0)
        assign(scheduler)
        answered(scheduler, "a", [task], 0.0)
    tasks = [Task(number, "", 0, (0,), b"", 0.0, 1.0) for number in range(1, 5)]
    for task in tasks:
        scheduler.enqueue(task, 0.0)
    assign(scheduler)
    assert scheduler.sent_to("a") == tasks
    with pytest.raises(KeyError):
        scheduler.answered("a", wrong, 0.01)
    assert scheduler.sent_to("a") == tasks
    assert scheduler.in_flight == 4
    assert scheduler.remove_worker("a") == ((tasks[:2], tasks[2:]) if size == 2 else (tasks, []))


def test_answers_of_a_worker_that_is_unknown_are_refused() -> None:
    with pytest.raises(KeyError):
        unbatched("a").answered("b", [1], 0.01)


def test_without_workers_tasks_wait() -> None:
    scheduler = batched(size=2)
    enqueue(scheduler, 5)
    assert scheduler.assign(1e9) == ([], None)
    assert scheduler.queued == 5


# -- any order of events -----------------------------------------------------------------------------------------------


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Drives a scheduler beside a model of it: lists of tasks, moved by hand."""

    @initialize(
        size=st.sampled_from([1, 1, 2, 3, 8]),
        max_wait=st.sampled_from([0.0, 0.01, 1.0]),
        adaptive=st.booleans(),
        workers=st.integers(0, 3),
    )
    def begin(self, size: int, max_wait: float, adaptive: bool, workers: int) -> None:
        self.size, self.max_wait, self.adaptive = size, max_wait, adaptive
        self.scheduler: Scheduler[int] = Scheduler(size, max_wait, adaptive=adaptive)
        self.now = 100.0
        self.numbers = itertools.count(1)
        self.keys = itertools.count(1)
        self.waiting: list[Task] = []
        self.batches: dict[int, list[list[Task]]] = {}
        self.in_first_order: list[Task] = []
        self.unanswered: set[Task] = set()
        for _ in range(workers):
            self.join()

    def sent(self, worker: int) -> list[Task]:
        return [task for batch in self.batches[worker] for task in batch]

    # -- events --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0001, 0.002, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.decide()

    @rule(count=st.integers(1, 10), decide=st.booleans())
    def tasks_come(self, count: int, decide: bool) -> None:
        for _ in range(count):
            task = Task(next(self.numbers), "", 0, (0,), b"", self.now, self.now + 100.0)
            self.scheduler.enqueue(task, self.now)
            self.waiting.append(task)
            self.unanswered.add(task)
        if decide:
            self.decide()

    @rule()
    @precondition(lambda self: len(self.batches) < 4)
    def join(self) -> None:
        worker = next(self.keys)
        self.scheduler.add_worker(worker)
        self.batches[worker] = []

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.00005, 0.0005, 0.2]))
    @precondition(lambda self: any(self.batches.values()))
    def a_worker_answers(self, data: st.DataObject, seconds: float) -> None:
        worker = data.draw(st.sampled_from([w for w, batches in self.batches.items() if batches]))
        count = data.draw(st.integers(1, len(self.sent(worker))))
        tasks = self.sent(worker)[:count]
        assert self.scheduler.answered(worker, [task.id for task in tasks], seconds) == tasks
        for task in tasks:
            self.batches[worker][0].remove(task)
            if not self.batches[worker][0]:
                del self.batches[worker][0]
            if task.state is State.SENT:
                task.settle()
            self.unanswered.discard(task)

    @rule(data=st.data())
    @precondition(lambda self: self.batches)
    def a_worker_answers_nonsense(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.batches)))
        with pytest.raises(KeyError):
            self.scheduler.answered(worker, [10**9], 0.01)

    @rule(data=st.data())
    @precondition(lambda self: self.unanswered)
    def a_task_is_settled(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.unanswered, key=lambda task: task.id)))
        if task.state is State.QUEUED:
            self.scheduler.discard(task)
            self.waiting.remove(task)
        task.settle()
        self.unanswered.discard(task)

    @rule(data=st.data(), again=st.booleans())
    @precondition(lambda self: self.batches)
    def a_worker_dies(self, data: st.DataObject, again: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.batches)))
        batches, lost = self.batches[worker], self.sent(worker)
        begun, ahead = self.scheduler.remove_worker(worker)
        assert begun + ahead == lost
        if self.size > 1:
            assert begun == (batches[0] if batches else [])
        else:
            assert ahead == []
        del self.batches[worker]
        live = [task for task in lost if task.state is State.SENT]
        if again:
            self.scheduler.requeue(live)
            self.waiting = sorted(live, key=lambda task: (task.queued, task.id)) + self.waiting
        else:
            for task in live:
                task.settle()
                self.unanswered.discard(task)
        self.decide()

    # -- the decision --------------------------------------------------------------------------------------------------

    @rule()
    def decide(self) -> None:
        assignments, wake_at = self.scheduler.assign(self.now)
        for assignment in assignments:
            self.check_assignment(assignment)
        taken = [task for assignment in assignments for task in assignment.tasks]
        # The head of the queue leaves, and nothing else; with batching also batch by batch.
        head = self.waiting[: len(taken)]
        assert set(taken) == set(head)
        if self.size > 1:
            assert taken == head
        assert all(a.tasks == sorted(a.tasks, key=self.waiting.index) for a in assignments)
        self.in_first_order += [task for task in head if not task.alone]
        del self.waiting[: len(taken)]
        for assignment in assignments:
            if self.size > 1:
                self.batches[assignment.worker].append(list(assignment.tasks))
            elif self.batches[assignment.worker]:
                self.batches[assignment.worker][0] += assignment.tasks
            else:
                self.batches[assignment.worker].append(list(assignment.tasks))
        self.check_nothing_is_left_to_do(wake_at)
        again, wake_again = self.scheduler.assign(self.now)
        assert (again, wake_again) == ([], wake_at), "asked twice, it decides once"

    def check_assignment(self, assignment: Assignment[int]) -> None:
        tasks, before = assignment.tasks, self.batches[assignment.worker]
        assert tasks, "an assignment is not empty"
        assert all(task.state is State.SENT for task in tasks)
        if any(task.alone for task in tasks):
            assert len(tasks) == 1
            assert not before
        assert not any(task.alone for task in self.sent(assignment.worker))
        assert len(tasks) <= (self.size if self.size > 1 else MAX_WINDOW)
        if self.size > 1 and len(tasks) < self.size and not tasks[0].alone:
            assert not before, "only a full batch goes ahead"
            assert self.adaptive or self.now >= tasks[0].queued + self.max_wait

    def check_nothing_is_left_to_do(self, wake_at: float | None) -> None:
        idle = [worker for worker, batches in self.batches.items() if not batches]
        if wake_at is not None:
            assert wake_at > self.now
            assert self.waiting
        if not self.waiting or not self.batches:
            assert wake_at is None
            return
        oldest = self.waiting[0]
        if self.size == 1:
            assert not idle
            return
        full = len(self.waiting) >= self.size
        if idle:
            assert not full
            assert not oldest.alone
            assert self.now < oldest.queued + self.max_wait
            assert wake_at == oldest.queued + self.max_wait
        elif full and not oldest.alone:
            room = [w for w, batches in self.batches.items() if len(batches) < 2 and not self.sent(w)[0].alone]
            assert not room

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def each_task_is_in_one_place(self) -> None:
        assert list(self.scheduler.waiting()) == self.waiting
        for worker in self.batches:
            assert self.scheduler.sent_to(worker) == self.sent(worker)
        places = self.waiting + [task for worker in self.batches for task in self.sent(worker)]
        assert len(places) == len(set(places))
        assert self.unanswered <= set(places)

    @invariant()
    def the_counts_are_true(self) -> None:
        assert self.scheduler.queued == len(self.waiting)
        assert self.scheduler.in_flight == sum(len(self.sent(worker)) for worker in self.batches)

    @invariant()
    def no_worker_has_more_than_two_batches(self) -> None:
        assert all(len(batches) <= 2 for batches in self.batches.values())

    @invariant()
    def a_task_that_must_be_alone_is_alone(self) -> None:
        for worker in self.batches:
            tasks = self.sent(worker)
            assert len(tasks) == 1 or not any(task.alone for task in tasks)

    @invariant()
    def tasks_start_in_order_of_arrival(self) -> None:
        numbers = [task.id for task in self.in_first_order]
        assert numbers == sorted(numbers)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
