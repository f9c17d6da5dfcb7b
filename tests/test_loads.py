"""What workers have, how quick they are, and that what they say of their tasks is checked. See `test_scheduler` too."""

from __future__ import annotations

import pytest
from fakes import new_task

from mosec_asgi.batching.loads import MAX_WINDOW, WINDOW_SECONDS, AnswerError, Load, Loads
from mosec_asgi.batching.task import State, Task


def loads(*workers: str, batched: bool = False, concurrency: int = 1, ordered: bool = True) -> Loads[str]:
    made: Loads[str] = Loads(batched=batched, concurrency=concurrency, ordered=ordered)
    for worker in workers:
        made.add(worker)
    return made


def tasks(*numbers: int) -> list[Task]:
    return [new_task(number, 0.0) for number in numbers]


def test_what_a_worker_is_given_it_has_until_it_answers() -> None:
    all_of_them = loads("a", "b")
    first, second, third = tasks(1, 2, 3)
    all_of_them.give("a", [first, second])
    all_of_them.give("b", [third])
    assert first.state is State.SENT
    assert (all_of_them.in_flight, all_of_them.busy) == (3, ["a", "b"])
    assert (all_of_them.holder(second), all_of_them.holder(third)) == ("a", "b")
    assert all_of_them.given("a", [2, 1, 2]) == [second, first, second]
    assert all_of_them.answered("a", [1], 1.0) == [first]
    assert (all_of_them.in_flight, all_of_them.holder(first)) == (2, None)
    assert list(all_of_them["a"].sent) == [2]


def test_places_count_all_that_a_worker_was_ever_sent() -> None:
    all_of_them = loads("a", "b")
    first, second, third, other = tasks(1, 2, 3, 4)
    all_of_them.give("a", [first])
    all_of_them.answered("a", [1], 1.0)
    all_of_them.give("a", [second, third])
    all_of_them.give("b", [other])
    assert [task.place for task in (first, second, third, other)] == [1, 2, 3, 1]
    assert all_of_them["a"].given == 3
    assert [all_of_them.begun("a", count) for count in (1, 2, 9)] == [[], [second], [second, third]]


@pytest.mark.parametrize("ids", [[2], [2, 1], [1, 1], [1, 2, 3, 4], [9], [1, 9]])
def test_an_answer_out_of_order_or_of_no_task_changes_nothing(ids: list[int]) -> None:
    all_of_them = loads("a")
    all_of_them.give("a", tasks(1, 2, 3))
    with pytest.raises(AnswerError, match="answered the tasks"):
        all_of_them.answered("a", ids, 1.0)
    assert (list(all_of_them["a"].sent), all_of_them.in_flight) == ([1, 2, 3], 3)


@pytest.mark.parametrize("ids", [[1, 1], [1, 2, 3, 4], [9], [1, 9]])
def test_where_no_order_is_kept_each_task_is_to_be_answered_once_all_the_same(ids: list[int]) -> None:
    all_of_them = loads("a", ordered=False)
    all_of_them.give("a", tasks(1, 2, 3))
    with pytest.raises(AnswerError, match="did not have each of them once"):
        all_of_them.answered("a", ids, 1.0)
    assert [task.id for task in all_of_them.answered("a", [3, 1], 1.0)] == [3, 1]


def test_a_worker_cannot_speak_of_what_it_does_not_have() -> None:
    all_of_them = loads("a", "b")
    all_of_them.give("a", tasks(1))
    all_of_them.give("b", tasks(2))
    with pytest.raises(AnswerError, match="named task 2, which it did not have"):
        all_of_them.given("a", [1, 2])


def test_a_batch_is_done_with_its_last_answer() -> None:
    all_of_them = loads("a", batched=True, concurrency=2, ordered=False)
    all_of_them.give("a", tasks(1, 2))
    all_of_them.give("a", tasks(3, 4))
    load = all_of_them["a"]
    assert (load.batches, all_of_them.slots_in_use, all_of_them.has_room(load)) == ({1: 2, 3: 2}, 2, False)
    all_of_them.answered("a", [1, 3], 1.0)
    assert (all_of_them.slots_in_use, all_of_them.free) == (2, 0)
    all_of_them.answered("a", [4], 1.0)
    assert (load.batches, all_of_them.slots_in_use, all_of_them.free) == ({1: 1}, 1, 1)


def test_what_is_sent_ahead_is_in_no_slot() -> None:
    all_of_them = loads("a", concurrency=4, ordered=False)
    all_of_them.give("a", tasks(1, 2, 3, 4, 5))
    assert (all_of_them.slots_in_use, all_of_them.in_flight) == (4, 5)


