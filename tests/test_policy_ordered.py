"""Batches by cost, key and priority: what may share one, and which comes next."""

from __future__ import annotations

import math
import statistics
from collections import deque
from itertools import islice
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ordered_queue import task

from mosec_asgi.batching.policy.ordered import MOST_PADDING, alike, fitting
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.task import Task

COSTS = st.lists(st.integers(0, 300), min_size=1, max_size=80)


def scheduler(rules: Rules, *workers: str, size: int = 4, max_wait: float = 1.0, **options: Any) -> Scheduler[str]:
    made: Scheduler[str] = Scheduler(size, max_wait, rules=rules, **options)
    for worker in workers or ("a",):
        made.add_worker(worker)
    return made


def come(stage: Scheduler[str], *tasks: Task, now: float = 0.0) -> None:
    for each in tasks:
        stage.enqueue(each, now)


def batches(stage: Scheduler[str], now: float = 0.0) -> list[list[int]]:
    return [[each.id for each in assignment.tasks] for assignment in stage.assign(now)[0]]


def answer(stage: Scheduler[str], *ids: int, worker: str = "a", now: float = 0.0) -> None:
    for each in stage.answered(worker, ids, 0.01, now):
        each.settle()


# -- cost --------------------------------------------------------------------------------------------------------------


def test_a_batch_costs_no_more_than_its_budget() -> None:
    stage = scheduler(Rules(max_cost=10))
    come(stage, *(task(n, cost=cost) for n, cost in enumerate((4, 5, 3, 6))))
    assert batches(stage) == [[0, 1]], "9 of 10, and full: a worker need not wait for more"


def test_an_item_above_the_budget_runs_alone() -> None:
    stage = scheduler(Rules(max_cost=10))
    come(stage, task(1, cost=11), task(2, cost=1))
    assert batches(stage) == [[1]]
    answer(stage, 1)
    assert batches(stage, now=1.0) == [[2]]


def test_a_batch_below_its_budget_waits_to_fill() -> None:
    stage = scheduler(Rules(max_cost=10))
    come(stage, task(1, cost=4))
    assert stage.assign(0.5) == ([], 1.0)
    assert batches(stage, now=1.0) == [[1]]


@given(costs=COSTS, size=st.integers(1, 40), budget=st.sampled_from((1.0, 300.0, 2000.0, math.inf)))
def test_no_batch_exceeds_its_budget_or_its_size(costs: list[int], size: int, budget: float) -> None:
    tasks = [task(n, cost=cost) for n, cost in enumerate(costs)]
    batch = fitting(tasks, size, budget)
    assert batch == tasks[: len(batch)]
    assert 1 <= len(batch) <= size
    assert len(batch) == 1 or sum(each.cost for each in batch) <= budget
    following = tasks[len(batch) : len(batch) + 1]
    full = len(batch) == size or any(sum(each.cost for each in [*batch, more]) > budget for more in following)
    assert full or not following, "nothing that fits is left behind"


@given(costs=COSTS, size=st.integers(1, 40), budget=st.sampled_from((1.0, 300.0, 2000.0, math.inf)), data=st.data())
def test_batches_of_like_cost_hold_their_first_task_and_their_budget(
    costs: list[int], size: int, budget: float, data: st.DataObject
) -> None:
    by_cost = sorted((cost, n, task(n, cost=cost, number=n)) for n, cost in enumerate(costs))
    first = data.draw(st.sampled_from(by_cost))[2]
    batch = alike(first, by_cost, size, budget)
    assert first in batch
    assert len(batch) <= size
    assert len(batch) == 1 or len(batch) * max(each.cost for each in batch) <= budget
    places = [by_cost.index((each.cost, each.id, each)) for each in batch]
    assert places == list(range(places[0], places[0] + len(places))), "neighbours"
    padded = len(batch) * max(each.cost for each in batch)
    assert sum(each.cost for each in batch) >= padded * (1 - MOST_PADDING) - 1e-6


def test_tasks_of_like_cost_share_a_batch_and_the_oldest_is_in_it() -> None:
    stage = scheduler(Rules(by_cost=True), size=3)
    come(stage, *(task(n, cost=cost) for n, cost in enumerate((100, 5, 90, 6, 110, 7))))
    assert batches(stage) == [[2, 0, 4], [1, 3, 5]]


