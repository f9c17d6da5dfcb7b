from __future__ import annotations

import itertools

import pytest
from fakes import Held, Nobody

from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.task import TRANSITIONS, Event, State, Task, TaskError
from mosec_asgi.messages import Call

CALLER = Nobody()
CALL = Call(7, 2, b"payload", "request-7")


def task_in(state: State) -> Task:
    task = Task(CALL, CALLER, (3, 5), 10.0, 13.0)
    task.state = state
    return task


def test_a_new_task_waits_at_its_first_stage() -> None:
    task = task_in(State.QUEUED)
    new = Task(CALL, CALLER, (3,), 0.0, 1.0)
    assert (new.state, new.at_last_stage) == (State.QUEUED, True)
    assert (task.stage, task.position, task.attempts, task.alone, task.example) == (3, 0, 0, False, False)
    assert task.arrived == task.queued == 10.0
    assert (task.flow, task.place, task.batch) == (None, 0, 0)


def test_a_task_is_what_its_call_says() -> None:
    task = Task(Call(8, 2, b"body", "mine", 5.0, example=True), CALLER, (3,), 10.0, 13.0)
    assert (task.id, task.route, task.payload, task.request_id, task.example) == (8, 2, b"body", "mine", True)
    assert (task.caller, task.deadline) == (CALLER, 13.0)


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (State.QUEUED, Event.DISPATCH, State.SENT),
        (State.QUEUED, Event.SETTLE, State.SETTLED),
        (State.SENT, Event.ADVANCE, State.QUEUED),
        (State.SENT, Event.REQUEUE, State.QUEUED),
        (State.SENT, Event.SETTLE, State.SETTLED),
    ],
)
def test_a_step_of_the_table_leads_to_its_state(state: State, event: Event, after: State) -> None:
    task = task_in(state)
    task.step(event)
    assert task.state is after


@pytest.mark.parametrize(
    ("state", "event"), [pair for pair in itertools.product(State, Event) if pair not in TRANSITIONS]
)
def test_a_step_that_the_table_lacks_is_refused_and_changes_nothing(state: State, event: Event) -> None:
    task = task_in(state)
    with pytest.raises(TaskError, match=f"(?i)Task 7 {state.name}.*cannot see the event {event.name}"):
        task.step(event)
    assert task.state is state


def test_the_table_has_five_steps_and_none_after_the_end() -> None:
    assert len(TRANSITIONS) == 5
    assert State.SETTLED not in {state for state, _ in TRANSITIONS}


def test_a_task_that_advances_is_new_to_its_next_stage() -> None:
    task = task_in(State.SENT)
    task.attempts, task.alone = 1, True
    assert not task.at_last_stage
    task.advance(b"result", 11.0)
    assert (task.state, task.stage, task.position, task.payload) == (State.QUEUED, 5, 1, b"result")
    assert (task.queued, task.arrived, task.deadline) == (11.0, 10.0, 13.0)
    assert (task.attempts, task.alone) == (0, False)
    assert task.at_last_stage


@pytest.mark.parametrize("state", [State.QUEUED, State.SETTLED])
def test_only_a_task_on_a_worker_can_advance(state: State) -> None:
    task = task_in(state)
    with pytest.raises(TaskError):
        task.advance(b"result", 11.0)
    assert (task.position, task.payload) == (0, b"payload")


@pytest.mark.parametrize("state", [State.QUEUED, State.SENT])
def test_a_settled_task_frees_its_payload(state: State) -> None:
    task = task_in(state)
    task.settle()
    assert (task.state, task.payload) == (State.SETTLED, b"")


def test_a_payload_that_a_link_holds_is_dropped_once_when_the_task_goes_on_or_ends() -> None:
    task = task_in(State.SENT)
    held = [Held(), Held()]
    task.payload = held[0]
    task.advance(held[1], 11.0)
    assert [one.drops for one in held] == [1, 0]
    task.settle()
    assert [one.drops for one in held] == [1, 1]


def test_a_task_of_a_stream_keeps_its_flow_through_all_stages() -> None:
    flow = Flow(1024)
    task = Task(CALL, CALLER, (3, 5), 10.0, 13.0, flow=flow)
    task.step(Event.DISPATCH)
    task.advance(b"", 11.0)
    assert task.flow is flow


def test_a_task_says_where_it_is() -> None:
    task = task_in(State.SENT)
    task.attempts = 1
    assert repr(task) == "<Task 7 SENT stage=0 attempts=1>"


def test_a_task_is_settled_once() -> None:
    task = task_in(State.SENT)
    task.settle()
    with pytest.raises(TaskError):
        task.settle()