def test_a_worker_that_runs_a_task_alone_has_no_room_until_it_has_nothing() -> None:
    all_of_them = loads("a", concurrency=2, ordered=False)
    all_of_them.give("a", tasks(1, 2))
    load = all_of_them["a"]
    load.alone = True
    all_of_them.answered("a", [1], 1.0)
    assert (load.alone, all_of_them.free) == (True, 0)
    all_of_them.answered("a", [2], 1.0)
    assert (load.alone, all_of_them.free) == (False, 1)


def test_a_worker_that_is_forgotten_gives_back_what_it_had_in_the_order_in_which_it_was_sent() -> None:
    all_of_them = loads("a", "b", ordered=False)
    mine = tasks(3, 1, 2)
    all_of_them.give("a", mine)
    all_of_them.give("b", tasks(4))
    assert all_of_them.remove("a") == mine
    assert (all_of_them.in_flight, len(all_of_them), all_of_them.get("a")) == (1, 1, None)


def test_a_worker_used_longer_ago_comes_first() -> None:
    all_of_them = loads("a", "b")
    assert all_of_them["a"].order < all_of_them["b"].order
    all_of_them.give("a", tasks(1))
    assert all_of_them["b"].order < all_of_them["a"].order


def test_the_window_of_a_concurrent_worker_is_a_quarter_more_than_it_runs() -> None:
    assert [loads("a", concurrency=number)["a"].window for number in (1, 4, 10)] == [1, 5, 12]


def test_the_window_follows_the_measured_time() -> None:
    load = Load(1, 1)
    assert (load.seconds_per_item, load.work) == (None, 0.0)
    load.measure(WINDOW_SECONDS / 7.5)
    assert load.window == 8
    load.sent = {task.id: task for task in tasks(1, 2, 3)}
    assert load.work == pytest.approx(3 * WINDOW_SECONDS / 7.5)
    for _ in range(50):
        load.measure(1.0)
    assert load.window == 1
    for _ in range(200):
        load.measure(0.0)
    assert load.window == MAX_WINDOW


@pytest.mark.parametrize(
    ("concurrency", "answers", "begun"), [(1, [1], {2}), (1, [1, 2], {3}), (2, [1], {3}), (2, [1, 2], {3, 4})]
)
def test_what_a_worker_turns_to_with_its_answer_is_marked_as_begun(
    concurrency: int, answers: list[int], begun: set[int]
) -> None:
    all_of_them = loads("a", concurrency=concurrency, ordered=concurrency == 1)
    waiting = tasks(1, 2, 3, 4, 5)
    all_of_them.give("a", waiting)
    all_of_them.answered("a", answers, 7.0)
    assert {task.id for task in waiting if task.began == 7.0} == begun


def test_the_next_batch_is_begun_with_the_last_answer_of_the_one_before() -> None:
    all_of_them = loads("a", batched=True)
    first, second = tasks(1, 2), tasks(3, 4)
    all_of_them.give("a", first)
    all_of_them.give("a", second)
    all_of_them.answered("a", [1, 2], 7.0)
    assert [task.began for task in second] == [7.0, 0.0], "the first task tells for its batch"


def test_units_are_batches_or_tasks_where_there_are_none() -> None:
    plain, batched = loads("a", "b"), loads("a", "b", batched=True)
    for all_of_them in (plain, batched):
        all_of_them.give("a", tasks(1, 2))
        all_of_them.give("b", tasks(3, 4))
    assert (plain.units, batched.units) == (4, 2)


def test_there_is_room_until_every_worker_has_all_that_may_be_sent_ahead() -> None:
    plain, batched = loads("a", "b"), loads("a", batched=True)
    plain.give("a", tasks(1))
    batched.give("a", tasks(1, 2))
    assert (plain.any_room, batched.any_room) == (True, True)
    plain.give("b", tasks(2))
    batched.give("a", tasks(3, 4))
    assert (plain.any_room, batched.any_room) == (False, False)
    assert not loads().any_room


@pytest.mark.parametrize(("batched", "running"), [(False, 2), (True, 4)])
def test_of_those_that_a_worker_runs_the_old_ones_can_be_counted(batched: bool, running: int) -> None:
    all_of_them = loads("a", batched=batched, concurrency=2, ordered=False)
    several = tasks(1, 2, 3, 4, 5, 6)
    for number in (0, 2, 4):
        all_of_them.give("a", several[number : number + 2])
    for task in several:
        task.began = float(task.id)
    assert all_of_them.begun_before(2.0) == 1
    assert all_of_them.begun_before(9.0) == running, "those that were sent ahead do not run"
