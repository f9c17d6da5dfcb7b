"""Python objects to payloads and back, on the server's side."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from fakes import Held
from test_shm import SIZE, Pair, send

from mosec_asgi.calls.objects import Objects, value_of
from mosec_asgi.errors import EncodingError, ServerError
from mosec_asgi.inside.pickler import load
from mosec_asgi.ipc import reference
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.shm import SharedPayload

needs_memory = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")


@pytest.mark.parametrize("item", [None, {1: "a"}, [b"x" * LARGE]])
def test_without_a_memory_an_object_is_its_pickle(item: Any) -> None:
    payload = Objects().payload(item, apart=True)
    assert isinstance(payload, bytes)
    assert value_of(payload, "A_1") == item


def test_what_a_link_holds_is_read_and_given_back() -> None:
    held = Held(pickle.dumps([1, 2]))
    assert value_of(held, "A_1") == [1, 2]
    assert held.drops == 1


@pytest.mark.parametrize("item", [(x for x in ()), threading.Lock(), {"a": lambda: 1}])
def test_what_cannot_be_pickled_is_named_by_its_type(item: Any) -> None:
    with pytest.raises(EncodingError, match=rf"the item, a {type(item).__name__}, cannot be pickled for its worker"):
        Objects().payload(item, apart=False)


class Spiteful:
    def __reduce__(self) -> Any:
        raise ValueError("I will not")


def test_whatever_an_object_raises_while_it_is_pickled_is_that_error() -> None:
    with pytest.raises(EncodingError, match="a Spiteful, cannot be pickled for its worker: I will not"):
        Objects().payload(Spiteful(), apart=False)


class Final:
    """Ends whoever pickles it, or unpickles it: `raises` is called with `what`."""

    def __init__(self, what: type[BaseException], *, late: bool) -> None:
        self.what = what
        self.late = late

    def __reduce__(self) -> Any:
        if not self.late:
            raise self.what("the end")
        return ends, (self.what,)


def ends(what: type[BaseException]) -> None:
    raise what("the end")


@pytest.mark.parametrize("what", [SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_is_an_error_of_the_object_too(what: type[BaseException]) -> None:
    with pytest.raises(EncodingError, match=f"a Final, cannot be pickled for its worker: {what.__name__}"):
        Objects().payload(Final(what, late=False), apart=False)
    with pytest.raises(ServerError, match=f"what Model_2 returned cannot be unpickled in the server: {what.__name__}"):
        value_of(pickle.dumps(Final(what, late=True)), "Model_2")


def test_ctrl_c_is_no_error_of_an_object() -> None:
    with pytest.raises(KeyboardInterrupt):
        Objects().payload(Final(KeyboardInterrupt, late=False), apart=False)
    with pytest.raises(KeyboardInterrupt):
        value_of(pickle.dumps(Final(KeyboardInterrupt, late=True)), "Model_2")


def test_what_cannot_be_unpickled_names_the_stage() -> None:
    with pytest.raises(ServerError, match="what Model_2 returned cannot be unpickled in the server: UnpicklingError"):
        value_of(b"garbage", "Model_2")


def _exit() -> None:
    raise SystemExit("from the code of a class")


class Exits:
    def __reduce__(self) -> Any:
        return _exit, ()


def test_so_does_whatever_its_class_raises_while_it_is_unpickled() -> None:
    with pytest.raises(ServerError, match="what Model_2 returned cannot be unpickled in the server: SystemExit"):
        value_of(pickle.dumps(Exits()), "Model_2")


@needs_memory
class TestWithMemory:
    @pytest.fixture
    def pair(self) -> Any:
        pair = Pair()
        yield pair
        pair.memory.views.release()
        pair.close()

    def test_a_small_object_is_its_pickle(self, pair: Pair) -> None:
        assert isinstance(Objects(pair.memory.own_blocks()).payload([1], apart=True), bytes)
        assert pair.memory.in_use == 0

    def test_an_array_is_written_there_and_its_worker_reads_it_there(self, pair: Pair) -> None:
        array = np.arange(LARGE, dtype=np.uint8)
        payload = Objects(pair.memory.own_blocks()).payload({"a": array, "b": 1}, apart=True)
        assert isinstance(payload, SharedPayload)
        assert pair.memory.in_use == LARGE
        account, mapped = pair.worker()
        _, description = send(account, 1, payload)
        got = load(reference.unpack(description), mapped)
        assert ((got["a"] == array).all(), got["a"].flags.owndata, got["b"]) == (True, False, 1)
        del got
        account.answered([1])
        payload.drop()
        assert pair.memory.in_use == 0

    def test_a_worker_that_cannot_read_memory_is_given_all_as_bytes(self, pair: Pair) -> None:
        assert isinstance(Objects(pair.memory.own_blocks()).payload(np.zeros(LARGE), apart=False), bytes)
        assert pair.memory.in_use == 0

    def test_what_finds_no_room_stands_in_the_pickle(self, pair: Pair) -> None:
        payload = Objects(pair.memory.own_blocks()).payload(np.zeros(SIZE + 1, np.uint8), apart=True)
        assert isinstance(payload, bytes)
        assert value_of(payload, "A_1").shape == (SIZE + 1,)

    def test_an_object_that_fails_after_some_buffers_leaves_nothing_there(self, pair: Pair) -> None:
        with pytest.raises(EncodingError):
            Objects(pair.memory.own_blocks()).payload([np.zeros(LARGE), Spiteful()], apart=True)
        whole = np.zeros(SIZE, np.uint8)
        payload = Objects(pair.memory.own_blocks()).payload(whole, apart=True)
        assert isinstance(payload, SharedPayload), "all of the room is free"
        payload.drop()

    def test_what_is_loaded_stays_until_its_last_reference_has_gone(self, pair: Pair) -> None:
        text = "x" * LARGE
        for item, kept in [(np.ones(LARGE, np.uint8), LARGE), ([text, np.ones(LARGE, np.uint8)], LARGE), (text, 0)]:
            payload = Objects(pair.memory.own_blocks()).payload(item, apart=True)
            assert isinstance(payload, SharedPayload)
            value = value_of(payload, "A_1")
            assert pair.memory.in_use == kept, "the stream that it was made from is free at once"
            del value
            pair.memory.views.release()
            assert pair.memory.in_use == 0

    def test_what_fails_to_load_gives_all_back(self, pair: Pair) -> None:
        payload = Objects(pair.memory.own_blocks()).payload([np.ones(LARGE, np.uint8), Unloadable()], apart=True)
        with pytest.raises(ServerError, match="cannot be unpickled"):
            value_of(payload, "A_1")
        pair.memory.views.release()
        assert pair.memory.in_use == 0

    def test_a_memory_that_is_closed_leaves_what_is_kept(self) -> None:
        pair = Pair()
        payload = Objects(pair.memory.own_blocks()).payload(np.ones(LARGE, np.uint8), apart=True)
        array = value_of(payload, "A_1")
        pair.memory.close()
        assert array.sum() == LARGE


class Unloadable:
    def __reduce__(self) -> Any:
        return getattr, ("text", "there_is_no_such_thing")
