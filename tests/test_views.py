"""Objects of the server's own program in shared memory: they end when their last reference has gone."""

from __future__ import annotations

import mmap
import threading

import numpy as np
import pytest

from mosec_asgi.ipc.arena import PAGE
from mosec_asgi.ipc.ledger import Block, Region
from mosec_asgi.ipc.views import Views, array_type

SIZE = 8 * PAGE


class Bench:
    """A memory with its views, and what is heard of them."""

    def __init__(self) -> None:
        self.mapping = mmap.mmap(-1, SIZE)
        self.gone: list[Block] = []
        self.tells = 0
        self.views = Views(self.mapping, SIZE, self.gone.append)
        self.views.tell = self._told

    def _told(self) -> None:
        self.tells += 1


@pytest.fixture
def bench() -> Bench:
    return Bench()


def block(begin: int, length: int = PAGE) -> Block:
    return Block(begin, length, Region(0, SIZE))


def test_a_view_is_of_exactly_so_many_bytes_and_can_be_written_to(bench: Bench) -> None:
    bench.mapping[PAGE : PAGE + 10] = b"0123456789"
    view = bench.views.view(block(PAGE), 7)
    assert (bytes(view), view.readonly, view.format) == (b"0123456", False, "B")
    view[0] = ord("x")
    assert bench.mapping[PAGE] == ord("x")


def test_a_block_is_let_go_when_its_last_reference_has_gone_and_not_before_release(bench: Bench) -> None:
    place = block(PAGE)
    array = np.frombuffer(bench.views.view(place, 100), np.uint8)
    part = array[3:5]
    del array
    bench.views.release()
    assert (bench.gone, bench.tells) == ([], 0), "a part of it is still there"
    del part
    assert (bench.gone, bench.tells) == ([], 1), "it is only noted: this may be in the middle of anything"
    bench.views.release()
    assert bench.gone == [place]


def test_whoever_releases_is_told_once_for_all_that_has_gone_since(bench: Bench) -> None:
    views = [bench.views.view(block(number * PAGE), 10) for number in range(4)]
    views.clear()
    assert bench.tells == 1
    bench.views.release()
    assert len(bench.gone) == 4
    other = bench.views.view(block(0), 10)
    del other
    assert bench.tells == 2


def test_the_last_reference_may_go_in_any_thread(bench: Bench) -> None:
    held = [bench.views.view(block(0), 10)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert bench.tells == 1
    bench.views.release()
    assert len(bench.gone) == 1


def test_there_are_few_types_and_each_has_room() -> None:
    assert array_type(65, 1000) is array_type(128, 1000)
    assert array_type(900, 1000) is array_type(1000, 1000)
    for length in (1, 2, 3, 4096, 4097):
        assert length <= array_type(length, 10_000)._length_ < 2 * length + 1
