from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Sequence

import pytest
from fakes import new_task
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mosec_asgi.batching.loads import MAX_WINDOW, WINDOW_SECONDS, AnswerError
from mosec_asgi.batching.policy import Pick
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.task import State, Task

_numbers = itertools.count(1)


def enqueue(scheduler: Scheduler[str], count: int = 1, now: float = 0.0) -> list[Task]:
    tasks = [new_task(next(_numbers), now, deadline=now + 100.0) for _ in range(count)]
    for task in tasks:
        scheduler.enqueue(task, now)
    return tasks


def assign(scheduler: Scheduler[str], now: float = 0.0) -> dict[str, list[list[Task]]]:
    """Return the assigned tasks by worker, a list for each frame."""
    by_worker: dict[str, list[list[Task]]] = {}
    for assignment in scheduler.assign(now)[0]:
        by_worker.setdefault(assignment.worker, []).append(assignment.tasks)
    return by_worker


def answered(
    scheduler: Scheduler[str], worker: str, tasks: Sequence[Task], seconds: float = 0.01, now: float = 0.0
) -> None:
    assert scheduler.answered(worker, [task.id for task in tasks], seconds, now) == list(tasks)
    for task in tasks:
        if task.state is not State.SETTLED:
            task.settle()


def drop(scheduler: Scheduler[str], task: Task) -> None:
    """Settle a task as the coordinator does."""
    if task.state is State.QUEUED:
        scheduler.discard(task)
    task.settle()


def sent_to(scheduler: Scheduler[str], worker: str) -> list[Task]:
    """Return all tasks that a worker has not answered."""
    return scheduler.loads.begun(worker, sys.maxsize)


def die(scheduler: Scheduler[str], worker: str, begun: int = sys.maxsize) -> list[Task]:
    """Lose a worker that had begun so many of all tasks that it was sent; queue again what lives, as a stage does."""
    for task in scheduler.loads.begun(worker, begun):
        task.attempts += 1
    tasks = scheduler.remove_worker(worker)
    scheduler.requeue([task for task in tasks if task.state is State.SENT])
    return tasks


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


def test_a_quick_worker_is_sent_in_one_frame_what_it_begins_in_the_window_time() -> None:
    scheduler = unbatched("a", seconds=WINDOW_SECONDS / 5.5)
    tasks = enqueue(scheduler, 10)
    assert assign(scheduler) == {"a": [tasks[:6]]}
    # As soon as it has room it is sent more, not only when it is idle.
    answered(scheduler, "a", tasks[:2], 2 * WINDOW_SECONDS / 5.5)
    assert assign(scheduler) == {"a": [tasks[6:8]]}


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
    assert list(scheduler.queue.waiting()) == [tasks[3]]


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
    assert assignments == [Pick("a", tasks[:4]), Pick("b", tasks[4:8])]
    assert wake_at == 6.0
    assert assign(scheduler, 6.0) == {"c": [tasks[8:]]}


def test_waiting_counts_from_the_arrival_of_the_oldest() -> None:
    scheduler = batched("a", max_wait=1.0)
    (first,) = enqueue(scheduler, now=10.0)
    assert scheduler.assign(10.0) == ([], 11.0)
    (second,) = enqueue(scheduler, now=10.9)
    assert scheduler.assign(10.9) == ([], 11.0)
    assert scheduler.assign(11.0)[0] == [Pick("a", [first, second])]


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
    assert sent_to(scheduler, "a") == tasks[3:]


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


def arrivals(scheduler: Scheduler[str], gap: float, count: int, seconds: float = 0.01) -> float:
    """Let single tasks come `gap` seconds apart and be run, and return the time after them."""
    now = 0.0
    for _ in range(count):
        now += gap
        enqueue(scheduler, now=now)
        for worker, batches in assign(scheduler, now + 100.0).items():
            answered(scheduler, worker, [task for batch in batches for task in batch], seconds, now)
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
    now = arrivals(scheduler, gap=0.0005, count=200) + 0.0005
    enqueue(scheduler, now=now)
    assert scheduler.assign(now) == ([], now + 0.01)


def test_one_client_that_asks_again_at_once_is_not_taken_for_a_batch_that_fills() -> None:
    scheduler = batched("a", size=8, max_wait=0.01, adaptive=True)
    for number in range(40):
        now = 0.0008 * number
        tasks = enqueue(scheduler, now=now)
        assert assign(scheduler, now) == {"a": [tasks]}
        answered(scheduler, "a", tasks, 0.0005, now + 0.0006)


def test_an_idle_worker_waits_for_the_rate_no_longer_than_a_batch_takes() -> None:
    scheduler = batched("a", size=8, max_wait=0.01, adaptive=True)
    now = arrivals(scheduler, gap=0.0001, count=400, seconds=0.002) + 0.0001
    enqueue(scheduler, now=now)
    assert scheduler.assign(now) == ([], pytest.approx(now + 0.002))


