"""What a worker asks of a cluster, how many fit, and what is said where none does."""

from __future__ import annotations

import pytest

from mosec_asgi.pool.ray.room import asked, emptiest, fitting, in_words, lacking

SMALL, LARGE = {"CPU": 4.0, "node:1": 1.0}, {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {}),
        ({"num_gpus": 1, "num_cpus": 0}, {"GPU": 1.0}),
        ({"num_cpus": 2, "memory": 100, "resources": {"tpu": 0.5}}, {"CPU": 2.0, "memory": 100.0, "tpu": 0.5}),
        ({"accelerator_type": "H100"}, {"accelerator_type:H100": 0.001}),
    ],
)
def test_what_is_asked_for(options: dict[str, object], wanted: dict[str, float]) -> None:
    assert asked(options) == wanted


@pytest.mark.parametrize(
    ("free", "wanted", "own", "number"),
    [
        # All of it is free.
        ({"CPU": 12.0, "GPU": 2.0}, {"GPU": 1.0}, 0, 2),
        ({"CPU": 12.0, "GPU": 2.0}, {"CPU": 3.0}, 0, 3),
        # Two of ours have the GPUs already.
        ({"CPU": 12.0}, {"GPU": 1.0}, 2, 2),
        # Others have one.
        ({"CPU": 12.0}, {"GPU": 1.0}, 1, 1),
        ({"CPU": 12.0, "GPU": 2.0}, {"TPU": 1.0}, 0, 0),
        # A node was added, and nothing is asked for.
        ({"CPU": 12.0}, {}, 3, 3),
        # Shares in decimals.
        ({"CPU": 12.0, "GPU": 2.0}, {"GPU": 0.2}, 0, 10),
    ],
)
def test_how_many_fit(free: dict[str, float], wanted: dict[str, float], own: int, number: int) -> None:
    assert fitting([SMALL, LARGE], free, wanted, own) == number


def test_no_worker_is_on_two_nodes() -> None:
    assert fitting([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 6.0}, {"CPU": 2.0}, 0) == 2


def test_what_is_lacking_is_said_with_what_would_help() -> None:
    nowhere = lacking([SMALL, LARGE], {"CPU": 12.0}, {"GPU": 4.0})
    assert "it asks for 4 GPU, and no node has that" in nowhere
    assert "8 CPU and 2 GPU" in nowhere
    taken = lacking([SMALL, LARGE], {"CPU": 12.0}, {"GPU": 1.0})
    assert "it asks for 1 GPU" in taken
    assert "free: 12 CPU" in taken
    assert "lower num" in taken
    assert "and so much is free" in lacking([SMALL, LARGE], {"CPU": 12.0, "GPU": 1.0}, {"GPU": 1.0})
    assert "Ray's logs" in lacking([SMALL], {"CPU": 4.0}, {})


def test_resources_in_words_leave_out_what_each_node_has() -> None:
    assert in_words(SMALL) == "4 CPU"
    assert in_words({}) == "nothing"


@pytest.mark.parametrize(
    ("taken", "wanted", "node"),
    [
        ({}, {}, "large"),
        ({"large": 1}, {}, "small"),
        ({"large": 1, "small": 1}, {}, "large"),
        ({"large": 2, "small": 1}, {"CPU": 1.0}, "small"),
        ({"large": 2}, {"GPU": 1.0}, "large"),
        ({}, {"TPU": 1.0}, ""),
    ],
)
def test_the_next_of_those_that_are_spread_comes_where_fewest_are(
    taken: dict[str, int], wanted: dict[str, float], node: str
) -> None:
    assert emptiest({"small": SMALL, "large": LARGE}, taken, wanted) == node
