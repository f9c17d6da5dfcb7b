"""What passes between two stages: a worker's pickler, the server, and the next worker, in one process."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_shm import SIZE, Pair, receive, send

from mosec_asgi.inside.pickler import Pickler, load
from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.arena import LARGE, PAGE
from mosec_asgi.ipc.mapped import Mapped

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")


class Passage:
    """The way of a result from one stage to the next."""

    def __init__(self, size: int = SIZE) -> None:
        self.pair = Pair(size)
        self.first, self.writer = self.pair.worker()
        self.second, self.reader = self.pair.worker()
        self.pickler = Pickler(self.writer)
        self.task_id = 0

    def dump(self, result: Any) -> tuple[int, bytes]:
        return self.pickler.dump(result)

    def passed(self, result: Any) -> Any:
        """Return a result as the next stage gets it; of the memory no more is used than it holds."""
        code, payload = self.dump(result)
        if code == 200:
            return pickle.loads(payload)
        assert code == frames.IN_MEMORY
        taken = receive(self.first, payload)
        self.task_id += 1
        flags, description = send(self.second, self.task_id, taken)
        assert flags == frames.SHARED
        arrived = load(reference.unpack(description), self.reader)
        taken.drop()
        return arrived

    def in_use(self, mapped: Mapped) -> int:
        assert mapped.writer is not None
        return mapped.writer.in_use

    def close(self) -> None:
        self.pair.close()


@pytest.fixture
def passage() -> Iterator[Passage]:
    passage = Passage()
    yield passage
    passage.close()


ARRAY = np.arange(LARGE // 4, dtype=np.float32)
RESULTS = {
    "an array": ARRAY,
    "a small array": ARRAY[:10],
    "small things": {"a": [1, 2.5, None], "b": b"x"},
    "arrays in a structure": {"a": [ARRAY, ARRAY[:5]], "b": (ARRAY * 2, "text")},
    "an array in Fortran's order": np.asfortranarray(ARRAY.reshape(64, -1)),
    "every second number": np.arange(LARGE, dtype=np.int64)[::2],
    "large bytes": b"x" * (3 * LARGE),
    "a large text and an array": ["x" * LARGE, ARRAY],
    "a bytearray": bytearray(LARGE),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", RESULTS)
def test_what_arrives_is_what_was_sent(passage: Passage, name: str) -> None:
    assert same(RESULTS[name], passage.passed(RESULTS[name]))


def test_a_small_result_is_what_pickle_makes_of_it(passage: Passage) -> None:
    for result in (RESULTS["small things"], ARRAY[:10]):
        assert passage.dump(result) == (200, pickle.dumps(result, 5))
    assert passage.in_use(passage.writer) == 0


def test_the_bytes_of_an_array_do_not_pass_through_the_pipe(passage: Passage) -> None:
    code, payload = passage.dump({"a": ARRAY, "b": "x" * LARGE})
    assert (code, len(payload) < 500, passage.in_use(passage.writer)) == (
        frames.IN_MEMORY,
        True,
        2 * LARGE + PAGE,
    )


def test_an_array_arrives_without_a_copy_and_can_be_written_to(passage: Passage) -> None:
    arrived = passage.passed(ARRAY)
    address = arrived.__array_interface__["data"][0]
    begin = passage.reader._address
    assert begin <= address < begin + passage.second.share.total
    arrived += 1
    assert np.array_equal(arrived, ARRAY + 1)


def test_what_finds_no_room_goes_along_in_the_pickle(passage: Passage) -> None:
    arrays = [np.full(SIZE // 10, number, np.float32) for number in range(5)]
    code, payload = passage.dump(arrays)
    assert code == frames.IN_MEMORY
    contents = reference.unpack(payload)
    assert (contents.kind, len(contents.spans)) == (reference.Kind.PICKLE, 2)
    assert same(arrays, load(contents, passage.reader))


def test_where_nothing_finds_room_all_goes_through_the_pipe(passage: Passage) -> None:
    result = np.zeros(SIZE, np.float32)
    code, payload = passage.dump(result)
    assert code == 200
    assert same(result, pickle.loads(payload))


def test_a_result_that_cannot_be_pickled_leaves_nothing_in_the_memory(passage: Passage) -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        passage.dump([ARRAY, lambda: None])
    assert passage.in_use(passage.writer) == 0
    assert same(ARRAY, passage.passed(ARRAY))


def test_torch_tensors_arrive_as_they_were() -> None:
    torch = pytest.importorskip("torch")
    passage = Passage(8 * SIZE)
    base = torch.arange(LARGE, dtype=torch.float32)
    tensors = [
        base,
        base.reshape(64, -1).bool(),
        base.to(torch.bfloat16),
        base.to(torch.complex64),
        base[:10],
        base[::2],
        base[10:],
        base.clone().requires_grad_(),
        torch.nn.Parameter(base.clone()),
    ]
    for tensor in tensors:
        arrived = passage.passed({"a": tensor})["a"]
        assert (type(arrived), arrived.dtype, arrived.requires_grad) == (
            type(tensor), tensor.dtype, tensor.requires_grad,
        )  # fmt: skip
        assert torch.equal(arrived, tensor)
        del arrived
    code, payload = passage.dump(base)
    assert (code, len(payload) < 500) == (frames.IN_MEMORY, True)
    twice = passage.passed([base, base])
    assert twice[0] is twice[1]
    twice[0][3] = 7
    assert (base[3], twice[1][3]) == (3, 7)
    del twice
    passage.close()


def test_beside_torch_what_is_pickled_by_a_function_of_its_own_arrives_too(passage: Passage) -> None:
    torch = pytest.importorskip("torch")
    assert passage.passed([re.compile("a+"), np.add, ARRAY.dtype]) == [re.compile("a+"), np.add, ARRAY.dtype]
    arrived = passage.passed(torch.eye(3).to_sparse())
    assert torch.equal(arrived.to_dense(), torch.eye(3))


@pytest.mark.parametrize("module", [None, ModuleType("torch")])
def test_while_torch_is_not_imported_as_a_whole_there_are_no_tensors(
    module: ModuleType | None, passage: Passage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", module)
    assert same(ARRAY, passage.passed(ARRAY))


def test_what_is_read_again_is_as_it_was_written(passage: Passage) -> None:
    code, payload = passage.dump({"a": ARRAY, "n": 1})
    assert code == frames.IN_MEMORY
    taken = receive(passage.first, payload)
    _, description = send(passage.second, 1, taken)
    contents = reference.unpack(description)
    first = load(contents, passage.reader)
    first["a"][:] = 0
    again = load(contents, passage.reader, again=True)
    assert same(ARRAY, again["a"])
    again["a"][:] = 1
    assert same(ARRAY, load(contents, passage.reader, again=True)["a"])
    taken.drop()