def closed_loop(
    clients: int, *, think: float = 0.0001, workers: str = "a", seconds: float = 0.005, size: int = 64
) -> list[int]:
    """Let clients ask again `think` seconds apart after their answers; return the sizes of 40 batches."""
    scheduler = batched(*workers, size=size, max_wait=0.01, adaptive=True)
    # What happens when: a task arrives, a worker answers, or somebody looks again.
    agenda = [(0.0, place, "arrival", ()) for place in range(clients)]
    order, sizes = itertools.count(clients), []
    while len(sizes) < 40:
        now, _, what, (*batch,) = heapq.heappop(agenda)
        if what == "arrival":
            enqueue(scheduler, now=now)
        elif what == "answer":
            worker, *tasks = batch
            answered(scheduler, worker, tasks, seconds, now)
            for place in range(1, len(tasks) + 1):
                heapq.heappush(agenda, (now + place * think, next(order), "arrival", ()))
        assignments, wake_at = scheduler.assign(now)
        for assignment in assignments:
            sizes.append(len(assignment.tasks))
            answer = (assignment.worker, *assignment.tasks)
            heapq.heappush(agenda, (now + seconds, next(order), "answer", answer))
        if wake_at is not None:
            heapq.heappush(agenda, (wake_at, next(order), "look", ()))
    return sizes


@pytest.mark.parametrize("clients", [1, 2, 3, 8, 40])
def test_clients_that_come_back_at_once_are_one_batch(clients: int) -> None:
    assert set(closed_loop(clients)[20:]) == {clients}


def test_clients_of_a_slow_model_have_waited_for_it_and_not_for_their_batch() -> None:
    assert set(closed_loop(8, seconds=0.048, size=8)[20:]) == {8}


def test_clients_that_take_their_time_are_not_waited_for() -> None:
    assert max(closed_loop(8, think=0.004)[20:]) < 4


@pytest.mark.parametrize(("workers", "shares"), [("ab", {8}), ("abc", {5, 6})])
def test_free_workers_share_those_that_come_back(workers: str, shares: set[int]) -> None:
    assert set(closed_loop(16, workers=workers)[20:]) == shares


def test_a_wait_that_was_set_is_kept_whatever_the_rate() -> None:
    scheduler = batched("a", size=8, max_wait=0.01)
    now = arrivals(scheduler, gap=1.0, count=30) + 1.0
    tasks = enqueue(scheduler, now=now)
    assert scheduler.assign(now) == ([], now + 0.01)
    assert assign(scheduler, now + 0.02) == {"a": [tasks]}


# -- workers that run several at a time --------------------------------------------------------------------------------


def concurrent(*workers: str, concurrency: int, size: int = 1, max_wait: float = 0.0) -> Scheduler[str]:
    """Return a scheduler of workers that run several tasks, or batches, at a time and answer them in any order."""
    scheduler: Scheduler[str] = Scheduler(size, max_wait, concurrency=concurrency, ordered=False)
    for worker in workers:
        scheduler.add_worker(worker)
    return scheduler


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (2, 2), (3, 3), (4, 5), (8, 10), (100, 125)])
def test_a_concurrent_worker_is_sent_what_it_runs_and_a_quarter_more(concurrency: int, most: int) -> None:
    scheduler = concurrent("a", concurrency=concurrency)
    tasks = enqueue(scheduler, 200)
    assert assign(scheduler) == {"a": [tasks[:most]]}
    answered(scheduler, "a", tasks[:1])
    assert assign(scheduler) == {"a": [tasks[most : most + 1]]}


def test_the_room_of_a_concurrent_worker_does_not_depend_on_its_speed() -> None:
    scheduler = concurrent("a", concurrency=4)
    for seconds in (0.0, 100.0, 0.0):
        tasks = enqueue(scheduler, 5)
        assert assign(scheduler) == {"a": [tasks]}
        answered(scheduler, "a", tasks, seconds)
    enqueue(scheduler, 20)
    assert [len(batch) for batch in assign(scheduler)["a"]] == [5]


def test_concurrent_workers_get_equal_shares() -> None:
    scheduler = concurrent("a", "b", concurrency=8)
    tasks = enqueue(scheduler, 7)
    assert assign(scheduler) == {"a": [tasks[0::2]], "b": [tasks[1::2]]}
    answered(scheduler, "a", tasks[0:6:2])
    more = enqueue(scheduler, 2)
    assert assign(scheduler) == {"a": [more]}


def test_a_concurrent_worker_runs_several_batches_and_has_a_full_one_ahead() -> None:
    scheduler = concurrent("a", concurrency=2, size=2)
    tasks = enqueue(scheduler, 10)
    assert assign(scheduler) == {"a": [tasks[:2], tasks[2:4], tasks[4:6]]}
    answered(scheduler, "a", tasks[3:4])
    assert assign(scheduler) == {}, "a batch is done with its last answer"
    answered(scheduler, "a", tasks[2:3])
    assert assign(scheduler) == {"a": [tasks[6:8]]}


def test_a_batch_that_is_not_full_goes_to_a_worker_that_has_room_to_run_it_and_not_ahead() -> None:
    scheduler = concurrent("a", concurrency=2, size=4)
    first = enqueue(scheduler, 2)
    assert assign(scheduler) == {"a": [first]}
    second = enqueue(scheduler)
    assert assign(scheduler) == {"a": [second]}
    third = enqueue(scheduler, 3)
    assert scheduler.assign(100.0) == ([], None)
    answered(scheduler, "a", second)
    assert assign(scheduler) == {"a": [third]}