def test_a_task_that_is_unlike_the_others_runs_alone() -> None:
    stage = scheduler(Rules(by_cost=True), size=4, max_wait=0.0)
    come(stage, *(task(n, cost=cost) for n, cost in enumerate((5, 240, 250, 245))))
    assert batches(stage) == [[0]]
    answer(stage, 0)
    assert batches(stage) == [[1, 3, 2]]


def test_sorting_makes_the_most_of_a_model_that_pads() -> None:
    """With 128 clients that come back and texts of 5 to 250 tokens, on a model that takes its time for each of them."""
    random = Random(3)
    lengths = [min(250, 5 + int(random.expovariate(1 / 60))) for _ in range(800)]
    plain, plain_p99 = padded_run(Rules(), 32, lengths)
    alike_, alike_p99 = padded_run(Rules(max_cost=32 * 256, by_cost=True), 256, lengths)
    assert alike_ >= 1.5 * plain
    assert alike_p99 <= plain_p99


def padded_run(rules: Rules, size: int, lengths: list[int]) -> tuple[float, float]:
    """Return the tokens in a second and the 99th percentile of one worker that takes 0.3 ms for each padded token."""
    stage = scheduler(rules, size=size, max_wait=0.01)
    waiting = iter(enumerate(lengths))
    latencies: list[float] = []
    now = 0.0
    for n, length in islice(waiting, 128):
        stage.enqueue(task(n, now, cost=length), now)
    # What the worker has: the batch that it runs, and one that was sent ahead.
    sent: deque[list[Task]] = deque()
    while stage.queued or sent:
        sent += [assignment.tasks for assignment in stage.assign(now)[0]]
        if not sent:
            # The last few wait for their batch to fill.
            now += 0.01
            continue
        batch = sent.popleft()
        now += 0.005 + 0.0003 * len(batch) * max(each.cost for each in batch)
        latencies += [now - each.queued for each in batch]
        answer(stage, *(each.id for each in batch), now=now)
        for n, length in islice(waiting, len(batch)):
            stage.enqueue(task(n, now, cost=length), now)
    return sum(lengths) / now, statistics.quantiles(latencies, n=100)[98]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_only_tasks_of_one_key_share_a_batch() -> None:
    stage = scheduler(Rules(keyed=True), "a", "b", max_wait=0.0)
    come(stage, *(task(n, key="xy"[n % 2]) for n in range(6)))
    assert batches(stage) == [[0, 2, 4], [1, 3, 5]]


def test_a_key_that_is_full_does_not_wait_for_one_that_is_not() -> None:
    stage = scheduler(Rules(keyed=True), size=2)
    come(stage, task(1, key="rare"), task(2, key="often"), task(3, key="often"))
    assert batches(stage, now=0.5) == [[2, 3]]


def test_a_rare_key_that_has_waited_long_enough_comes_before_full_ones() -> None:
    stage = scheduler(Rules(keyed=True), size=2)
    come(stage, task(1, key="rare"))
    come(stage, *(task(n, 0.5, key="often") for n in range(2, 10)), now=0.5)
    assert batches(stage, now=1.0)[0] == [1]


def test_only_a_full_key_goes_ahead_to_a_busy_worker() -> None:
    stage = scheduler(Rules(keyed=True), size=2, max_wait=0.0)
    come(stage, task(1, key="x"))
    assert batches(stage) == [[1]]
    come(stage, task(2, key="x"), task(3, key="y"), task(4, key="y"))
    assert batches(stage) == [[3, 4]]


def test_the_higher_priority_leads_and_lower_ones_fill_its_batch() -> None:
    stage = scheduler(Rules(keyed=True), size=3, max_wait=0.0)
    come(stage, task(1, key="x"), task(2, key="y"), task(3, key="x", priority=1), task(4, key="x"))
    assert batches(stage)[0] == [3, 1, 4]


def test_the_next_in_order_is_in_the_batch_though_others_of_its_key_came_before_it() -> None:
    stage = scheduler(Rules(keyed=True), size=2, max_wait=0.0)
    come(stage, task(1, key="y", tenant="a", priority=1))
    assert batches(stage) == [[1]]
    answer(stage, 1)
    come(stage, task(2, key="y", tenant="a", priority=1), task(3, 3.0, key="x"), task(4, 3.0, key="x"))
    come(stage, task(5, 5.0, key="x", tenant="b", priority=1))
    assert batches(stage, now=6.0) == [[5, 3]], "its priority has waited longest, for the task of the other tenant"


