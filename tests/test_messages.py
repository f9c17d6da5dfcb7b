"""The messages between the layers: each survives a pickle, so that any arrow may cross a socket."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from fakes import Held

from mosec_asgi import messages
from mosec_asgi.errors import CLIENT_LEFT, STAGE_DOWN, Failure, at_capacity
from mosec_asgi.messages import (
    EGRESS,
    EXAMPLE,
    INGRESS,
    Call,
    Cancel,
    Cancels,
    Chunk,
    Chunks,
    Credit,
    Credits,
    ForwardTime,
    Outcome,
    Pieces,
    Progress,
    Results,
    StageTime,
    Tasks,
    drop_all,
)

EACH = [
    Call(1, 0, b"payload", "request"),
    Call(2, 3, b"", "request", 1.5, example=True),
    Call(2, 3, b"", "request", objects=True, priority=2, key="adapter"),
    Call(2, 3, b"", "request", trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 vendor=1"),
    StageTime("Inference_1", 0.5, 0.25),
    Outcome(1, 200, b"result"),
    Outcome(1, 200, b"result", times=(StageTime("Inference_1", 0.5, 0.25),)),
    Outcome(1, 429, b"too many", 7),
    Chunk(1, b"piece"),
    Credit(1, 500),
    Cancel(1),
    Tasks([1, 2], [INGRESS | EGRESS, EXAMPLE], ["a", "nötig"], [b"", b"\0\xff"]),
    ForwardTime(0.5, 0.25, 1),
    Results([1, 2], [200, 422], [b"x", b"no"], 0.25),
    Results([1], [200], [b"x"], 0.25, [ForwardTime(0.5, 0.25, 1)]),
    Chunks([1, 1, 2], [b"a", b"", b"c"]),
    Cancels([1, 2]),
    Credits([1, 2], [5, 6]),
    Progress(3, 17),
]


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("message", EACH, ids=lambda message: type(message).__name__)
def test_a_message_that_was_pickled_is_an_equal_one(message: Any, protocol: int) -> None:
    crossed = pickle.loads(pickle.dumps(message, protocol))
    assert crossed == message
    assert type(crossed) is type(message)


def test_all_messages_are_here() -> None:
    defined = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, tuple) and kind.__module__ == messages.__name__
    }
    assert {type(message) for message in EACH} == defined


@pytest.mark.parametrize("message", EACH, ids=lambda message: type(message).__name__)
def test_nobody_can_change_a_message(message: Any) -> None:
    for field in message._fields:
        with pytest.raises(AttributeError):
            setattr(message, field, None)


def test_a_payload_that_a_link_holds_crosses_as_bytes() -> None:
    held = Held(b"contents")
    tasks = Tasks([1, 2], [0, 0], ["a", "b"], [held, b"x"])
    assert pickle.loads(pickle.dumps(tasks)) == Tasks([1, 2], [0, 0], ["a", "b"], [b"contents", b"x"])
    results = Results([1], [200], [held], 0.1)
    assert pickle.loads(pickle.dumps(results)).payloads == [b"contents"]
    assert held.drops == 0


@pytest.mark.parametrize("failure", [CLIENT_LEFT, STAGE_DOWN, at_capacity(3), Failure(422, "nötig"), Failure(500, "")])
def test_a_failure_is_an_outcome_and_comes_out_of_it_as_it_went_in(failure: Failure) -> None:
    outcome = Outcome.of_failure(7, failure)
    assert (outcome.call_id, outcome.code, outcome.retry_after) == (7, failure.code, failure.retry_after)
    assert outcome.failure == failure
    assert pickle.loads(pickle.dumps(outcome)).failure == failure


def test_a_result_has_no_failure() -> None:
    assert Outcome(1, 200, b"result").failure is None


def test_text_that_is_no_unicode_harms_no_outcome() -> None:
    assert Outcome(1, 500, b"\xff!").failure == Failure(500, "\ufffd!")
    assert Outcome.of_failure(1, Failure(500, "\udcff!")).payload == b"\\udcff!"


def test_the_fields_of_a_failure_pass_with_it_and_its_text_cannot_be_taken_for_them() -> None:
    failure = Failure(400, "a\0b", fields={"code": "too_long", "left": 3, "more": None})
    outcome = Outcome.of_failure(1, failure)
    assert outcome.failure == Failure(400, "a b", fields=failure.fields)
    assert Outcome(1, 500, b"text\0no JSON").failure == Failure(500, "text")
    assert Outcome(1, 500, b"text\0[1]").failure == Failure(500, "text")


def test_flags_can_be_told_apart_in_their_sum() -> None:
    flags = (INGRESS, EGRESS, EXAMPLE)
    assert len({sum(flag for place, flag in enumerate(flags) if number >> place & 1) for number in range(8)}) == 8


def test_what_links_hold_is_dropped_and_bytes_are_left_alone() -> None:
    first, second = Held(), Held()
    drop_all([first, b"x", second])
    assert (first.drops, second.drops) == (1, 1)


def test_pieces_are_one_payload_for_whoever_reads_it() -> None:
    pieces = Pieces([b"one ", memoryview(b"or two")[3:], b""], 7)
    assert len(pieces) == 7
    assert pieces.read() == pieces.copy() == pieces.lend() == b"one two"
    # They leave this process as plain bytes.
    assert pickle.loads(pickle.dumps(pieces)) == b"one two"
    whole = pickle.dumps({"a": 1})
    assert Pieces([whole[:3], whole[3:]], len(whole)).load() == {"a": 1}
    drop_all([pieces])
