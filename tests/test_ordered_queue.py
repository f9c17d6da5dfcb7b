"""The order of tasks by priority, tenant and key: none that lives is lost, none starves."""

from __future__ import annotations

import math
from typing import Any

from fakes import new_task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mosec_asgi.batching.ordered_queue import OrderedQueue
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.task import Event, State, Task
from mosec_asgi.batching.tenants import SAVED

KEYED = Rules(keyed=True)


def task(number: int, at: float = 0.0, /, **labels: Any) -> Task:
    made = new_task(number, at)
    for name, value in labels.items():
        setattr(made, name, value)
    return made


def filled(*tasks: Task, rules: Rules = KEYED, size: int = 3) -> OrderedQueue:
    queue = OrderedQueue(rules, size)
    for each in tasks:
        queue.append(each)
    return queue


def order(queue: OrderedQueue) -> list[int]:
    return [each.id for each in queue.first(1000)]


def serve(queue: OrderedQueue, count: int = 1) -> list[int]:
    served = queue.first(count)
    queue.take(served)
    for each in served:
        each.step(Event.DISPATCH)
    return [each.id for each in served]


# -- priority ----------------------------------------------------------------------------------------------------------


def test_without_priorities_and_tenants_the_order_is_that_of_arrival() -> None:
    queue = filled(*(task(number, key=str(number % 2)) for number in range(5)))
    assert order(queue) == [0, 1, 2, 3, 4]
    assert [each.id for each in queue.waiting()] == [0, 1, 2, 3, 4]


def test_the_higher_priority_comes_first_and_each_in_order_of_arrival() -> None:
    queue = filled(task(1), task(2, priority=2), task(3, priority=-1), task(4, priority=2), task(5))
    assert order(queue) == [2, 4, 1, 5, 3]
    head = queue.head()
    assert head is not None
    assert head.id == queue.waiting()[0].id == 1, "the first to have come"


def test_a_step_of_priority_is_worth_so_many_seconds_of_waiting() -> None:
    rules = Rules(ageing=1.0)
    queue = filled(task(1, 0.0), task(2, 1.5, priority=2), task(3, 2.5, priority=2), rules=rules)
    assert order(queue) == [2, 1, 3], "overtaken by what came up to two seconds later, and by nothing after that"


# -- tenants -----------------------------------------------------------------------------------------------------------


def test_tenants_have_their_turns_whoever_came_first() -> None:
    queue = filled(*(task(n, tenant="many") for n in range(6)), task(10, tenant="few"), task(11, tenant="few"))
    assert order(queue) == [0, 10, 1, 11, 2, 3, 4, 5]


def test_a_tenant_that_was_silent_has_saved_turns_and_no_more_than_the_others_had() -> None:
    queue = filled(*(task(n, tenant="many") for n in range(8)))
    assert serve(queue, 3) == [0, 1, 2]
    for number in range(10, 16):
        queue.append(task(number, tenant="few"))
    assert order(queue) == [10, 11, 12, 3, 13, 4, 14, 5, 15, 6, 7]


def test_what_is_saved_has_a_bound() -> None:
    queue = filled(*(task(n, tenant="many") for n in range(100)))
    serve(queue, 50)
    for number in range(100, 200):
        queue.append(task(number, tenant="few"))
    early = [number >= 100 for number in order(queue)].index(False)
    assert early == SAVED + 1, "and its turn in the round that is served"


def test_a_tenant_that_asks_again_and_again_does_not_keep_others_waiting() -> None:
    queue = filled(task(0, tenant="many"), task(1, tenant="many"), task(2, tenant="many"))
    served = serve(queue)
    for number in range(10, 14):
        queue.append(task(number, tenant="again"))
        served += serve(queue)
    assert {1, 2} <= set(served), "one who always has a single task waiting has one turn a round"


def test_weights_are_kept() -> None:
    rules = Rules(weights={"gold": 3.0})
    queue = filled(
        *(task(n, tenant="gold") for n in range(12)), *(task(n + 100, tenant="free") for n in range(4)), rules=rules
    )
    assert [sum(number < 100 for number in order(queue)[: 4 * n]) for n in (1, 2, 3)] == [3, 6, 9]


