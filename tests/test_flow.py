from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mosec_asgi.batching.flow import Flow

SIZES = st.sampled_from([0, 1, 9, 100, 255, 256, 1024, 5000])


def test_a_new_stream_has_sent_nothing_and_may_send() -> None:
    flow = Flow(1024)
    assert (flow.events, flow.last, flow.full) == (0, 0.0, False)


def test_pieces_are_counted_and_the_last_ones_time_is_kept() -> None:
    flow = Flow(1024)
    assert flow.came(10, 5.0)
    assert flow.came(10, 7.5)
    assert (flow.events, flow.last) == (2, 7.5)


@pytest.mark.parametrize(("size", "full"), [(1023, False), (1024, True), (100_000, True)])
def test_a_stream_is_full_once_the_limit_is_outstanding(size: int, full: bool) -> None:
    flow = Flow(1024)
    assert flow.came(size, 1.0), "the piece that reaches the limit goes out whole"
    assert flow.full is full


def test_a_piece_of_a_full_stream_is_refused_and_not_counted() -> None:
    flow = Flow(1024)
    flow.came(1024, 1.0)
    assert not flow.came(1, 2.0)
    assert (flow.events, flow.last) == (1, 1.0)
    assert flow.taken(1024) == 1024
    assert not flow.full


def test_what_is_taken_is_reported_in_quarters_of_the_limit() -> None:
    flow = Flow(1024)
    flow.came(2000, 1.0)
    assert [flow.taken(100) for _ in range(7)] == [0, 0, 300, 0, 0, 300, 0]


def test_a_full_stream_may_send_again_once_the_report_is_due_and_not_before() -> None:
    flow = Flow(1024)
    flow.came(1100, 1.0)
    flow.taken(255)
    assert flow.full, "its worker has not heard of it"
    assert flow.taken(1) == 256
    assert not flow.full


def test_an_empty_piece_takes_no_room() -> None:
    flow = Flow(1)
    assert flow.came(0, 1.0)
    assert (flow.events, flow.full) == (1, False)


def test_the_next_stage_begins_with_all_its_room_and_is_told_only_of_what_is_its_own() -> None:
    flow = Flow(1024)
    flow.came(1100, 1.0)
    assert (flow.full, flow.quiet) == (True, False)
    assert flow.taken(100) == 0
    flow.go_on()
    assert (flow.full, flow.quiet, flow.events) == (False, True, 1)
    flow.came(500, 2.0)
    assert flow.taken(1000) == 0, "what an earlier stage has sent"
    assert flow.taken(255) == 0
    assert flow.taken(1) == 256


@given(st.integers(1, 5000), st.lists(st.integers(0, 3000), max_size=60))
@settings(max_examples=200, deadline=None)
def test_all_that_is_taken_is_reported_but_for_less_than_a_quarter(limit: int, sizes: list[int]) -> None:
    flow = Flow(limit)
    reports = [flow.taken(size) for size in sizes]
    assert 0 <= sum(sizes) - sum(reports) < limit / 4
    assert all(report == 0 or report >= limit / 4 for report in reports)


class ThreePlaces(RuleBasedStateMachine):
    """A worker that obeys, the server with its `Flow`, and a client; reports lie on the way for any time."""

    @initialize(limit=st.sampled_from([1, 3, 1024, 4096]))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.flow = Flow(limit)
        # As the worker counts it.
        self.outstanding = 0
        # On the way from the worker to the server, from the server to the client, and from the server to the worker.
        self.pieces: deque[int] = deque()
        self.unread = 0
        self.reports: deque[int] = deque()
        self.largest = self.sent = self.reported = 0
        # From earlier stages.
        self.earlier = 0

    @rule(size=SIZES)
    @precondition(lambda self: self.outstanding < self.limit)
    def the_worker_sends(self, size: int) -> None:
        self.outstanding += size
        self.pieces.append(size)
        self.largest = max(self.largest, size)

    @rule()
    @precondition(lambda self: self.pieces)
    def a_piece_comes(self) -> None:
        size = self.pieces.popleft()
        before = self.flow.events
        assert self.flow.came(size, 1.0), "a worker that obeys is never refused"
        assert self.flow.events == before + 1
        self.sent += size
        self.unread += size

    @rule(part=st.floats(0.0, 1.0))
    @precondition(lambda self: self.unread)
    def the_client_reads(self, part: float) -> None:
        size = max(1, int(self.unread * part))
        self.unread -= size
        self.earlier -= min(size, self.earlier)
        report = self.flow.taken(size)
        self.reported += report
        if report:
            self.reports.append(report)

    @rule()
    @precondition(lambda self: self.reports)
    def a_report_comes(self) -> None:
        self.outstanding -= self.reports.popleft()

    @rule()
    @precondition(lambda self: not self.pieces)
    def the_task_goes_on_to_the_next_stage(self) -> None:
        self.flow.go_on()
        assert not self.flow.full
        # To a worker that has answered nothing is reported.
        self.reports.clear()
        self.earlier = self.unread
        self.outstanding = self.sent = self.reported = self.largest = 0

    @rule()
    def all_that_is_on_its_way_arrives(self) -> None:
        while self.pieces:
            self.a_piece_comes()
        if self.unread:
            self.the_client_reads(1.0)
        while self.reports:
            self.a_report_comes()
        assert self.outstanding < self.limit, "a client that has read all has a worker that may send"
        assert not self.flow.full

    @invariant()
    def no_more_than_the_limit_and_one_piece_waits_for_the_client(self) -> None:
        assert self.unread - self.earlier <= self.sent - self.reported < self.limit + max(1, self.largest)

    @invariant()
    def the_server_never_believes_that_more_is_outstanding_than_the_worker_does(self) -> None:
        assert not self.flow.full or self.outstanding >= self.limit


TestThreePlaces = ThreePlaces.TestCase
TestThreePlaces.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
