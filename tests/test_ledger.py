from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.ipc.arena import PAGE, Arena
from mosec_asgi.ipc.frames import FrameError
from mosec_asgi.ipc.ledger import Block, Ledger, Reader, Region
from mosec_asgi.ipc.reference import Span

SIZE = 8 * PAGE


def region_of(ledger: Ledger) -> Region:
    region = ledger.open_region()
    assert region is not None
    return region


class Payload:
    """What a task needs of the memory, as `ipc.shm.SharedPayload` has it."""

    def __init__(self, blocks: Sequence[Block], ledger: Ledger) -> None:
        self.blocks = blocks
        self._ledger = ledger

    def drop(self) -> None:
        self._ledger.drop(self.blocks)


def sent(reader: Reader, payload: Payload, task_id: int) -> None:
    """Send a task whose payload a payload is, as `ipc.shm` does it."""
    for block in payload.blocks:
        block.users += 1
    reader.send(task_id, payload.blocks)


class Books:
    """A writer, a reader, and a payload of one block for task 1."""

    def __init__(self) -> None:
        self.ledger = Ledger(SIZE, 3)
        self.region = region_of(self.ledger)
        self.reader = Reader(self.ledger)
        self.payload = self.write(0)

    def write(self, place: int, length: int = PAGE) -> Payload:
        return Payload(self.ledger.wrote(self.region, [Span(self.region.begin + place, length)]), self.ledger)

    def freed(self) -> list[int]:
        return self.region.take_freed()


@pytest.fixture
def books() -> Books:
    return Books()


def test_a_block_is_over_when_neither_its_task_nor_a_worker_needs_it(books: Books) -> None:
    sent(books.reader, books.payload, 1)
    books.payload.drop()
    assert (books.freed(), books.ledger.in_use) == ([], PAGE)
    books.reader.answered([1])
    assert (books.freed(), books.ledger.in_use) == ([0], 0)


def test_a_block_outlives_the_worker_that_reads_it_while_its_task_goes_on(books: Books) -> None:
    sent(books.reader, books.payload, 1)
    books.reader.close()
    assert books.freed() == []
    second = Reader(books.ledger)
    sent(second, books.payload, 1)
    books.payload.drop()
    second.answered([1])
    assert books.freed() == [0]


def test_what_a_worker_keeps_is_over_when_it_says_so(books: Books) -> None:
    sent(books.reader, books.payload, 1)
    books.reader.keep([0])
    books.reader.answered([1])
    books.payload.drop()
    assert books.freed() == []
    books.reader.release([0])
    assert books.freed() == [0]


def test_what_was_kept_and_released_before_the_answer_is_over_with_it(books: Books) -> None:
    sent(books.reader, books.payload, 1)
    books.payload.drop()
    books.reader.keep([0])
    books.reader.release([0])
    assert books.freed() == []
    books.reader.answered([1])
    assert books.freed() == [0]


def test_what_a_dead_worker_has_kept_is_over(books: Books) -> None:
    sent(books.reader, books.payload, 1)
    books.reader.keep([0])
    books.reader.answered([1])
    books.payload.drop()
    books.reader.close()
    assert (books.freed(), books.ledger.in_use) == ([0], 0)


def test_a_worker_cannot_keep_or_release_what_it_does_not_have(books: Books) -> None:
    with pytest.raises(FrameError, match="keeps a block at 0, which it does not have"):
        books.reader.keep([0])
    sent(books.reader, books.payload, 1)
    with pytest.raises(FrameError, match="releases a block at 0, which it does not keep"):
        books.reader.release([0])
    books.reader.keep([0])
    with pytest.raises(FrameError, match="keeps already"):
        books.reader.keep([0])


def test_the_region_of_a_dead_writer_is_given_away_when_its_last_block_is_over(books: Books) -> None:
    others = [region_of(books.ledger), region_of(books.ledger)]
    books.ledger.close_region(books.region)
    assert books.ledger.open_region() is None
    books.payload.drop()
    assert books.ledger.vacated == [books.region.begin]
    assert region_of(books.ledger).begin == books.region.begin
    assert books.region.begin not in {other.begin for other in others}


