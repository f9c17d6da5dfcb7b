"""From lines to records: what is in hand is bounded, each line is counted once, and none is lost where it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import offline_workers as workers
import pytest

from mosec_asgi import Server
from mosec_asgi.offline.display import Silent
from mosec_asgi.offline.done import Done
from mosec_asgi.offline.faults import Halted
from mosec_asgi.offline.progress import Progress
from mosec_asgi.offline.records import Line, Plain
from mosec_asgi.offline.run import Flow, Mapping
from mosec_asgi.offline.stopping import Stopping


class Source:
    """Lines of which each tenth cannot be read, and how many were taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.total = None
        self.taken = 0

    def lines(self) -> Iterator[Line]:
        for number in range(1, self.count + 1):
            self.taken += 1
            yield Line(number, 1, b'{"n": 1}' if number % 10 else b"nonsense")


class Target:
    """Records, and the most lines that were in hand when one came."""

    def __init__(self, source: Source, most: int = 1 << 60) -> None:
        self.source = source
        self.most = most
        self.lines: list[int] = []
        self.in_hand = 0

    def append(self, record: bytes) -> None:
        if len(self.lines) >= self.most:
            raise Halted("the disk is full")
        self.lines.append(json.loads(record)["line"])
        self.in_hand = max(self.in_hand, self.source.taken - len(self.lines))

    def close(self) -> None:
        pass


def mapping_of(source: Any, output: Target, errors: Target, done: Done, progress: Progress) -> Mapping:
    return Mapping(
        source, Plain("jsonl", "/inference"), output, errors, done, progress, Silent(), Stopping(lambda: None)
    )


@pytest.fixture
def server() -> Server:
    server = Server(timeout=20_000)
    server.append_worker(workers.Double, max_batch_size=16, executor="thread")
    return server


@pytest.mark.parametrize("ordered", [True, False])
def test_whatever_the_input_holds_few_lines_are_in_hand(server: Server, ordered: bool) -> None:
    source, progress = Source(2000), Progress(None)
    output = Target(source)
    # Its lines are none of those in hand.
    mapping = mapping_of(source, output, output, Done(), progress)
    mapping.run(server.engine, Flow(ordered, None))
    assert sorted(output.lines) == list(range(1, 2001))
    assert output.in_hand <= 4 * 16 + 1
    assert mapping._in_hand == {}
    assert (progress.lines, progress.failed, progress.units) == (2000, 200, 2000)


def test_lines_that_are_done_are_passed_over(server: Server) -> None:
    source, progress, done = Source(100), Progress(None), Done()
    for number in range(1, 101, 2):
        done.add(number)
    output, errors = Target(source), Target(source)
    mapping_of(source, output, errors, done, progress).run(server.engine, Flow(True, None))
    assert output.lines == [number for number in range(2, 101, 2) if number % 10]
    assert errors.lines == list(range(10, 101, 10))
    assert (progress.before, progress.lines, progress.units) == (50, 50, 100)


@pytest.mark.parametrize("which", ["output", "errors"])
def test_what_cannot_be_written_ends_the_run_and_its_workers(server: Server, which: str) -> None:
    source = Source(1000)
    output = Target(source, 20 if which == "output" else 1 << 60)
    errors = Target(source, 5 if which == "errors" else 1 << 60)
    mapping = mapping_of(source, output, errors, Done(), Progress(None))
    with pytest.raises(Halted, match="disk is full"):
        mapping.run(server.engine, Flow(True, None))
    assert source.taken < 200
    assert server._running is None
