"""How many tasks a full batch holds."""

from __future__ import annotations

from mosec_asgi.batching.full_batches import FullBatches


def test_until_a_batch_was_full_it_is_taken_to_hold_all_that_it_may() -> None:
    assert FullBatches(64).size == 64


def test_the_size_is_the_average_of_full_batches() -> None:
    full = FullBatches(64)
    for count in (8, 12) * 50:
        full.note(count)
    assert 9 <= full.size <= 11


def test_the_size_follows_what_comes_and_is_one_at_least() -> None:
    full = FullBatches(64)
    for count in [8] * 50 + [30] * 50:
        full.note(count)
    assert 27 <= full.size <= 30
    for _ in range(100):
        full.note(1)
    assert full.size == 1


def test_the_size_does_not_change_with_every_batch() -> None:
    full = FullBatches(64)
    sizes = []
    for count in (9, 10, 11, 12) * 50:
        full.note(count)
        sizes.append(full.size)
    assert len(set(sizes)) <= 2