def test_a_batch_waits_to_fill_though_a_concurrent_worker_has_room() -> None:
    scheduler = concurrent("a", concurrency=2, size=2, max_wait=1.0)
    enqueue(scheduler, 3, now=10.0)
    assert [len(a.tasks) for a in scheduler.assign(10.0)[0]] == [2]
    assert scheduler.assign(10.5) == ([], 11.0)


def test_the_worker_that_runs_the_fewest_batches_gets_the_next_though_it_was_used_last() -> None:
    scheduler = concurrent("a", "b", concurrency=3, size=2)
    tasks = enqueue(scheduler, 8)
    assert assign(scheduler) == {"a": [tasks[:2], tasks[4:6]], "b": [tasks[2:4], tasks[6:]]}
    answered(scheduler, "b", tasks[2:4])
    more = enqueue(scheduler, 2)
    assert assign(scheduler) == {"b": [more]}


def test_answers_of_a_concurrent_worker_come_in_any_order() -> None:
    scheduler = concurrent("a", concurrency=4)
    tasks = enqueue(scheduler, 5)
    assign(scheduler)
    for task in (tasks[2], tasks[4], tasks[0], tasks[1], tasks[3]):
        answered(scheduler, "a", [task])
    assert scheduler.in_flight == 0


def test_slots_in_use_are_what_workers_run_and_not_what_they_have_ahead() -> None:
    scheduler = concurrent("a", "b", concurrency=4)
    assert scheduler.loads.slots_in_use == 0
    tasks = enqueue(scheduler, 3)
    assign(scheduler)
    assert scheduler.loads.slots_in_use == 3
    enqueue(scheduler, 20)
    assign(scheduler)
    assert (scheduler.in_flight, scheduler.loads.slots_in_use) == (10, 8)
    answered(scheduler, "a", tasks[:1])
    assert (scheduler.in_flight, scheduler.loads.slots_in_use) == (9, 8)
    scheduler.remove_worker("a")
    assert scheduler.loads.slots_in_use == 4


def test_slots_in_use_are_batches_where_there_are_any() -> None:
    scheduler = concurrent("a", concurrency=2, size=3)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    assert scheduler.loads.slots_in_use == 2
    tasks += enqueue(scheduler, 3)
    assign(scheduler)
    assert (scheduler.in_flight, scheduler.loads.slots_in_use) == (7, 2)
    answered(scheduler, "a", tasks[:3])
    answered(scheduler, "a", tasks[3:4])
    assert scheduler.loads.slots_in_use == 1


def test_tasks_that_must_be_alone_do_not_help_to_fill_a_batch() -> None:
    scheduler: Scheduler[str] = Scheduler(4, 0.01, adaptive=True, concurrency=2)
    scheduler.add_worker("a")
    now = arrivals(scheduler, gap=0.004, count=30)
    first = enqueue(scheduler, 3, now=now)
    assert assign(scheduler, now + 1.0) == {"a": [first]}
    die(scheduler, "a")
    scheduler.add_worker("b")
    assert assign(scheduler, now) == {"b": [first[:1]]}
    scheduler.proven("b")
    # Two wait to be alone, and the three that are missing would take too long to come.
    (late,) = enqueue(scheduler, now=now + 0.012)
    assert assign(scheduler, now + 0.012) == {"b": [[late]]}


# -- deaths ------------------------------------------------------------------------------------------------------------


def test_a_dead_worker_leaves_what_it_has_not_answered_in_the_order_in_which_it_was_sent() -> None:
    scheduler = batched("a", size=2)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    answered(scheduler, "a", tasks[:1])
    assert scheduler.remove_worker("a") == tasks[1:]
    assert scheduler.in_flight == 0


@pytest.mark.parametrize("size", [1, 2])
def test_what_a_worker_has_begun_is_told_by_the_count_of_all_that_it_was_sent(size: int) -> None:
    scheduler = batched("a", size=size) if size > 1 else unbatched("a")
    before = enqueue(scheduler, 1)
    assign(scheduler, 1.0)
    answered(scheduler, "a", before, 0.0)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    assert scheduler.loads.begun("a", 1) == []
    assert scheduler.loads.begun("a", 3) == tasks[:2]
    answered(scheduler, "a", tasks[:1], 0.0)
    assert scheduler.loads.begun("a", 3) == tasks[1:2]
    assert scheduler.loads.begun("a", 5) == tasks[1:]


def test_what_a_worker_has_begun_counts_anew_in_its_next_life() -> None:
    scheduler = unbatched("a", seconds=0.00001)
    enqueue(scheduler, 3)
    assign(scheduler)
    die(scheduler, "a", begun=0)
    scheduler.add_worker("a")
    ((worker, [tasks]),) = assign(scheduler).items()
    assert scheduler.loads.begun(worker, 1) == tasks[:1]


def test_begun_tasks_of_a_dead_worker_come_first_each_alone_and_those_ahead_as_if_nothing_had_been() -> None:
    scheduler = batched("a", size=2)
    lost = enqueue(scheduler, 4)
    assign(scheduler)
    late = enqueue(scheduler, 2)
    assert die(scheduler, "a", begun=2) == lost
    assert list(scheduler.queue.waiting()) == lost + late
    assert [task.alone for task in lost] == [True, True, False, False]
    scheduler.add_worker("b")
    for task in lost[:2]:
        assert assign(scheduler) == {"b": [[task]]}
        answered(scheduler, "b", [task])
    assert assign(scheduler) == {"b": [lost[2:], late]}


