"""Lines that have been done."""

from __future__ import annotations

import random

from mosec_asgi.offline.done import Done


def test_each_line_is_added_once_in_any_order() -> None:
    numbers = random.Random(0).sample(range(1, 5000), 2000)
    done, expected = Done(), set(numbers)
    assert all(done.add(number) for number in numbers)
    assert not any(done.add(number) for number in numbers)
    assert len(done) == len(expected)
    assert {number for number in range(6000) if number in done} == expected


def test_a_million_lines_take_a_bit_each() -> None:
    done = Done()
    done.add(1_000_000)
    assert len(done._bits) < 126_000