@pytest.mark.parametrize(
    "spans",
    [
        [Span(SIZE, PAGE)],
        [Span(0, PAGE)],
        [Span(PAGE, SIZE)],
        [Span(SIZE - PAGE, PAGE + 1)],
        [Span(PAGE, 2**63)],
        [Span(PAGE, PAGE), Span(PAGE, PAGE)],
        [Span(PAGE, PAGE + 1), Span(2 * PAGE, PAGE)],
        [Span(PAGE, PAGE), Span(SIZE, PAGE)],
    ],
)
def test_a_writer_cannot_have_written_elsewhere_or_over_what_is_needed(books: Books, spans: list[Span]) -> None:
    with pytest.raises(FrameError, match="a block of"):
        books.ledger.wrote(books.region, spans)
    assert books.ledger.in_use == PAGE
    # Nothing of it is left: all the rest of the region can be written.
    books.write(PAGE, SIZE - PAGE)


def test_a_writer_is_told_at_once_when_much_of_its_region_is_free(books: Books) -> None:
    told: list[list[int]] = []
    books.region.full = lambda: told.append(books.freed())
    second = books.write(PAGE)
    books.payload.drop()
    assert told == []
    second.drop()
    assert told == [[0, PAGE]]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_happens_no_block_that_is_needed_is_written_over_and_all_comes_back(data: st.DataObject) -> None:
    """Writers with their own arenas, readers that keep what they like, deaths of both at any moment."""
    ledger = Ledger(SIZE, 5)
    writers: list[tuple[Region, Arena]] = []
    readers: list[Reader] = []
    # What the model says: who needs which block; a task, or a reader.
    tasks: dict[int, Payload] = {}
    has: dict[Reader, dict[int, int]] = {}
    keeps: dict[Reader, set[int]] = {}
    numbers = iter(range(1, 1000))

    def needed() -> set[int]:
        of_tasks = {block.begin for payload in tasks.values() for block in payload.blocks}
        return of_tasks.union(*(set(own.values()) for own in has.values()), *keeps.values())

    for _ in range(data.draw(st.integers(0, 50))):
        step = data.draw(st.sampled_from(["writer", "reader", "write", "send", "answer", "keep", "release", "settle",
                                          "writer dies", "reader dies", "tell"]))  # fmt: skip
        if step == "writer" and (region := ledger.open_region()) is not None:
            assert not any(region.begin <= begin < region.begin + SIZE for begin in needed())
            writers.append((region, Arena(SIZE)))
        elif step == "reader":
            readers.append(Reader(ledger))
            has[readers[-1]], keeps[readers[-1]] = {}, set()
        elif step == "write" and writers:
            region, arena = data.draw(st.sampled_from(writers))
            if (place := arena.allocate(data.draw(st.integers(1, 3 * PAGE)))) is not None:
                span = Span(region.begin + place, 1)
                assert span.begin not in needed()
                tasks[next(numbers)] = Payload(ledger.wrote(region, [span]), ledger)
        elif step == "send" and readers and tasks:
            reader, task_id = data.draw(st.sampled_from(readers)), data.draw(st.sampled_from(sorted(tasks)))
            begin = tasks[task_id].blocks[0].begin
            if begin not in has[reader].values() and begin not in keeps[reader]:
                sent(reader, tasks[task_id], task_id)
                has[reader][task_id] = begin
        elif step in ("answer", "keep", "release", "reader dies") and readers:
            reader = data.draw(st.sampled_from(readers))
            if step == "answer" and has[reader]:
                task_id = data.draw(st.sampled_from(sorted(has[reader])))
                reader.answered([task_id])
                del has[reader][task_id]
            elif step == "keep" and (free := sorted(set(has[reader].values()) - keeps[reader])):
                begin = data.draw(st.sampled_from(free))
                reader.keep([begin])
                keeps[reader].add(begin)
            elif step == "release" and keeps[reader]:
                begin = data.draw(st.sampled_from(sorted(keeps[reader])))
                reader.release([begin])
                keeps[reader].remove(begin)
            elif step == "reader dies":
                reader.close()
                readers.remove(reader)
                del has[reader], keeps[reader]
        elif step == "settle" and tasks:
            tasks.pop(data.draw(st.sampled_from(sorted(tasks)))).drop()
        elif step == "writer dies" and writers:
            writer = data.draw(st.sampled_from(writers))
            writers.remove(writer)
            ledger.close_region(writer[0])
        elif step == "tell":
            for region, arena in writers:
                for begin in region.take_freed():
                    assert begin not in needed()
                    arena.free(begin - region.begin)
        assert ledger.in_use == len(needed()) * PAGE

    for payload in tasks.values():
        payload.drop()
    for reader in readers:
        reader.close()
    for region, arena in writers:
        for begin in region.take_freed():
            arena.free(begin - region.begin)
        assert arena.in_use == 0
        ledger.close_region(region)
    assert ledger.in_use == 0
    assert len([ledger.open_region() for _ in range(5)]) == 5
    assert ledger.open_region() is None