@settings(max_examples=200)
@given(
    events=st.lists(st.one_of(st.sampled_from("abc"), st.none()), max_size=80),
    weights=st.sampled_from(({}, {"a": 3.0}, {"b": 2.0, "c": 4.0})),
)
def test_no_tenant_starves_and_this_is_the_bound(events: list[str | None], weights: dict[str, float]) -> None:
    """Of each other tenant what it has saved starts, and its weight's worth for each turn that a task takes."""
    queue = OrderedQueue(Rules(weights=weights), 3)
    turns: dict[int, float] = {}
    between: dict[int, dict[str, int]] = {}
    for number, tenant in enumerate([*events, *[None] * len(events)]):
        if tenant is not None:
            made = task(number, float(number), tenant=tenant)
            before = sum(each.tenant == tenant for each in queue.waiting())
            turns[number] = math.ceil((before + 1) / weights.get(tenant, 1.0)) + 1
            between[number] = dict.fromkeys("abc", 0)
            queue.append(made)
        elif queue.live:
            [begun] = queue.first(1)
            serve(queue)
            for other, count in between.pop(begun.id).items():
                if other != begun.tenant:
                    assert count <= SAVED + turns[begun.id] * weights.get(other, 1.0)
            for counts in between.values():
                counts[begun.tenant] += 1
    assert not queue.live


def test_a_tenant_has_its_turns_in_each_priority_whatever_it_asks_for_in_others() -> None:
    queue = filled(*(task(n, tenant="heavy") for n in range(100)), task(100, tenant="heavy", priority=1))
    assert serve(queue) == [100]
    queue.append(task(200, tenant="light"))
    assert serve(queue, 2) == [0, 200], "not behind 100, though the last that was served is the heavy one's last"


def test_a_batch_of_like_costs_from_far_behind_leaves_the_light_tenant_its_turn() -> None:
    queue = filled(*(task(n, tenant="heavy", cost=10) for n in range(100)), rules=Rules(by_cost=True), size=4)
    far = queue.waiting()[-1]
    queue.take([queue.waiting()[0], far])
    queue.append(task(200, tenant="light", cost=10))
    assert 200 in serve(queue, 2)


def test_who_always_has_a_new_task_at_the_front_does_not_keep_a_priority_waiting() -> None:
    """Ageing is counted from the task of a priority that has waited longest, also while another is cancelled."""
    queue = filled(*(task(n, tenant="patient") for n in range(10)), rules=Rules(ageing=1.0))
    served = serve(queue, 5)
    assert served == [0, 1, 2, 3, 4]
    waiting: Task | None = None
    for number in range(100):
        now = number / 10
        queue.append(task(1000 + number, now, tenant="urgent", priority=1))
        if waiting is not None and waiting.state is State.QUEUED:
            queue.discard(waiting)
            waiting.settle()
        waiting = task(100 + number, now, tenant="restless")
        queue.append(waiting)
        served += serve(queue)
    assert {5, 6, 7, 8, 9} <= set(served)


def test_a_tenant_whose_calls_expire_at_the_head_gets_its_share() -> None:
    queue = filled()
    served: list[str] = []
    for now in range(600):
        for number in range(4):
            queue.append(task(4 * now + number, float(now), tenant="steady" if number == 0 else "late"))
        for each in queue.waiting():
            if each.tenant == "late" and each.queued < now - 20:
                queue.discard(each)
                each.settle()
        served.append(queue.first(1)[0].tenant)
        serve(queue)
    assert abs(served.count("late") - served.count("steady")) <= 100


