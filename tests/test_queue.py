"""The tasks that wait: none that lives is lost, whatever a policy takes from wherever."""

from __future__ import annotations

import itertools
import math

import pytest
from fakes import new_task
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.ordered_queue import OrderedQueue
from mosec_asgi.batching.policy import Pick
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.task import Event, State, Task


def filled(count: int) -> tuple[TaskQueue, list[Task]]:
    queue = TaskQueue()
    tasks = [new_task(number, float(number)) for number in range(count)]
    for task in tasks:
        queue.append(task)
    return queue, tasks


def settle(queue: TaskQueue, *tasks: Task) -> None:
    for task in tasks:
        queue.discard(task)
        task.settle()


def take(queue: TaskQueue, tasks: list[Task]) -> None:
    queue.take(tasks)
    for task in tasks:
        task.step(Event.DISPATCH)


def died(*tasks: Task) -> list[Task]:
    """Return tasks whose worker has died with them."""
    for task in tasks:
        task.attempts += 1
    return list(tasks)


def test_tasks_wait_in_order_of_arrival() -> None:
    queue, tasks = filled(5)
    assert (queue.waiting(), queue.head(), queue.first(3)) == (tasks, tasks[0], tasks[:3])
    assert (len(queue), queue.live, queue.others) == (5, 5, 5)


def test_an_empty_queue_has_no_head() -> None:
    queue, _ = filled(0)
    assert (queue.head(), queue.first(3), queue.waiting(), len(queue)) == (None, [], [], 0)


def test_looking_takes_nothing() -> None:
    queue, tasks = filled(5)
    queue.head()
    queue.first(5)
    assert queue.waiting() == tasks


def test_what_is_settled_is_passed_over() -> None:
    queue, tasks = filled(6)
    settle(queue, tasks[0], tasks[2])
    assert (queue.head(), queue.first(2), queue.live) == (tasks[1], [tasks[1], tasks[3]], 4)
    take(queue, [tasks[1], tasks[3]])
    assert (queue.waiting(), queue.live) == (tasks[4:], 2)


def test_those_whose_deadline_is_near_are_found_at_the_head_alone() -> None:
    queue = TaskQueue()
    tasks = [new_task(number, 0.0, deadline=deadline) for number, deadline in enumerate((5.0, 1.0, 9.0, 2.0, 1.0))]
    for task in tasks:
        queue.append(task)
    assert queue.pressing(5.0, 4) == [tasks[1], tasks[3]]
    settle(queue, tasks[1])
    assert queue.pressing(5.5, 4) == [tasks[0], tasks[3]]
    take(queue, [tasks[2]])
    queue.requeue(died(tasks[2]))
    assert queue.pressing(10.0, 2) == [tasks[2], tasks[0]], "that which is to be alone is the first"


DEAD = ([], [0], [1], [3], [0, 1, 3], [0, 2, 4])
TAKEN = ([2], [5], [2, 5], [5, 2], [1, 5], [5, 6], [0, 5], [0, 1, 6])


@pytest.mark.parametrize(
    ("dead", "taken"), [(dead, taken) for dead in DEAD for taken in TAKEN if not set(dead) & set(taken)]
)
def test_tasks_taken_from_anywhere_cost_no_other_its_place(dead: list[int], taken: list[int]) -> None:
    queue, tasks = filled(7)
    settle(queue, *(tasks[place] for place in dead))
    take(queue, [tasks[place] for place in taken])
    left = [task for place, task in enumerate(tasks) if place not in taken + dead]
    assert (queue.waiting(), queue.live, queue.head()) == (left, len(left), left[0])
    take(queue, left)
    assert (queue.waiting(), queue.live, queue.head()) == ([], 0, None)


def test_a_task_that_must_be_alone_stands_before_the_others() -> None:
    queue, tasks = filled(4)
    take(queue, tasks[:2])
    queue.requeue(died(tasks[1]))
    assert (queue.waiting(), list(queue.lone)) == ([tasks[1], *tasks[2:]], [tasks[1]])
    assert (queue.live, queue.others, queue.head()) == (3, 2, tasks[2])
    take(queue, [tasks[1]])
    assert (list(queue.lone), queue.live) == ([], 2)


def test_tasks_that_come_back_take_their_old_places() -> None:
    queue, tasks = filled(6)
    take(queue, tasks[:4])
    queue.requeue([tasks[3], tasks[1]])
    queue.requeue([*died(tasks[2]), *died(tasks[0])])
    assert queue.waiting() == [tasks[0], tasks[2], tasks[1], tasks[3], *tasks[4:]]
    assert [task.alone for task in tasks] == [True, False, True, False, False, False]


def test_a_settled_task_among_those_that_must_be_alone_is_gone() -> None:
    queue, tasks = filled(3)
    take(queue, tasks)
    queue.requeue(died(*tasks))
    settle(queue, tasks[1])
    assert (queue.waiting(), list(queue.lone), queue.live, queue.others) == ([tasks[0], tasks[2]],) * 2 + (2, 0)


def test_dead_tasks_do_not_pile_up() -> None:
    queue, tasks = filled(10_000)
    settle(queue, *tasks[1:])
    assert queue.waiting() == tasks[:1]
    assert len(queue._tasks) <= 66


class Youngest:
    """A policy that sends the youngest tasks first, as one with priorities may."""

    def pick(self, queue: TaskQueue, loads: Loads[str], now: float) -> Pick[str] | float | None:
        for worker, load in loads:
            if not load.sent:
                return Pick(worker, queue.first(1000)[-2:])
        return None