def test_other_values_leave_all_that_wait_their_places() -> None:
    stage = scheduler(Rules(), size=2, max_wait=0.0)
    come(stage, *(task(n, tenant="heavy") for n in range(10)), task(10, tenant="light"))
    assert batches(stage)[0] == [0, 10]
    answer(stage, 0, 10)
    assert batches(stage) == [[1, 2]]
    stage.configure(3, 0.0, adaptive=False, concurrency=1)
    stage.requeue(stage.remove_worker("a"))
    come(stage, task(20, tenant="light"))
    stage.add_worker("b")
    assert batches(stage)[0] == [1, 2, 20]


def test_a_task_with_a_priority_puts_a_plain_stage_in_order() -> None:
    stage = scheduler(Rules(), size=1)
    come(stage, task(1), task(2), task(3, priority=1))
    assert batches(stage) == [[3]]


@settings(max_examples=200)
@given(
    tasks=st.lists(
        st.tuples(st.sampled_from("xyz"), st.integers(0, 12), st.integers(-1, 1), st.sampled_from("tu")), max_size=40
    ),
    size=st.integers(2, 5),
    max_cost=st.sampled_from((0, 10)),
    by_cost=st.booleans(),
    workers=st.integers(1, 2),
)
def test_all_start_and_no_worker_idles_beside_them(
    tasks: list[tuple[str, int, int, str]], size: int, max_cost: int, by_cost: bool, workers: int
) -> None:
    """Work conserving, without a loss, budget and keys kept, whatever comes."""
    names = [f"w{n}" for n in range(workers)]
    rules = Rules(max_cost=max_cost, keyed=True, by_cost=by_cost, ageing=1.0)
    stage = scheduler(rules, *names, size=size, max_wait=0.1)
    made = {
        n: task(n, n * 0.01, key=key, cost=cost, priority=priority, tenant=tenant)
        for n, (key, cost, priority, tenant) in enumerate(tasks)
    }
    for n, each in made.items():
        stage.enqueue(each, n * 0.01)
    started: list[int] = []
    now = len(tasks) * 0.01 + 0.1
    running: list[tuple[str, list[int]]] = []
    while stage.queued:
        assignments, wake_at = stage.assign(now)
        assert wake_at is None or wake_at > now
        for assignment in assignments:
            batch = assignment.tasks
            running.append((assignment.worker, [each.id for each in batch]))
            assert len({each.key for each in batch}) == 1
            assert len(batch) <= size
            costs = [each.cost for each in batch]
            spent = max(costs) * len(batch) if by_cost else sum(costs)
            assert len(batch) == 1 or not max_cost or spent <= max_cost
            started += running[-1][1]
        busy = {worker for worker, _ in running}
        assert busy == set(names) or not stage.queued, "all have waited long enough"
        worker, ids = running.pop(0)
        answer(stage, *ids, worker=worker, now=now)
        now += 0.01
    assert sorted(started) == sorted(made)
    if not by_cost:
        for alike in {(each.key, each.priority, each.tenant) for each in made.values()}:
            ours = [n for n in started if (made[n].key, made[n].priority, made[n].tenant) == alike]
            assert ours == sorted(ours), "of one key, priority and tenant they start in order of arrival"


# -- none starves ------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    tasks=st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 12)), min_size=1, max_size=40),
    size=st.integers(2, 4),
    by_cost=st.booleans(),
)
def test_what_has_waited_max_wait_is_in_the_next_batch_whatever_its_key_or_cost(
    tasks: list[tuple[str, int]], size: int, by_cost: bool
) -> None:
    """The bound of waiting where there are no priorities and tenants: one batch for each task that came before."""
    stage = scheduler(Rules(keyed=True, by_cost=by_cost), size=size, max_wait=0.1)
    waiting = list(enumerate(tasks))
    now = 0.0
    for n, (key, cost) in waiting:
        stage.enqueue(task(n, now, key=key, cost=cost), now)
        now += 0.01
        for assignment in stage.assign(now)[0]:
            answer(stage, *(each.id for each in assignment.tasks), now=now)
        oldest = stage.queue.head()
        if oldest is not None and now >= oldest.queued + 0.1:
            [batch, *ahead] = [assignment.tasks for assignment in stage.assign(now)[0]]
            assert oldest in batch
            for sent in (batch, *ahead):
                answer(stage, *(each.id for each in sent), now=now)