def test_the_same_without_batching_though_the_window_is_wide() -> None:
    scheduler = unbatched("a", seconds=0.00001)
    lost = enqueue(scheduler, 4)
    assign(scheduler)
    late = enqueue(scheduler, 2)
    # One of them is the one that was measured.
    die(scheduler, "a", begun=1 + 2)
    assert list(scheduler.queue.waiting()) == lost + late
    scheduler.add_worker("b")
    for task in lost[:2]:
        assert assign(scheduler) == {"b": [[task]]}
        answered(scheduler, "b", [task], 0.00001)
    assert assign(scheduler) == {"b": [lost[2:] + late]}


def test_tasks_are_queued_again_in_their_order_whatever_the_order_in_which_they_are_given_back() -> None:
    scheduler = unbatched("a", seconds=0.00001)
    tasks = enqueue(scheduler, 2, now=1.0) + enqueue(scheduler, 2, now=2.0)
    assign(scheduler)
    scheduler.requeue(reversed(scheduler.remove_worker("a")))
    assert list(scheduler.queue.waiting()) == tasks


@pytest.mark.parametrize("begun", [0, sys.maxsize], ids=["sent ahead", "begun"])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_tasks_of_two_dead_workers_are_queued_in_order_of_arrival(order: str, begun: int) -> None:
    scheduler = concurrent("a", "b", concurrency=4)
    tasks = enqueue(scheduler, 6)
    assert assign(scheduler) == {"a": [tasks[0::2]], "b": [tasks[1::2]]}
    late = enqueue(scheduler)
    for worker in order:
        die(scheduler, worker, begun)
    assert list(scheduler.queue.waiting()) == tasks + late


def test_a_task_that_must_be_alone_stays_so_though_the_next_dying_worker_had_not_begun_it() -> None:
    scheduler = unbatched("a", seconds=0.00001)
    first, second = enqueue(scheduler, 2)
    assign(scheduler)
    die(scheduler, "a", begun=2)
    scheduler.add_worker("b")
    assert assign(scheduler) == {"b": [[first]]}
    die(scheduler, "b", begun=0)
    assert (first.alone, first.attempts) == (True, 1)
    scheduler.add_worker("c")
    assert assign(scheduler) == {"c": [[first]]}
    answered(scheduler, "c", [first])
    assert assign(scheduler) == {"c": [[second]]}


def test_nothing_joins_a_task_that_must_be_alone() -> None:
    scheduler = unbatched("a", "b", seconds=0.00001)
    tasks = enqueue(scheduler, 1)
    ((victim, _),) = assign(scheduler).items()
    survivor = "b" if victim == "a" else "a"
    die(scheduler, victim)
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
    die(scheduler, "b")
    assert assign(scheduler) == {}
    answered(scheduler, "a", [first], 0.00001)
    assert assign(scheduler) == {"a": [[second]]}


@pytest.mark.parametrize("size", [1, 2])
def test_a_concurrent_worker_is_given_a_task_that_must_be_alone_only_when_it_has_nothing(size: int) -> None:
    scheduler = concurrent("a", concurrency=3, size=size)
    tasks = enqueue(scheduler, 2)
    assign(scheduler)
    die(scheduler, "a")
    scheduler.add_worker("b")
    assert assign(scheduler) == {"b": [tasks[:1]]}
    assert assign(scheduler) == {}, "neither the other nor anything else joins it"
    late = enqueue(scheduler, 2)
    assert assign(scheduler) == {}
    answered(scheduler, "b", tasks[:1])
    assert assign(scheduler) == {"b": [tasks[1:]]}
    answered(scheduler, "b", tasks[1:])
    assert [task for batch in assign(scheduler)["b"] for task in batch] == late


@pytest.mark.parametrize("size", [1, 2])
def test_while_no_concurrent_worker_has_nothing_others_pass_a_task_that_must_be_alone(size: int) -> None:
    scheduler = concurrent("a", "b", concurrency=3, size=size)
    for worker in ("a", "b"):
        tasks = enqueue(scheduler, size)
        assert assign(scheduler) == {worker: [tasks]}
    die(scheduler, "b")
    late = enqueue(scheduler, size)
    assert assign(scheduler) == {"a": [late]}, "the survivor has long work, and room beside it"
    assert list(scheduler.queue.waiting()) == tasks
    scheduler.add_worker("c")
    later = enqueue(scheduler, size)
    assert assign(scheduler) == {"c": [tasks[:1]], "a": [later]}, "the newcomer has nothing"


@pytest.mark.parametrize("size", [1, 2])
def test_tasks_that_must_be_alone_go_before_all_others(size: int) -> None:
    scheduler = concurrent("a", "b", concurrency=3, size=size)
    older = enqueue(scheduler, size)
    assert assign(scheduler) == {"a": [older]}
    lone = enqueue(scheduler, 1)
    assert assign(scheduler) == {"b": [lone]}
    die(scheduler, "b")
    die(scheduler, "a", begun=0)
    assert list(scheduler.queue.waiting()) == lone + older
    scheduler.add_worker("c")
    assert assign(scheduler) == {"c": [lone]}
    answered(scheduler, "c", lone)
    assert assign(scheduler) == {"c": [older]}