def test_a_policy_that_picks_from_the_end_loses_no_live_task() -> None:
    scheduler: Scheduler[str] = Scheduler(1, 0.0, policy=Youngest())
    scheduler.add_worker("a")
    tasks = [new_task(number, 0.0) for number in range(7)]
    for task in tasks:
        scheduler.enqueue(task, 0.0)
    scheduler.discard(tasks[0])
    tasks[0].settle()
    seen: list[list[Task]] = []
    while assignments := scheduler.assign(0.0)[0]:
        (assignment,) = assignments
        seen.append(assignment.tasks)
        scheduler.answered("a", [task.id for task in assignment.tasks], 0.01, 0.0)
        for task in assignment.tasks:
            task.settle()
    assert seen == [tasks[5:7], tasks[3:5], tasks[1:3]]
    assert scheduler.queued == 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_taken_and_comes_back_the_queue_is_what_a_list_would_be(data: st.DataObject) -> None:
    queue = TaskQueue()
    numbers = itertools.count()
    waiting: list[Task] = []
    out: list[Task] = []

    def order(task: Task) -> tuple[bool, int]:
        return not task.alone, task.id

    for _ in range(data.draw(st.integers(0, 40))):
        step = data.draw(st.sampled_from(["come", "take", "take first", "leave", "back", "die"]))
        if step == "come":
            task = new_task(next(numbers), 0.0)
            queue.append(task)
            waiting.append(task)
        elif step == "take" and waiting:
            # One that must be alone is taken by itself, and the others in any order.
            others = [task for task in waiting if not task.alone]
            lone = [task for task in waiting if task.alone]
            some = data.draw(st.lists(st.sampled_from(others), unique=True, min_size=1)) if others else lone[:1]
            if lone and data.draw(st.booleans()):
                some = [data.draw(st.sampled_from(lone))]
            take(queue, some)
            out += some
        elif step == "take first":
            some = queue.first(data.draw(st.integers(1, 5)))
            assert some == [task for task in waiting if not task.alone][: len(some)]
            take(queue, some)
            out += some
        elif step == "leave" and waiting:
            settle(queue, data.draw(st.sampled_from(waiting)))
        elif step in ("back", "die") and out:
            some = data.draw(st.lists(st.sampled_from(out), unique=True, min_size=1))
            queue.requeue(died(*some) if step == "die" else some)
            out = [task for task in out if task not in some]
            waiting += some
        waiting = sorted((task for task in waiting if task.state is State.QUEUED), key=order)
        assert queue.waiting() == waiting
        assert queue.live == len(queue) == len(waiting)
        assert list(queue.lone) == [task for task in waiting if task.alone]
        assert queue.others == len(waiting) - len(queue.lone)
        others = [task for task in waiting if not task.alone]
        assert queue.head() is (others[0] if others else None)


def test_the_earliest_deadline_is_that_of_those_that_wait() -> None:
    queue = TaskQueue()
    assert queue.earliest_deadline() == math.inf
    tasks = [new_task(number, 0.0, deadline=deadline) for number, deadline in enumerate((9.0, 5.0, 7.0, 6.0))]
    for task in tasks[:3]:
        queue.append(task)
    assert queue.earliest_deadline() == 5.0
    queue.append(tasks[3])
    settle(queue, tasks[1])
    assert queue.earliest_deadline() == 6.0
    queue.take([tasks[0]])
    queue.append(new_task(9, 0.0, deadline=3.0))
    assert queue.earliest_deadline() == 3.0
    queue.take([tasks[2], tasks[3]])
    assert queue.earliest_deadline() == 3.0


def test_the_earliest_deadline_is_not_that_of_a_task_that_was_sent() -> None:
    queue = TaskQueue()
    tasks = [new_task(number, 0.0, deadline=float(number)) for number in range(4)]
    for task in tasks:
        queue.append(task)
    for place in range(4):
        assert queue.earliest_deadline() == float(place)
        take(queue, [tasks[place]])
    assert queue.earliest_deadline() == math.inf


def test_the_earliest_deadline_counts_what_comes_back_and_not_what_must_be_run_alone() -> None:
    queue = TaskQueue()
    tasks = [new_task(number, float(number), deadline=deadline) for number, deadline in enumerate((9.0, 7.0, 5.0, 8.0))]
    for task in tasks:
        queue.append(task)
    assert queue.earliest_deadline() == 5.0
    take(queue, tasks[1:3])
    assert queue.earliest_deadline() == 8.0
    tasks[2].attempts = 1
    queue.requeue(tasks[1:3])
    assert queue.earliest_deadline() == 7.0


@given(
    steps=st.lists(st.tuples(st.sampled_from(("come", "leave", "take", "look")), st.integers(0, 9)), max_size=60),
    ordered=st.booleans(),
)
def test_the_earliest_deadline_is_exact_whatever_comes_and_goes(steps: list[tuple[str, int]], ordered: bool) -> None:
    queue = OrderedQueue(Rules(), 4) if ordered else TaskQueue()
    for number, (step, value) in enumerate(steps):
        there = queue.waiting()
        if step == "come":
            queue.append(new_task(number, float(number), deadline=float(value)))
        elif step == "leave" and there:
            settle(queue, there[value % len(there)])
        elif step == "take" and there:
            take(queue, queue.first(1 + value % len(there)))
        elif step == "look":
            assert queue.earliest_deadline() == min((task.deadline for task in there), default=math.inf)
