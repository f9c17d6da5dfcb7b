"""Two tenants on virtual time: what the table is made of, in cases made by hand, and a small run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from harness import benchmark

from mosec_asgi.batching import tenants as turns

priority = benchmark("policies.priority")
tenants = benchmark("policies.tenants")


def offered(text: str) -> list[Any]:
    """Return a call for each letter, a tenth of a second apart: l of the light tenant, h of the heavy one."""
    return [priority.Offered(place / 10, letter == "l") for place, letter in enumerate(text)]


def latencies(text: str, slots: int = 1, size: int = 1, **options: bool) -> list[float]:
    """Return those of the light tenant where a batch takes a second, and another for each call in it."""
    played = priority.play(offered(text), slots, size, lambda first, count: 1.0 + count, **options)
    return [round(value, 6) for value in played.latencies]


def test_the_light_tenant_comes_first_and_interrupts_nothing() -> None:
    # The first runs until 2.0; then the light ones, though the others came before.
    assert latencies("hhhll") == [3.7, 5.6]
    assert latencies("l") == [2.0]


def test_each_slot_takes_a_call_at_once() -> None:
    assert latencies("hl", slots=2) == [2.0]
    assert latencies("hhl", slots=2) == [3.8]


def test_batches_are_filled_or_hold_the_light_tenant_alone() -> None:
    # Until 2.0 the first runs; the batch behind it has four, or one.
    assert latencies("hlhhh", size=4) == [6.9]
    assert latencies("hlhhh", size=4, mixed=False) == [3.9]
    assert latencies("hlhhh", size=2) == [4.9]


def test_the_best_way_is_one_that_does_as_much_and_costs_the_others_nothing() -> None:
    calls = offered("hlhhhhhhhh" * 5)

    def seconds(first: Any, count: int) -> float:
        return 0.3 + 0.05 * count

    def figure(found: Any) -> float:
        return float(max(found))

    usual = priority.play(calls, 1, 8, seconds)
    best = priority.best(calls, 1, 8, seconds, usual.done, figure)
    assert figure(best.latencies) <= figure(usual.latencies)
    assert best.done >= priority.AS_MUCH * usual.done
    assert figure(best.others) <= priority.NOT_WORSE * figure(usual.others)
    single = priority.play(calls, 1, 1, seconds)
    assert figure(single.latencies) < figure(best.latencies), "but it does less"
    assert single.done < 0.8 * usual.done


@pytest.mark.parametrize("layout", ["one worker", "batches of 16"])
def test_a_light_tenant_is_near_to_the_best_that_is_possible(layout: str) -> None:
    row = tenants.row(layout, "constant", 0.95, calls=400)
    assert row.holds, row
    assert row.answered == 1.0
    if layout == "one worker":
        assert row.fifo > 1.5 * row.ours


def test_a_scheduler_that_lets_nobody_save_turns_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SAVED", 0)
    row = tenants.row("one worker", "constant", 1.5, calls=800)
    assert row.verdict == "MISSED"


def test_shares_go_by_weights() -> None:
    share = tenants.share("8 workers", "exponential", calls=600)
    assert share.holds, share
    assert share.done == pytest.approx(1.0, abs=0.1)


ROW = tenants.Row("one worker", "constant", 0.8, 0.04, 0.05, 0.3, 0.03, 1.0)


@pytest.mark.parametrize(
    ("changes", "verdict", "holds"),
    [
        ({}, "<= 1.5 x alone", True),
        ({"ours": 0.07, "best": 0.065}, "<= 1.1 x best", True),
        ({"ours": 0.07, "best": 0.06}, "MISSED", False),
        ({"answered": 0.999}, "REFUSED", False),
    ],
)
def test_the_verdict_says_what_it_is_held_to(changes: dict[str, float], verdict: str, holds: bool) -> None:
    row = dataclasses.replace(ROW, **changes)
    assert (row.verdict, row.holds) == (verdict, holds)
    share = tenants.Share("one worker", "constant", 3.0, 1.0)
    assert tenants.holds([row], [share]) == holds
    assert verdict in tenants.text([row], [share])
    assert tenants.numbers([row], [share])["rows"][0]["verdict"] == verdict


@pytest.mark.parametrize(("ratio", "holds"), [(2.75, True), (3.3, True), (2.6, False), (3.4, False)])
def test_shares_may_differ_from_the_weights_by_a_tenth(ratio: float, holds: bool) -> None:
    share = tenants.Share("one worker", "constant", ratio, 1.0)
    assert share.holds == holds
    assert ("MISSED" in tenants.text([], [share])) != holds