def test_each_worker_that_has_nothing_gets_one_of_the_tasks_that_must_be_alone() -> None:
    scheduler = concurrent("a", concurrency=4)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    die(scheduler, "a")
    for worker in "bcd":
        scheduler.add_worker(worker)
    assert assign(scheduler) == {"b": [tasks[:1]], "c": [tasks[1:2]], "d": [tasks[2:3]]}
    answered(scheduler, "c", tasks[1:2])
    assert assign(scheduler) == {"c": [tasks[3:]]}


def test_of_workers_with_nothing_the_one_unused_for_longest_runs_the_task_that_must_be_alone() -> None:
    scheduler = concurrent("a", "b", "c", concurrency=4)
    for worker in "abca":
        (task,) = enqueue(scheduler)
        assert assign(scheduler) == {worker: [[task]]}
        if worker != "c":
            answered(scheduler, worker, [task])
    lone = sent_to(scheduler, "c")
    die(scheduler, "c")
    assert assign(scheduler) == {"b": [lone]}


@pytest.mark.parametrize("size", [1, 2])
def test_others_join_a_lone_task_once_it_is_proven_but_none_that_must_be_alone(size: int) -> None:
    scheduler = concurrent("a", concurrency=4, size=size)
    first, second = enqueue(scheduler, 2)
    assign(scheduler)
    die(scheduler, "a")
    late = enqueue(scheduler, 2)
    scheduler.add_worker("b")
    assert assign(scheduler) == {"b": [[first]]}
    assert assign(scheduler) == {}
    scheduler.proven("b")
    assert [task for batch in assign(scheduler)["b"] for task in batch] == late
    assert list(scheduler.queue.waiting()) == [second]


def test_what_settles_while_it_waits_to_be_alone_is_never_sent_and_lets_others_go() -> None:
    scheduler = unbatched("a", "b")
    first, second = enqueue(scheduler, 2)
    assign(scheduler)
    die(scheduler, "b")
    late = enqueue(scheduler)
    assert assign(scheduler) == {}
    drop(scheduler, second)
    assert (scheduler.queued, list(scheduler.queue.waiting())) == (1, late)
    answered(scheduler, "a", [first])
    assert assign(scheduler) == {"a": [late]}


def test_tasks_that_must_be_alone_do_not_make_a_batch_full() -> None:
    scheduler = concurrent("a", "b", concurrency=2, size=3, max_wait=1.0)
    first, second = enqueue(scheduler, 3), enqueue(scheduler, 3)
    assert assign(scheduler) == {"a": [first], "b": [second]}
    die(scheduler, "b")
    enqueue(scheduler, 2, now=10.0)
    assert scheduler.queued == 5
    assert scheduler.assign(10.0) == ([], 11.0)


def test_a_task_that_must_be_alone_is_not_sent_ahead_to_a_busy_worker() -> None:
    scheduler = batched("a", "b", size=2)
    first, second = enqueue(scheduler, 2), enqueue(scheduler, 2)
    assert assign(scheduler) == {"a": [first], "b": [second]}
    die(scheduler, "b")
    assert assign(scheduler) == {}
    answered(scheduler, "a", first)
    assert assign(scheduler) == {"a": [second[:1]]}


def test_no_batch_goes_ahead_to_a_worker_that_runs_a_task_alone() -> None:
    scheduler = batched("a", size=2)
    tasks = enqueue(scheduler, 2)
    assign(scheduler)
    drop(scheduler, tasks[1])
    die(scheduler, "a")
    scheduler.add_worker("b")
    assert assign(scheduler) == {"b": [tasks[:1]]}
    enqueue(scheduler, 2)
    assert assign(scheduler) == {}


def test_a_task_alone_does_not_wait_for_a_batch_to_fill() -> None:
    scheduler = batched("a", size=4, max_wait=50.0)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    die(scheduler, "a")
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
    assert list(scheduler.queue.waiting()) == survivors
    assert scheduler.queued == len(survivors)
    assert len(scheduler.queue._tasks) <= 2 * len(survivors) + 65


def test_results_of_settled_tasks_are_taken_all_the_same() -> None:
    scheduler = unbatched("a")
    (task,) = enqueue(scheduler)
    assign(scheduler)
    drop(scheduler, task)
    assert scheduler.in_flight == 1
    answered(scheduler, "a", [task])
    assert scheduler.in_flight == 0


@pytest.mark.parametrize(
    "wrong",
    [[1, 99], [99], [1, 1], [1, 2, 3, 4, 4], [1, 2, 3, 4, 99], [50]],
    ids=["unknown", "only unknown", "twice", "all, one twice", "more than all", "answered before"],
)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_answers_to_tasks_that_a_worker_does_not_have_change_nothing(
    size: int, ordered: bool, wrong: list[int]
) -> None:
    scheduler, tasks = four_tasks_on_a_worker(size, ordered=ordered)
    with pytest.raises(AnswerError, match=str(wrong[0])):
        scheduler.answered("a", wrong, 0.01, 0.0)
    assert sent_to(scheduler, "a") == tasks
    assert scheduler.in_flight == 4
    answered(scheduler, "a", tasks)
    assert scheduler.in_flight == 0