@settings(max_examples=100)
@given(priorities=st.lists(st.integers(-3, 3), min_size=1, max_size=40), gap=st.sampled_from((0.01, 0.3, 1.0)))
def test_a_task_waits_behind_none_that_came_later_than_its_priority_is_worth(priorities: list[int], gap: float) -> None:
    stage = scheduler(Rules(ageing=1.0), size=1)
    made = [task(n, n * gap, priority=priority) for n, priority in enumerate(priorities)]
    for each in made:
        stage.enqueue(each, each.queued)
    place = {}
    for turn in range(len(made)):
        [[first]] = batches(stage, now=len(made) * gap)
        place[first] = turn
        answer(stage, first)
    for one in made:
        for other in made:
            if other.queued > one.queued + max(0, other.priority - one.priority) * 1.0 + 1e-9:
                assert place[one.id] < place[other.id]


# -- deadlines ---------------------------------------------------------------------------------------------------------


def hurried(number: int, deadline: float, **labels: Any) -> Task:
    made = task(number, **labels)
    made.deadline = deadline
    return made


def test_a_key_that_would_miss_a_deadline_goes_before_it_has_filled_a_batch() -> None:
    stage = scheduler(Rules(keyed=True), max_wait=60.0)
    stage.leeway.learn(0.5, known=True)
    come(stage, task(1, key="a"), task(2, key="b"), hurried(3, 2.0, key="b"))
    assert stage.assign(0.1) == ([], 1.5)
    assert batches(stage, now=1.5) == [[2, 3]], "in order of arrival"
    answer(stage, 2, 3, now=1.6)
    assert stage.assign(1.6) == ([], 60.0), "the other key may wait on"


def test_of_like_costs_the_one_that_would_be_late_is_in_the_batch() -> None:
    stage = scheduler(Rules(by_cost=True), size=4, max_wait=60.0)
    stage.leeway.learn(0.5, known=True)
    come(stage, task(1, cost=10), task(2, cost=11), hurried(3, 2.0, cost=500))
    assert batches(stage, now=1.5) == [[3]]


def test_where_there_are_priorities_they_come_first_though_another_is_in_a_hurry() -> None:
    stage = scheduler(Rules(keyed=True), max_wait=60.0)
    stage.leeway.learn(0.5, known=True)
    come(stage, task(1, key="a", priority=1), hurried(2, 2.0, key="b"))
    assert batches(stage, now=1.5) == [[1]]


# -- the admission -----------------------------------------------------------------------------------------------------


def test_what_waits_counts_by_its_cost_in_tasks_of_full_batches() -> None:
    stage = scheduler(Rules(max_cost=100), size=64)
    assert stage.varies
    assert stage.usual_size == 64
    come(stage, *(task(number, cost=25) for number in range(4)))
    assert stage.queued_work == 64, "a whole batch, of which it is not known how many tasks it has"
    come(stage, *(task(10 + number, cost=25) for number in range(8)))
    assert batches(stage) == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert stage.usual_size == 4
    assert stage.queued_work == 4
    come(stage, task(20, cost=100), task(21, cost=50))
    assert stage.queued_work == 10, "two batches and a half"


def test_where_costs_are_small_the_number_of_tasks_counts() -> None:
    stage = scheduler(Rules(max_cost=1000), size=4)
    come(stage, *(task(number, cost=0) for number in range(10)))
    assert stage.queued_work == 10


@pytest.mark.parametrize(
    "rules", [Rules(keyed=True), Rules(max_cost=100, keyed=True), Rules(max_cost=100, by_cost=True)]
)
def test_where_keys_or_like_costs_part_what_waits_its_cost_does_not_say_how_many_batches_it_is(rules: Rules) -> None:
    stage = scheduler(rules, size=64)
    come(stage, *(task(number, cost=40, key=f"{number}") for number in range(5)))
    assert stage.queued_work == 5
    assert not stage.varies
    assert stage.usual_size == 64


def test_a_batch_that_was_not_full_says_nothing_of_how_many_tasks_one_holds() -> None:
    stage = scheduler(Rules(max_cost=100), size=64, max_wait=0.0)
    come(stage, task(1, cost=25))
    assert batches(stage) == [[1]]
    assert stage.usual_size == 64


def test_a_size_that_is_configured_bounds_what_full_batches_are_taken_to_hold() -> None:
    stage = scheduler(Rules(max_cost=100), size=64)
    come(stage, *(task(number, cost=10) for number in range(10)))
    assert [len(each) for each in batches(stage)] == [10]
    assert stage.usual_size == 10
    stage.configure(4, 0.0, adaptive=False, concurrency=1)
    assert stage.usual_size == 4