@settings(max_examples=60, deadline=None)
@given(data=st.data(), weight=st.sampled_from((0.5, 1.0, 3.0)), most=st.sampled_from((1, 3, 50)))
def test_no_tenant_gets_more_than_its_share_and_what_it_saved(data: st.DataObject, weight: float, most: int) -> None:
    """Whatever it sends and cancels, beside one that always has something waiting."""
    queue = OrderedQueue(Rules(max_cost=10**9, weights={"other": weight}), 1)
    numbers = 0

    def come(tenant: str, cost: int) -> None:
        nonlocal numbers
        numbers += 1
        queue.append(task(numbers, float(numbers), tenant=tenant, cost=cost))

    ahead = 0.0
    bound = weight * most + SAVED * most + 2 * weight + 2 * most + weight * (most + 1)
    for sent, cancelled, starts in data.draw(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 4)), max_size=30)
    ):
        for number in range(5):
            come("steady", 1 + number % most)
        for number in range(sent):
            come("other", 1 + number % most)
        for each in [each for each in queue.waiting() if each.tenant == "other"][-cancelled:] if cancelled else []:
            queue.discard(each)
            each.settle()
        for _ in range(starts):
            [begun] = queue.first(1)
            serve(queue)
            ahead = max(0.0, ahead + (begun.cost if begun.tenant == "other" else -begun.cost * weight))
            assert ahead <= bound


def test_with_another_size_of_batches_all_keep_their_places() -> None:
    queue = filled(*(task(n, tenant="heavy") for n in range(20)), task(20, tenant="light"), size=3)
    lost = queue.first(1)
    queue.take(lost)
    lost[0].step(Event.DISPATCH)
    serve(queue, 9)
    queue.requeue(lost)
    before = order(queue)
    queue.resize(100)
    assert order(queue) == before
    assert queue.full() is None
    queue.append(task(30, tenant="light"))
    assert order(queue)[:2] == [0, 30], "it keeps what it has saved"
    queue.resize(2)
    assert queue.full() is queue.leader()


def test_what_is_settled_before_its_turn_is_given_back() -> None:
    queue = filled(task(0, tenant="a"), task(1, tenant="a"), task(2, tenant="a"), task(3, tenant="b"))
    for waiting in queue.waiting()[:2]:
        queue.discard(waiting)
        waiting.settle()
    for number, tenant in ((4, "a"), (5, "b"), (6, "b"), (7, "b")):
        queue.append(task(number, tenant=tenant))
    assert order(queue) == [3, 5, 2, 4, 6, 7], "4 has the turn of one that was settled"


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_full_when_it_holds_a_batch_or_costs_as_much() -> None:
    queue = filled(task(1, key="a"), task(2, key="b"), task(3, key="b"), task(4, key="b"))
    assert [queue.is_full(each) for each in queue.first(4)] == [False, True, True, True]
    full = queue.full()
    assert full is not None
    assert full.id == 2
    rich = filled(task(1, cost=9), task(2, cost=1), rules=Rules(max_cost=10), size=100)
    first = rich.full()
    assert first is not None
    assert first.id == 1


def test_a_key_is_forgotten_with_its_last_task() -> None:
    queue = filled(*(task(number, key=str(number)) for number in range(100)))
    assert queue.keys == 100
    serve(queue, 60)
    for each in queue.waiting():
        queue.discard(each)
        each.settle()
    assert (queue.keys, queue.live, queue.full(), queue.leader(), queue.head()) == (0, 0, None, None, None)


def test_the_tasks_whose_deadlines_are_near_are_found_wherever_they_stand() -> None:
    waiting = [task(number, deadline=100.0 - number) for number in range(50)]
    queue = filled(*waiting)
    assert [each.id for each in queue.pressing(52.5, 10)] == [49, 48]
    assert len(queue.pressing(1000.0, 10)) == 10


def test_a_queue_is_put_in_order_with_all_that_waits() -> None:
    plain = TaskQueue()
    tasks = [task(number) for number in range(4)]
    for each in tasks:
        plain.append(each)
    plain.discard(tasks[1])
    tasks[1].settle()
    queue = OrderedQueue.of(plain, Rules(), 3)
    queue.append(task(9, priority=1))
    assert (order(queue), queue.live) == ([9, 0, 2, 3], 4)


# -- whatever happens --------------------------------------------------------------------------------------------------