@pytest.mark.parametrize("wrong", [[2], [2, 1], [1, 3], [1, 2, 4, 3]])
@pytest.mark.parametrize("size", [1, 2])
def test_answers_of_a_worker_that_keeps_order_come_in_the_order_in_which_it_was_sent_its_tasks(
    size: int, wrong: list[int]
) -> None:
    scheduler, tasks = four_tasks_on_a_worker(size, ordered=True)
    with pytest.raises(AnswerError, match="when its next ones were 1, 2, 3, 4"):
        scheduler.answered("a", wrong, 0.01, 0.0)
    assert sent_to(scheduler, "a") == tasks
    answered(scheduler, "a", tasks)
    with pytest.raises(AnswerError, match="when it had none"):
        scheduler.answered("a", wrong, 0.01, 0.0)
    other, tasks = four_tasks_on_a_worker(size, ordered=False)
    answered(other, "a", [tasks[number - 1] for number in wrong])
    assert other.in_flight == 4 - len(wrong)


def test_a_wrong_answer_is_told_in_brief_however_long_it_is() -> None:
    scheduler, _ = four_tasks_on_a_worker(1, ordered=True)
    with pytest.raises(AnswerError) as error:
        scheduler.answered("a", range(7, 9000), 0.01, 0.0)
    assert "7, 8, 9, 10, 11, 12, 13, 14, ..." in str(error.value)
    assert len(str(error.value)) < 200


def four_tasks_on_a_worker(size: int, *, ordered: bool) -> tuple[Scheduler[str], list[Task]]:
    """Return a scheduler whose worker "a" has the tasks 1 to 4, and has answered task 50."""
    scheduler: Scheduler[str] = Scheduler(size, 0.0, ordered=ordered)
    scheduler.add_worker("a")
    before = new_task(50, 0.0)
    scheduler.enqueue(before, 0.0)
    assign(scheduler)
    answered(scheduler, "a", [before], 0.0)
    tasks = [new_task(number, 0.0) for number in range(1, 5)]
    for task in tasks:
        scheduler.enqueue(task, 0.0)
    assign(scheduler)
    assert sent_to(scheduler, "a") == tasks
    return scheduler, tasks


def test_the_tasks_that_a_worker_speaks_of_are_those_that_it_has() -> None:
    scheduler = concurrent("a", "b", concurrency=4)
    tasks = enqueue(scheduler, 4)
    assign(scheduler)
    mine = sent_to(scheduler, "a")
    assert scheduler.loads.given("a", [mine[1].id, mine[0].id, mine[1].id]) == [mine[1], mine[0], mine[1]]
    other = sent_to(scheduler, "b")[0]
    for wrong in ([mine[0].id, other.id], [10**9]):
        with pytest.raises(AnswerError, match=f"named task {wrong[-1]}, which it did not have"):
            scheduler.loads.given("a", wrong)
    answered(scheduler, "a", mine[:1])
    with pytest.raises(AnswerError):
        scheduler.loads.given("a", [mine[0].id])
    assert {*mine, *sent_to(scheduler, "b")} == set(tasks)


def test_it_is_known_which_workers_are_busy_and_who_has_a_task() -> None:
    scheduler = unbatched("a", "b")
    first, second, third = enqueue(scheduler, 3)
    assert (scheduler.loads.busy, scheduler.loads.holder(first)) == ([], None)
    assign(scheduler)
    assert scheduler.loads.busy == ["a", "b"]
    assert [scheduler.loads.holder(task) for task in (first, second, third)] == ["a", "b", None]
    answered(scheduler, "a", [first])
    assert (scheduler.loads.busy, scheduler.loads.holder(first)) == (["b"], None)
    drop(scheduler, second)
    assert scheduler.loads.holder(second) == "b", "it is there though nobody waits for it"
    scheduler.remove_worker("b")
    assert (scheduler.loads.busy, scheduler.loads.holder(second)) == ([], None)


def test_only_a_lonely_task_of_a_stage_without_batches_has_nothing_to_wait_for() -> None:
    scheduler = unbatched("a")
    assert not scheduler.starts_at_once
    first, *_ = enqueue(scheduler)
    assert scheduler.starts_at_once
    assign(scheduler)
    enqueue(scheduler)
    assert not scheduler.starts_at_once, "a worker is busy"
    answered(scheduler, "a", [first])
    enqueue(scheduler)
    assert not scheduler.starts_at_once, "two wait"
    batches = batched("a")
    enqueue(batches)
    assert not batches.starts_at_once


