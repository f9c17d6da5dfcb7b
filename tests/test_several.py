"""Requests of several calls: their turns, their failures, their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mosec_asgi.errors import CANCELLED, CLIENT_LEFT, EncodingError, Failure, describe
from mosec_asgi.messages import OK, Call, Chunk, Outcome
from mosec_asgi.web.several import Several, Turns


class Held:
    """A payload in shared memory."""

    dropped = 0

    def __len__(self) -> int:
        return 1

    def drop(self) -> None:
        self.dropped += 1


class FakeEngine:
    """Keeps the calls that it is given."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[Call, Any]] = {}
        self.cancelled: list[int] = []

    def submit(self, call: Call, caller: Any) -> None:
        self.open[call.id] = (call, caller)

    def cancel(self, call_id: int) -> None:
        if call_id in self.open:
            self.cancelled.append(call_id)
            self.answer(call_id, CANCELLED, CLIENT_LEFT.text.encode())

    def answer(self, call_id: int, code: int = OK, payload: Any = b"") -> None:
        _, caller = self.open.pop(call_id)
        caller.settled(Outcome(call_id, code, payload))


class Asker:
    def __init__(self) -> None:
        self.outcomes: Sequence[Outcome] | None = None
        self.left = 0
        self.faults: list[BaseException] = []

    def answered(self, outcomes: Sequence[Outcome]) -> None:
        assert self.outcomes is None
        self.outcomes = outcomes

    def streamed(self, chunk: Chunk) -> None:
        raise AssertionError(chunk)

    def abandoned(self) -> None:
        self.left += 1

    def fault(self, error: BaseException) -> Failure:
        self.faults.append(error)
        return describe(error)


class Numbered:
    """Calls with the numbers from `first` on; that of `wrong` cannot be made."""

    def __init__(
        self,
        turns: Turns,
        first: int,
        count: int,
        wrong: int | None = None,
        error: type[BaseException] = EncodingError,
    ) -> None:
        self.turns = turns
        self._error = error
        self._first = first
        self._count = count
        self._wrong = wrong

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Call:
        if place == self._wrong:
            raise self._error("no such thing")
        return Call(self._first + place, 0, b"", "id")


async def turn() -> None:
    """Let the event loop do what was put off."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_requests_of_a_route_have_a_number_of_calls_together_and_each_its_turn() -> None:
    engine, turns = FakeEngine(), Turns(4)
    askers = [Asker(), Asker()]
    for number, asker in enumerate(askers):
        Several(Numbered(turns, 100 * number, 6), engine, asker).begin()  # type: ignore[arg-type]
    # The first came alone; the second has the one that each may always have.
    assert list(engine.open) == [0, 1, 2, 3, 100]
    order = []
    while engine.open:
        order.append(next(iter(engine.open)))
        engine.answer(order[-1])
        await turn()
        assert len(engine.open) <= 5
    assert order == [0, 1, 2, 3, 100, 4, 101, 5, 102, 103, 104, 105]
    for number, asker in enumerate(askers):
        assert asker.outcomes is not None
        assert [outcome.call_id for outcome in asker.outcomes] == [100 * number + place for place in range(6)]


async def test_a_request_has_always_one_call_there_though_others_have_all_turns() -> None:
    engine, turns = FakeEngine(), Turns(1)
    Several(Numbered(turns, 0, 5), engine, Asker()).begin()  # type: ignore[arg-type]
    Several(Numbered(turns, 100, 5), engine, Asker()).begin()  # type: ignore[arg-type]
    for number in range(100, 104):
        engine.answer(number)
        await turn()
        assert sorted(engine.open) == [0, number + 1]


async def test_the_outcomes_are_in_the_order_of_the_calls_whatever_that_of_the_answers() -> None:
    engine, asker = FakeEngine(), Asker()
    Several([Call(number, 0, b"", "id") for number in range(4)], engine, asker).begin()  # type: ignore[arg-type]
    assert len(engine.open) == 4
    for number in (2, 0, 3, 1):
        assert asker.outcomes is None
        engine.answer(number)
    assert asker.outcomes is not None
    assert [outcome.call_id for outcome in asker.outcomes] == [0, 1, 2, 3]


async def test_the_first_failure_is_the_answer_and_ends_the_others() -> None:
    engine, asker, held = FakeEngine(), Asker(), Held()
    Several(Numbered(Turns(3), 0, 9), engine, asker).begin()  # type: ignore[arg-type]
    engine.answer(0, payload=held)
    engine.answer(1, 422, b"wrong")
    assert asker.outcomes is not None
    assert [(outcome.call_id, outcome.code) for outcome in asker.outcomes] == [(1, 422)]
    assert engine.cancelled == [], "the engine must not be called in the middle of its work"
    await turn()
    assert (engine.cancelled, engine.open, held.dropped, asker.left) == ([2], {}, 1, 0)


async def test_a_result_that_comes_after_a_failure_is_dropped() -> None:
    engine, asker, held = FakeEngine(), Asker(), Held()
    Several(Numbered(Turns(3), 0, 9), engine, asker).begin()  # type: ignore[arg-type]
    engine.answer(1, 500, b"wrong")
    engine.answer(0, payload=held)
    assert held.dropped == 1
    await turn()


async def test_a_client_that_leaves_ends_all_and_gives_its_turns_to_others() -> None:
    engine, turns = FakeEngine(), Turns(2)
    leaving, staying = Asker(), Asker()
    several = Several(Numbered(turns, 0, 9), engine, leaving)  # type: ignore[arg-type]
    several.begin()
    Several(Numbered(turns, 100, 3), engine, staying).begin()  # type: ignore[arg-type]
    several.leave()
    several.leave()
    await turn()
    assert (sorted(engine.cancelled), leaving.left, leaving.outcomes) == ([0, 1], 1, None)
    assert sorted(engine.open) == [100, 101]
    for number in (100, 101, 102):
        engine.answer(number)
        await turn()
    assert staying.outcomes is not None


# A fault of ours is logged by the asker, as it knows the request; that of a library need be no `Exception`.
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EncodingError, "encoding error: no such thing"),
        (RuntimeError, "inference internal error"),
        (SystemExit, "inference internal error"),
    ],
)
async def test_a_call_that_cannot_be_made_when_its_turn_comes_fails_the_request(
    error: type[BaseException], text: str
) -> None:
    engine, asker = FakeEngine(), Asker()
    Several(Numbered(Turns(2), 0, 5, wrong=3, error=error), engine, asker).begin()  # type: ignore[arg-type]
    engine.answer(0)
    engine.answer(1)
    await turn()
    assert asker.outcomes is not None
    [failed] = asker.outcomes
    assert failed.failure is not None
    assert failed.failure.text == text
    assert [type(fault) for fault in asker.faults] == [error]
    await turn()
    assert (engine.cancelled, engine.open) == ([2], {})


async def test_a_first_call_that_cannot_be_made_is_raised() -> None:
    with pytest.raises(EncodingError):
        Several(Numbered(Turns(2), 0, 5, wrong=0), FakeEngine(), Asker()).begin()  # type: ignore[arg-type]