class Queues(RuleBasedStateMachine):
    """Against a plain list: whatever is taken, from wherever, the rest is there and in order."""

    @initialize(keyed=st.booleans(), by_cost=st.booleans(), size=st.integers(1, 4), cost=st.sampled_from((0, 5, 20)))
    def begin(self, keyed: bool, by_cost: bool, size: int, cost: int) -> None:
        self.rules = Rules(max_cost=cost, keyed=keyed, by_cost=by_cost, weights={"b": 3.0, "c": 0.25})
        self.size = size
        self.queue = OrderedQueue(self.rules, size)
        self.there: list[Task] = []
        self.lone: list[Task] = []
        self.sent: list[Task] = []
        self.returned: set[int] = set()
        self.now = 0.0
        self.numbers = 0

    @rule(
        priority=st.integers(-2, 2), tenant=st.sampled_from("abc"), key=st.sampled_from("xyz"), cost=st.integers(0, 9)
    )
    def arrives(self, priority: int, tenant: str, key: str, cost: int) -> None:
        self.now += 0.25
        self.numbers += 1
        made = task(self.numbers, self.now, deadline=1e6, priority=priority, tenant=tenant, key=key, cost=cost)
        self.queue.append(made)
        self.there.append(made)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def some_are_taken(self, data: st.DataObject) -> None:
        taken = data.draw(st.lists(st.sampled_from(self.there), unique_by=id, min_size=1, max_size=4))
        self.queue.take(taken)
        for each in taken:
            self.there.remove(each)
            each.step(Event.DISPATCH)
            self.sent.append(each)

    @precondition(lambda self: self.there or self.lone)
    @rule(data=st.data())
    def one_is_settled(self, data: st.DataObject) -> None:
        settled = data.draw(st.sampled_from([*self.there, *self.lone]))
        self.queue.discard(settled)
        settled.settle()
        (self.lone if settled.alone else self.there).remove(settled)

    @precondition(lambda self: self.sent)
    @rule(begun=st.integers(0, 2))
    def a_worker_dies(self, begun: int) -> None:
        for each in self.sent[:begun]:
            each.attempts += 1
        self.queue.requeue(self.sent)
        for each in self.sent:
            (self.lone if each.alone else self.there).append(each)
            self.returned.add(each.id)
        self.sent = []

    @precondition(lambda self: self.lone)
    @rule()
    def a_lone_one_is_taken(self) -> None:
        first = self.queue.lone[0]
        self.queue.take([first])
        first.step(Event.DISPATCH)
        self.lone.remove(first)
        self.sent.append(first)

    @invariant()
    def all_that_live_are_there(self) -> None:
        assert self.queue.live == len(self.there) + len(self.lone)
        assert self.queue.others == len(self.there)
        arrived = sorted(self.there, key=lambda each: (each.queued, each.number))
        assert self.queue.waiting() == [*self.queue.lone, *arrived]
        assert sorted(each.id for each in self.queue.first(100)) == sorted(each.id for each in self.there)
        assert all(each.state is State.QUEUED for each in self.queue.waiting())
        assert {each.id for each in self.queue.pressing(math.inf, 100)} == {each.id for each in self.there + self.lone}

    @invariant()
    def of_one_tenant_and_priority_the_order_is_that_of_arrival(self) -> None:
        ours = [each for each in self.queue.first(100) if each.id not in self.returned]
        for priority in range(-2, 3):
            for tenant in "abc":
                numbers = [each.number for each in ours if (each.priority, each.tenant) == (priority, tenant)]
                assert numbers == sorted(numbers)

    @invariant()
    def the_full_keys_are_known(self) -> None:
        by_key: dict[str, list[Task]] = {}
        for each in self.queue.first(100):
            by_key.setdefault(each.key if self.rules.keyed else "", []).append(each)
        limit = self.rules.max_cost or 1e9
        full = [
            tasks[0]
            for tasks in by_key.values()
            if len(tasks) >= self.size or sum(each.cost for each in tasks) >= limit
        ]
        found = self.queue.full()
        if len({each.priority for each in self.there}) <= 1:
            assert found is (full[0] if full else None)
        else:
            # A task that waits for the turn of another tenant need not do so where that one's key is not full. With
            # priorities, which compare the first of each, another may come before both.
            assert (found is None) == (not full)
            assert found is None or self.queue.is_full(found)
        assert self.queue.keys == len(by_key)


Queues.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)
TestQueues = Queues.TestCase


def test_the_cost_of_all_that_waits_is_known() -> None:
    first, second, third = (task(number, cost=10 * number) for number in (1, 2, 3))
    queue = filled(first, second, third)
    assert queue.cost == 60
    queue.take([second])
    queue.discard(third)
    assert queue.cost == 10
