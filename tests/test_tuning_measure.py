"""One worker is started for each of these."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from mosec_asgi import Runtime, Server, ValidationError, Worker
from mosec_asgi.offline.faults import Halted
from mosec_asgi.tuning.measure import LEAST_BUSY, Bounds, measure, processors_of

FIXED, PER_ITEM = 0.004, 0.001


class Model(Worker):
    """Takes what a batch of so many items takes, and no negative ones."""

    @staticmethod
    def cost(item: Any) -> int:
        """Return what an item costs."""
        return abs(int(item))

    def forward(self, data: list[int]) -> list[int]:
        time.sleep(FIXED + PER_ITEM * len(data))
        if len(data) > 12:
            raise MemoryError("too large a batch")
        return [item + 1 for item in data]


class Picky(Worker):
    """Takes nothing."""

    def forward(self, data: Any) -> Any:
        raise ValidationError("not one of mine")


class PickyInPart(Worker):
    """Takes no negative items."""

    def forward(self, data: int) -> int:
        if data < 0:
            raise ValidationError("negative")
        return data + 1


async def test_batches_grow_until_one_fails_and_each_is_measured_by_items_and_by_cost() -> None:
    measured = await measure(Server(), Runtime(Model, max_batch_size=4), [1, 2, 3, 4], Bounds(20.0, 16, 60.0))
    assert measured.most == 12
    assert "a batch of 16 failed" in measured.ended
    assert measured.outputs == [2, 3, 4, 5]
    assert [label.cost for label in measured.labels] == [1, 2, 3, 4]
    assert measured.refused == 0
    for point in measured.by_items:
        assert point.seconds >= FIXED + PER_ITEM * point.x * 0.999
    assert len(measured.by_cost) == len(measured.by_items)
    assert measured.memory > 0


async def test_items_that_fail_are_counted_and_told_and_the_others_go_on() -> None:
    measured = await measure(Server(), Runtime(PickyInPart), [5, -1, 7], Bounds(2.0, 16, 60.0))
    assert (measured.outputs, measured.kept, measured.refused) == ([6, 8], [0, 2], 1)
    assert "negative" in measured.why_refused
    assert measured.most == 1


async def test_a_stage_that_takes_nothing_ends_it_and_says_what_to_write() -> None:
    with pytest.raises(Halted, match=r"Picky takes none of the sample's items.*not one of mine"):
        await measure(Server(), Runtime(Picky), [1], Bounds(2.0, 4, 60.0))


@pytest.mark.parametrize(
    ("main", "others", "busy", "expected"),
    [
        (2.0, 0.0, 4.0, 0.5),
        (3.0, 9.0, 3.0, 4.0),
        # What it takes for its messages is not at work, and its one thread takes no more than one processor.
        (5.0, 0.0, 1.0, 1.0),
        # Too little for the clock that counts it.
        (0.0, 0.01, LEAST_BUSY / 2, 1.0),
    ],
)
def test_a_worker_takes_no_more_processors_than_its_threads_can(
    main: float, others: float, busy: float, expected: float
) -> None:
    assert processors_of(main, others, busy) == expected


class Hangs(Worker):
    """Comes to no end."""

    def forward(self, data: Any) -> Any:
        time.sleep(1000)


class Dies(Worker):
    """Takes its process with it."""

    def forward(self, data: Any) -> Any:
        os._exit(3)


class FailsTheSecondTime(Worker):
    """Answers once."""

    answered = False

    def forward(self, data: Any) -> Any:
        if self.answered:
            raise ValidationError("not again")
        self.answered = True
        return data


class DiesOfLarge(Worker):
    """Takes processor time, and dies of batches above four."""

    def forward(self, data: list[Any]) -> list[Any]:
        if len(data) > 4:
            os._exit(3)
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass
        return data


async def test_a_model_that_hangs_ends_it_in_time_and_says_what_to_do() -> None:
    began = time.monotonic()
    with pytest.raises(Halted, match=r"Hangs has answered none of the first 8 items .* give it more time by --seconds"):
        await measure(Server(), Runtime(Hangs), list(range(100)), Bounds(1.0, 4, 60.0))
    # A second for the items, and what it takes to start and to end a worker; not a timeout for each item.
    assert time.monotonic() - began < 30


async def test_a_model_of_which_workers_die_ends_it_with_the_reason() -> None:
    with pytest.raises(Halted, match=r"Dies has answered none of .*worker"):
        await measure(Server(), Runtime(Dies), list(range(100)), Bounds(1.0, 4, 60.0))


async def test_a_model_that_fails_what_it_has_answered_before_ends_it_with_the_reason() -> None:
    with pytest.raises(Halted, match=r"FailsTheSecondTime could not be measured: .*not again"):
        await measure(Server(), Runtime(FailsTheSecondTime), [1], Bounds(5.0, 4, 60.0))


async def test_what_a_worker_takes_of_the_machine_is_known_though_it_dies_of_the_largest_batch() -> None:
    measured = await measure(Server(), Runtime(DiesOfLarge, max_batch_size=4), [1, 2], Bounds(20.0, 16, 60.0))
    assert measured.most == 4
    assert "a batch of 6 failed" in measured.ended
    # More on a machine that has nothing else to do: it computes all the time.
    assert measured.cpu > 0.0
    assert measured.memory > 0