def test_a_scheduler_says_how_things_stand() -> None:
    scheduler = unbatched("a")
    enqueue(scheduler, 3)
    assign(scheduler)
    assert repr(scheduler) == "<Scheduler queued=2 sent=1 workers=1>"


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
        concurrency=st.sampled_from([1, 1, 2, 4, 9]),
        ordered=st.booleans(),
        workers=st.integers(0, 3),
    )
    def begin(self, size: int, max_wait: float, adaptive: bool, concurrency: int, ordered: bool, workers: int) -> None:
        self.size, self.max_wait, self.adaptive = size, max_wait, adaptive
        self.concurrency, self.ordered = concurrency, ordered
        self.scheduler: Scheduler[int] = Scheduler(
            size, max_wait, adaptive=adaptive, concurrency=concurrency, ordered=ordered
        )
        self.now = self.answered_at = 100.0
        self.numbers = itertools.count(1)
        self.keys = itertools.count(1)
        # Tasks that wait, those that must be alone apart.
        self.lone: list[Task] = []
        self.waiting: list[Task] = []
        # What each worker has, batch by batch, and all that it was ever sent.
        self.batches: dict[int, list[list[Task]]] = {}
        self.ever: dict[int, list[Task]] = {}
        # Workers that run a task which must be alone.
        self.alone: set[int] = set()
        self.in_first_order: list[Task] = []
        self.came_back: set[Task] = set()
        self.unanswered: set[Task] = set()
        for _ in range(workers):
            self.join()

    def sent(self, worker: int) -> list[Task]:
        """Return what a worker has, in the order in which it was sent."""
        has = {task for batch in self.batches[worker] for task in batch}
        return [task for task in self.ever[worker] if task in has]

    # -- events --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0001, 0.002, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.decide()

    @rule(count=st.integers(1, 10), decide=st.booleans())
    def tasks_come(self, count: int, decide: bool) -> None:
        for _ in range(count):
            task = new_task(next(self.numbers), self.now, deadline=self.now + 100.0)
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
        self.ever[worker] = []

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.00005, 0.0005, 0.2]))
    @precondition(lambda self: any(self.batches.values()))
    def a_worker_answers(self, data: st.DataObject, seconds: float) -> None:
        worker = data.draw(st.sampled_from([w for w, batches in self.batches.items() if batches]))
        sent = self.sent(worker)
        if self.ordered:
            tasks = sent[: data.draw(st.integers(1, len(sent)))]
        else:
            tasks = data.draw(st.lists(st.sampled_from(sent), min_size=1, unique=True))
        assert self.scheduler.answered(worker, [task.id for task in tasks], seconds, self.now) == tasks
        self.answered_at = self.now
        for task in tasks:
            (batch,) = [batch for batch in self.batches[worker] if task in batch]
            batch.remove(task)
            if task.state is State.SENT:
                task.settle()
            self.unanswered.discard(task)
        self.batches[worker] = [batch for batch in self.batches[worker] if batch]
        if not self.batches[worker]:
            self.alone.discard(worker)

    @rule(data=st.data(), flaw=st.sampled_from(["unknown", "twice", "out of turn"]))
    @precondition(lambda self: self.batches)
    def a_worker_answers_nonsense(self, data: st.DataObject, flaw: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.batches)))
        ids = [task.id for task in self.sent(worker)]
        wrong = [*ids, 10**9]
        if flaw == "twice" and ids:
            wrong = [*ids, data.draw(st.sampled_from(ids))]
        elif flaw == "out of turn" and self.ordered and len(ids) > 1:
            wrong = ids[data.draw(st.integers(1, len(ids) - 1)) :]
        with pytest.raises(AnswerError):
            self.scheduler.answered(worker, wrong, 0.01, self.now)

    @rule(data=st.data())
    @precondition(lambda self: self.alone)
    def a_lone_task_is_proven(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.alone)))
        (task,) = self.sent(worker)
        task.alone = False
        self.scheduler.proven(worker)
        self.alone.discard(worker)

    @rule(data=st.data())
    @precondition(lambda self: self.unanswered)
    def a_task_is_settled(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.unanswered, key=lambda task: task.id)))
        if task.state is State.QUEUED:
            self.scheduler.discard(task)
            (self.lone if task.alone else self.waiting).remove(task)
        task.settle()
        self.unanswered.discard(task)

    @rule(data=st.data(), again=st.booleans())
    @precondition(lambda self: self.batches)
    def a_worker_dies(self, data: st.DataObject, again: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.batches)))
        lost = self.sent(worker)
        count = data.draw(st.integers(0, len(self.ever[worker])))
        begun = self.scheduler.loads.begun(worker, count)
        assert begun == [task for task in self.ever[worker][:count] if task in set(lost)]
        for task in begun:
            task.attempts += 1
        assert self.scheduler.remove_worker(worker) == lost
        del self.batches[worker]
        self.alone.discard(worker)
        live = [task for task in lost if task.state is State.SENT]
        if again:
            self.scheduler.requeue(live)
            self.check_return(live)
        else:
            for task in live:
                task.settle()
                self.unanswered.discard(task)
        self.decide()

    def check_return(self, live: list[Task]) -> None:
        for task in live:
            assert task.alone == (task.attempts > 0)
        self.came_back |= set(live)
        self.lone = sorted([*self.lone, *(task for task in live if task.alone)], key=lambda task: task.id)
        self.waiting = sorted([*self.waiting, *(task for task in live if not task.alone)], key=lambda task: task.id)

    # -- the decision --------------------------------------------------------------------------------------------------

    @rule()
    def decide(self) -> None:
        assignments, wake_at = self.scheduler.assign(self.now)
        idle = [worker for worker, batches in self.batches.items() if not batches]
        for assignment in assignments:
            if any(task.alone for task in assignment.tasks):
                # The first of those that must be alone, before all others, on a worker that has nothing.
                assert assignment.tasks == self.lone[:1]
                idle.remove(assignment.worker)
                self.alone.add(assignment.worker)
                del self.lone[0]
        others = [assignment for assignment in assignments if not assignment.tasks[0].alone]
        assert assignments[len(assignments) - len(others) :] == others
        assert not others or not self.lone or self.concurrency > 1
        self.check_others(others)
        for assignment in assignments:
            self.batches[assignment.worker].append(list(assignment.tasks))
            self.ever[assignment.worker] += assignment.tasks
        self.check_nothing_is_left_to_do(wake_at)
        again, wake_again = self.scheduler.assign(self.now)
        assert (again, wake_again) == ([], wake_at), "asked twice, it decides once"

    def check_others(self, assignments: list[Pick[int]]) -> None:
        taken = [task for assignment in assignments for task in assignment.tasks]
        # The head of the queue leaves, and nothing else; with batching also batch by batch.
        head, left = self.waiting[: len(taken)], self.waiting[len(taken) :]
        assert set(taken) == set(head)
        if self.size > 1:
            assert taken == head
        else:
            assert len({a.worker for a in assignments}) == len(assignments), "one frame for each worker"
        before = {worker: [len(batch) for batch in batches] for worker, batches in self.batches.items()}
        for assignment in assignments:
            assert assignment.tasks == sorted(assignment.tasks, key=self.waiting.index)
            self.check_assignment(assignment, before[assignment.worker])
            before[assignment.worker].append(len(assignment.tasks))
        self.in_first_order += [task for task in head if task not in self.came_back]
        self.waiting = left

    def check_assignment(self, assignment: Pick[int], before: list[int]) -> None:
        tasks = assignment.tasks
        assert tasks, "an assignment is not empty"
        assert all(task.state is State.SENT for task in tasks)
        assert assignment.worker not in self.alone, "nothing joins a task that must be alone"
        if self.size > 1:
            assert len(tasks) <= self.size
            assert len(before) <= self.concurrency, "one batch ahead and no more"
            if len(tasks) < self.size:
                assert len(before) < self.concurrency, "only a full batch goes ahead"
                assert self.adaptive or self.now >= tasks[0].queued + self.max_wait
        elif self.concurrency > 1:
            assert sum(before) + len(tasks) <= self.concurrency + self.concurrency // 4
        else:
            assert sum(before) + len(tasks) <= MAX_WINDOW

    def check_nothing_is_left_to_do(self, wake_at: float | None) -> None:
        idle = [worker for worker, batches in self.batches.items() if not batches]
        open_to_others = [worker for worker in self.batches if worker not in self.alone]
        assert wake_at is None or wake_at > self.now
        if self.lone:
            assert not idle
        if not self.waiting or not self.batches or (self.lone and self.concurrency == 1):
            assert wake_at is None
        elif self.size > 1:
            self.check_no_batch_could_go(open_to_others, wake_at)
        else:
            assert not idle
            assert wake_at is None
            if self.concurrency > 1:
                full = self.concurrency + self.concurrency // 4
                assert all(len(self.sent(worker)) == full for worker in open_to_others)

    def check_no_batch_could_go(self, open_to_others: list[int], wake_at: float | None) -> None:
        due = self.waiting[0].queued + self.max_wait
        full = len(self.waiting) >= self.size
        running = {worker: len(self.batches[worker]) for worker in open_to_others}
        if any(count < self.concurrency for count in running.values()):
            assert not full
            # A worker that has just become idle waits for those that are likely to come back, however long the first
            # has waited for a worker.
            latest = max(due, self.answered_at + self.max_wait) if self.adaptive else due
            assert self.now < latest
            assert wake_at == due or (self.adaptive and wake_at is not None and wake_at <= latest)
        else:
            assert wake_at is None
            assert not full or all(count == self.concurrency + 1 for count in running.values())

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def each_task_is_in_one_place(self) -> None:
        assert list(self.scheduler.queue.waiting()) == self.lone + self.waiting
        for worker in self.batches:
            assert self.scheduler.loads.begun(worker, sys.maxsize) == self.sent(worker)
            for task in self.sent(worker):
                assert self.scheduler.loads.holder(task) == worker
        for task in self.lone + self.waiting:
            assert self.scheduler.loads.holder(task) is None
        places = self.lone + self.waiting + [task for worker in self.batches for task in self.sent(worker)]
        assert len(places) == len(set(places))
        assert self.unanswered <= set(places)

    @invariant()
    def the_counts_are_true(self) -> None:
        assert self.scheduler.queued == len(self.lone) + len(self.waiting)
        assert self.scheduler.in_flight == sum(len(self.sent(worker)) for worker in self.batches)
        assert self.scheduler.loads.busy == [worker for worker, batches in self.batches.items() if batches]
        units = [len(batches) if self.size > 1 else sum(map(len, batches)) for batches in self.batches.values()]
        assert self.scheduler.loads.slots_in_use == sum(min(unit, self.concurrency) for unit in units)

    @invariant()
    def a_task_that_must_be_alone_is_alone(self) -> None:
        for worker in self.alone:
            assert len(self.sent(worker)) == 1
        for worker in self.batches.keys() - self.alone:
            assert not any(task.alone for task in self.sent(worker))

    @invariant()
    def tasks_start_in_order_of_arrival(self) -> None:
        numbers = [task.id for task in self.in_first_order]
        assert numbers == sorted(numbers)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
