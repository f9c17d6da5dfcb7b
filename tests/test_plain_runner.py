from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from common import told
from fake_port import (
    INTERNAL,
    LEFT,
    PATIENCE,
    Recorder,
    ServerEnd,
    hang,
    json_tasks,
    ok,
    run,
    run_batch,
    runner_of,
    served,
    tasks,
    until,
    worker_of,
)

from mosec_asgi.errors import ClientError, MosecTimeoutError, ValidationError
from mosec_asgi.inside import plain_runner as executor
from mosec_asgi.inside.ending import Ending
from mosec_asgi.worker import Worker

pytestmark = pytest.mark.usefixtures("logged")


def doubled(batch: list[int]) -> list[int]:
    return [2 * item for item in batch]


# -- one by one --------------------------------------------------------------------------------------------------------


def test_without_batching_forward_gets_one_item() -> None:
    assert run(worker_of(lambda item: item + 1), json_tasks(1, 2, 3)) == [ok(2), ok(3), ok(4)]


def test_each_fault_fails_its_own_item() -> None:
    def forward(item: Any) -> Any:
        if item == "client":
            raise ClientError("not that")
        if item == "bug":
            raise KeyError("a secret")
        return object() if item == "no json" else item

    work = tasks(b'"client"', b'"fine"', b"{", b'"bug"', b'"no json"', b'"fine"')
    assert [code for code, _ in run(worker_of(forward), work)] == [400, 200, 400, 500, 500, 200]
    answers = [payload for _, payload in run(worker_of(forward), work)]
    assert answers[0] == b"bad request: not that"
    assert answers[2].startswith(b"decoding error: the body is not JSON")
    assert answers[3] == b"inference internal error"
    assert answers[4].startswith(b"encoding error: ")
    assert b"object" in answers[4]


def test_quick_items_are_gathered_in_one_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "GATHER_SECONDS", 100.0)
    (reply,) = served(worker_of(lambda item: item), json_tasks(1, 2, 3)).results
    assert list(reply.ids) == [1, 2, 3]
    assert 0 < reply.seconds < 100.0


def test_the_reply_of_a_slow_item_goes_out_before_the_next_begins() -> None:
    server = ServerEnd()

    def forward(item: int) -> int:
        until(lambda: [list(reply.ids) for reply in server.results] == [[number] for number in range(1, item)])
        hang(2 * executor.GATHER_SECONDS)
        return item

    served(worker_of(forward), json_tasks(1, 2, 3), server=server)
    assert len(server.results) == 3


def test_the_time_of_a_reply_is_that_of_its_own_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "GATHER_SECONDS", 0.0)
    began = time.perf_counter()
    replies = served(worker_of(lambda _: hang(0.005)), json_tasks(1, 2, 3)).results
    elapsed = time.perf_counter() - began
    assert all(reply.seconds >= 0.005 for reply in replies)
    assert sum(reply.seconds for reply in replies) <= elapsed


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_and_one_reply() -> None:
    calls: list[list[int]] = []

    def forward(batch: list[int]) -> list[int]:
        calls.append(batch)
        return doubled(batch)

    (reply,) = served(worker_of(forward), json_tasks(1, 2, 3), max_batch_size=8).results
    assert calls == [[1, 2, 3]]
    assert list(reply.payloads) == [b"2", b"4", b"6"]
    assert reply.seconds > 0


def test_an_item_that_cannot_be_decoded_fails_alone_and_does_not_reach_forward() -> None:
    seen: list[list[int]] = []

    def forward(batch: list[int]) -> list[int]:
        seen.append(batch)
        return doubled(batch)

    answers = run(worker_of(forward), tasks(b"1", b"{", b"3", b"nan"), max_batch_size=8)
    assert [code for code, _ in answers] == [200, 400, 200, 400]
    assert [answers[0], answers[2]] == [ok(2), ok(6)]
    assert seen == [[1, 3]]


def test_a_bug_in_deserialize_fails_its_item_alone_and_tells_nothing() -> None:
    def deserialize(self: Worker, data: bytes) -> Any:
        if data == b"bad":
            raise RuntimeError("a secret")
        return int(data)

    worker = worker_of(doubled, deserialize=deserialize)
    assert run(worker, tasks(b"1", b"bad", b"3"), max_batch_size=8) == [ok(2), INTERNAL, ok(6)]


def test_forward_is_not_called_for_a_batch_of_which_nothing_can_be_decoded() -> None:
    def forward(batch: list[Any]) -> list[Any]:
        raise AssertionError("forward was called")

    assert [code for code, _ in run(worker_of(forward), tasks(b"{", b"{"), max_batch_size=8)] == [400, 400]


def test_an_exception_in_the_result_list_answers_its_own_item() -> None:
    def forward(batch: list[int]) -> list[Any]:
        return [ValidationError(f"{item} is odd") if item % 2 else item for item in batch]

    answers = run_batch(worker_of(forward), 0, 1, 2, 3)
    assert answers == [ok(0), (422, b"request validation error: 1 is odd"), ok(2), (422, answers[3][1])]


def test_an_exception_in_the_result_list_that_is_no_mosec_error_tells_nothing() -> None:
    assert run_batch(worker_of(lambda batch: [ValueError("a secret"), 1]), 1, 2) == [INTERNAL, ok(1)]


def test_an_item_that_cannot_be_encoded_fails_alone() -> None:
    answers = run_batch(worker_of(lambda batch: [1, object(), 3]), 1, 2, 3)
    assert [code for code, _ in answers] == [200, 500, 200]
    assert answers[1][1].startswith(b"encoding error: ")


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3, 4]])
def test_a_result_list_of_the_wrong_length_is_one_fault_that_names_both_lengths(
    results: list[int], logged: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def forward(batch: list[int]) -> list[int]:
        calls.append(len(batch))
        return results

    expected = (500, f"internal error: forward returned {len(results)} results for a batch of 3 items".encode())
    assert run_batch(worker_of(forward), 1, 2, 3) == [expected] * 3
    assert calls == [3]
    (record,) = logged.records
    assert told(record, "request_id") == ("r1 r2 r3",)


@pytest.mark.parametrize(
    "results",
    [None, 5, "ab", b"ab", {1: 1, 2: 2}, {1, 2}, iter([1, 2])],
    ids=["none", "number", "text", "bytes", "dictionary", "set", "iterator"],
)
def test_a_result_that_is_no_sequence_is_told_by_its_type(results: Any) -> None:
    answers = run_batch(worker_of(lambda batch: results), 1, 2)
    assert [code for code, _ in answers] == [500, 500]
    assert answers[0][1].startswith(b"internal error: forward must return a sequence")
    assert type(results).__name__ in answers[0][1].decode()


def test_any_sequence_will_do() -> None:
    numpy = pytest.importorskip("numpy")
    assert run_batch(worker_of(lambda batch: tuple(batch)), 1, 2) == [ok(1), ok(2)]
    assert run_batch(worker_of(lambda batch: numpy.array(batch) * 0.5), 1, 2) == [ok(0.5), ok(1.0)]


# -- culprits ----------------------------------------------------------------------------------------------------------


class Picky:
    """A `forward` that raises on any batch with a negative item, and counts its calls."""

    def __init__(self, error: Callable[[int], BaseException] = lambda item: ClientError(f"{item} is negative")) -> None:
        self.calls: list[list[int]] = []
        self._error = error

    def __call__(self, batch: list[int]) -> list[int]:
        self.calls.append(batch)
        for item in batch:
            if item < 0:
                raise self._error(item)
        return doubled(batch)


def test_a_batch_that_fails_costs_only_its_culprits() -> None:
    picky = Picky()
    values = [1, -2, 3, 4, 5, 6, -7, 8]
    answers = run_batch(worker_of(picky), *values)
    assert answers == [
        ok(2 * value) if value > 0 else (400, f"bad request: {value} is negative".encode()) for value in values
    ]
    assert picky.calls[0] == values
    assert len(picky.calls) <= 1 + 14


def test_a_bug_in_forward_fails_its_culprit_alone_and_tells_nothing(logged: pytest.LogCaptureFixture) -> None:
    picky = Picky(lambda item: ZeroDivisionError("a secret"))
    assert run_batch(worker_of(picky), 1, -2, 3) == [ok(2), INTERNAL, ok(6)]
    (record,) = logged.records
    assert told(record, "request_id") == ("r2",)
    assert record.exc_info is not None


def test_with_no_isolation_calls_the_whole_batch_fails_after_one_call(logged: pytest.LogCaptureFixture) -> None:
    picky = Picky()
    answers = run_batch(worker_of(picky), 1, -2, 3, isolation_calls=0)
    assert answers == [(400, b"bad request: -2 is negative")] * 3
    assert len(picky.calls) == 1
    (record,) = logged.records
    assert told(record, "request_id") == ("r1 r2 r3",)


def test_isolation_calls_are_kept_and_the_undecided_fail_with_the_fault_that_they_shared() -> None:
    picky = Picky()
    answers = run_batch(worker_of(picky), 1, 2, 3, 4, -5, 6, 7, 8, isolation_calls=2)
    assert len(picky.calls) == 3
    assert answers == [ok(2), ok(4), ok(6), ok(8)] + [(400, b"bad request: -5 is negative")] * 4


def test_a_large_batch_finds_its_culprit_within_the_budget() -> None:
    picky = Picky()
    values = [*range(40), -1, *range(40, 99)]
    answers = run_batch(worker_of(picky), *values, max_batch_size=100)
    assert [place for place, (code, _) in enumerate(answers) if code != 200] == [40]
    assert len(picky.calls) <= 1 + 27


def test_a_batch_of_one_that_fails_is_not_run_again() -> None:
    picky = Picky()
    assert run_batch(worker_of(picky), -1) == [(400, b"bad request: -1 is negative")]
    assert len(picky.calls) == 1


def test_each_fault_is_logged_once_with_the_requests_that_it_failed(logged: pytest.LogCaptureFixture) -> None:
    answers = run_batch(worker_of(Picky()), -1, 2, -3)
    assert [code for code, _ in answers] == [400, 200, 400]
    assert [(*told(record, "request_id"), record.getMessage()) for record in logged.records] == [
        ("r1", "bad request: -1 is negative"),
        ("r3", "bad request: -3 is negative"),
    ]


def test_culprits_are_found_among_the_items_that_could_be_decoded() -> None:
    answers = run(worker_of(Picky()), tasks(b"{", b"1", b"-2", b"{", b"3"), max_batch_size=8)
    assert [code for code, _ in answers] == [400, 200, 400, 400, 200]
    assert [answers[1], answers[4]] == [ok(2), ok(6)]


def test_a_part_of_the_wrong_length_fails_that_part() -> None:
    def forward(batch: list[int]) -> list[int]:
        if len(batch) == 4:
            raise ClientError("too many")
        return doubled(batch)[: 1 if 3 in batch else None]

    answers = run_batch(worker_of(forward), 1, 2, 3, 4)
    assert answers == [ok(2), ok(4), ok(6), ok(8)]


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_size", [1, 8])
def test_a_forward_that_takes_too_long_is_interrupted_and_answered_408(max_batch_size: int) -> None:
    def forward(data: Any) -> Any:
        hang()
        return data

    began = time.monotonic()
    answers = run(worker_of(forward), json_tasks(1), max_batch_size=max_batch_size, timeout=0.03)
    ((code, text),) = answers
    assert (code, text.partition(b";")[0]) == (408, b"mosec timeout error: `forward` took longer than 0.03 s")
    assert time.monotonic() - began < PATIENCE / 2


def test_a_batch_that_takes_too_long_fails_as_a_whole_without_being_run_again() -> None:
    calls: list[int] = []

    def forward(batch: list[int]) -> list[int]:
        calls.append(len(batch))
        hang()
        return batch

    assert [code for code, _ in run_batch(worker_of(forward), 1, 2, timeout=0.03)] == [408, 408]
    assert calls == [2]


def test_the_timeout_passes_through_a_retry_loop_and_lets_forward_clean_up() -> None:
    cleaned: list[str] = []

    def forward(item: Any) -> Any:
        while True:
            try:
                hang()
            except Exception:
                cleaned.append("swallowed")
            finally:
                cleaned.append("cleaned up")

    assert run(worker_of(forward), json_tasks(1), timeout=0.03)[0][0] == 408
    assert cleaned == ["cleaned up"]


def test_each_call_has_the_whole_time() -> None:
    answers = run(worker_of(lambda item: hang(item)), json_tasks(0.5, PATIENCE, 0.5, 0.5, 0.5), timeout=1.2)
    assert [code for code, _ in answers] == [200, 408, 200, 200, 200]


def test_an_alarm_that_is_late_interrupts_nothing() -> None:
    # It goes off while the worker waits for its next task.
    def on_answer(number: int) -> None:
        if number == 1:
            time.sleep(0.1)
            server.send(json_tasks(2, first=2))

    server = ServerEnd(on_answer=on_answer)
    served(worker_of(lambda item: item), json_tasks(1), server=server, timeout=0.03)
    assert server.answers == {1: ok(1), 2: ok(2)}


def test_time_in_serialize_is_not_that_of_forward() -> None:
    def nap(data: Any) -> Any:
        hang(0.7)
        return data

    worker = worker_of(nap, deserialize=lambda self, data: nap(data), serialize=lambda self, data: nap(b"done"))
    assert run(worker, json_tasks(1), timeout=1.0) == [(200, b"done")]


def test_forward_may_raise_the_timeout_itself() -> None:
    def forward(item: Any) -> Any:
        raise MosecTimeoutError("gave up")

    assert run(worker_of(forward), json_tasks(1)) == [(408, b"mosec timeout error: gave up")]


# -- what the server is told meanwhile ---------------------------------------------------------------------------------


def test_a_task_is_noted_as_begun_before_it_is_decoded() -> None:
    begun: list[int] = []
    server = ServerEnd()

    def deserialize(self: Worker, data: bytes) -> int:
        begun.append(server.begun().begun)
        return int(data)

    served(worker_of(lambda item: item, deserialize=deserialize), tasks(b"1", b"x", b"3"), server=server)
    assert begun == [1, 2, 3]


def test_all_tasks_of_a_batch_are_begun_with_it() -> None:
    begun: list[int] = []
    server = ServerEnd()

    def deserialize(self: Worker, data: bytes) -> int:
        begun.append(server.begun().begun)
        return int(data)

    worker = worker_of(lambda batch: batch, deserialize=deserialize)
    served(worker, tasks(b"1", b"x", b"3"), tasks(b"4", first=4), server=server, max_batch_size=8)
    assert begun == [3, 3, 3, 4]


def test_tasks_that_are_not_run_are_begun_all_the_same() -> None:
    """Or the server would take the next ones, which are, for tasks that wait."""
    for max_batch_size in (1, 4):
        with ServerEnd() as server:
            server.send(json_tasks(1, 2))
            server.cancel(1)
            served_by(worker_of(lambda data: data), server, max_batch_size=max_batch_size)
        assert server.progress.begun == 2


def served_by(worker: type[Worker], server: ServerEnd, **options: Any) -> None:
    """Serve what lies in the pipe, until the stream ends."""
    with runner_of(worker, server, **options) as runner:
        runner.serve()


def test_every_call_and_every_item_is_a_sign_of_life() -> None:
    beats: list[int] = []
    server = ServerEnd()

    def note() -> None:
        beats.append(server.begun().beats)

    def deserialize(self: Worker, data: bytes) -> int:
        note()
        return int(data)

    def forward(batch: list[int]) -> list[int]:
        note()
        if 3 in batch:
            raise ClientError("three")
        return batch

    worker = worker_of(forward, deserialize=deserialize)
    served(worker, tasks(b"1", b"2", b"3", b"4"), server=server, max_batch_size=4)
    # The parts that are run again are of two, two, one and one, whose items are decoded again.
    assert len(beats) == 4 + 5 + 6
    assert beats == sorted(set(beats)), "it stood still between two steps"


def test_answered_tasks_are_told_to_the_worker_with_their_payloads() -> None:
    told_of: list[list[bytes]] = []

    def answered(self: Worker, payloads: Any) -> None:
        told_of.append(list(payloads))

    for max_batch_size in (1, 4):
        told_of.clear()
        with ServerEnd() as server:
            server.send(tasks(b"1", b"{", b"3"), tasks(b"4", first=4))
            server.cancel(3)
            served_by(worker_of(lambda data: data, _answered=answered), server, max_batch_size=max_batch_size)
        assert told_of == [[b"1", b"{", b"3"], [b"4"]]


# -- clients that leave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_task_whose_client_left_before_it_was_begun_is_not_run(max_batch_size: int) -> None:
    seen = Recorder()
    decoded: list[bytes] = []

    def deserialize(self: Worker, data: bytes) -> int:
        decoded.append(data)
        return int(data)

    with ServerEnd() as server:
        server.send(tasks(b"1", b"2", b"3"), tasks(b"4", first=4))
        server.cancel(2, 4)
        served_by(worker_of(seen, deserialize=deserialize), server, max_batch_size=max_batch_size)
    assert server.answers == {1: ok(1), 2: LEFT, 3: ok(3), 4: LEFT}
    assert decoded == [b"1", b"3"]
    assert seen.calls == ([1, 3] if max_batch_size == 1 else [[1, 3]])


def test_forward_is_not_called_for_a_batch_whose_clients_have_all_left() -> None:
    seen = Recorder()
    with ServerEnd() as server:
        server.send(json_tasks(1, 2))
        server.cancel(1, 2)
        served_by(worker_of(seen), server, max_batch_size=4)
    assert seen.calls == []
    assert server.answers == {1: LEFT, 2: LEFT}


def test_a_client_that_leaves_while_a_task_before_its_own_is_slow_frees_its_own() -> None:
    seen = Recorder()

    def forward(item: int) -> int:
        if item == 1:
            server.cancel(3)
            hang(2 * executor.GATHER_SECONDS)
        return seen(item)  # type: ignore[no-any-return]

    server = ServerEnd()
    served(worker_of(forward), json_tasks(1, 2, 3, 4), server=server)
    assert seen.calls == [1, 2, 4]
    assert server.answers[3] == LEFT


def test_forward_can_ask_whether_its_client_has_left() -> None:
    class Asking(Worker):
        def forward(self, data: int) -> list[bool]:
            before = self.is_cancelled()
            if data == 2:
                server.cancel(2)
                until(self.is_cancelled)
            return [before, self.is_cancelled()]

    server = ServerEnd()
    served(Asking, json_tasks(1, 2, 3), server=server)
    # Nobody waits for the second, whatever it is answered.
    assert server.answers == {1: ok([False, False]), 2: ok([False, True]), 3: ok([False, False])}


def test_forward_can_ask_it_for_each_item_of_its_batch() -> None:
    asked: list[list[bool]] = []

    class Asking(Worker):
        def forward(self, data: list[int]) -> list[int]:
            asked.append([self.is_cancelled(index) for index in range(-1, 5)])
            server.cancel(13)
            until(lambda: self.is_cancelled(1))
            asked.append([self.is_cancelled(index) for index in range(-1, 5)])
            return data

    server = ServerEnd()
    # The first cannot be decoded, so the index of the others in the frame is not that in the batch.
    served(Asking, tasks(b"{", b"1", b"2", b"3", first=11), server=server, max_batch_size=4)
    assert asked == [[False] * 6, [False, False, True, False, False, False]]
    assert [code for code, _ in server.answers.values()] == [400, 200, 200, 200]


def test_while_parts_are_run_again_the_index_is_that_in_the_part() -> None:
    asked: list[tuple[list[int], list[bool]]] = []

    class Asking(Worker):
        def forward(self, data: list[int]) -> list[int]:
            if len(data) == 4:
                server.cancel(4)
                until(lambda: self.is_cancelled(3))
            asked.append((data, [self.is_cancelled(index) for index in range(4)]))
            if 1 in data:
                raise ClientError("one")
            return data

    server = ServerEnd()
    served(Asking, json_tasks(1, 2, 3, 4), server=server, max_batch_size=4)
    assert asked == [
        ([1, 2, 3, 4], [False, False, False, True]),
        ([1, 2], [False, False, False, False]),
        ([3, 4], [False, True, False, False]),
        ([1], [False, False, False, False]),
        ([2], [False, False, False, False]),
    ]


def test_asking_often_gives_forward_no_more_time() -> None:
    class Asking(Worker):
        def forward(self, data: Any) -> Any:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                self.is_cancelled()

    began = time.monotonic()
    assert run(Asking, json_tasks(1), timeout=0.1)[0][0] == 408
    assert time.monotonic() - began < PATIENCE / 2


def test_the_formats_can_ask_it_too_and_between_two_tasks_nobody_is_left() -> None:
    asked: list[bool] = []

    class Asking(Worker):
        def deserialize(self, data: bytes) -> int:
            asked.append(self.is_cancelled())
            return int(data)

        def forward(self, data: int) -> int:
            return data

        def serialize(self, data: int) -> bytes:
            asked.append(self.is_cancelled())
            return b"%d" % data

        def close(self) -> None:
            asked.append(self.is_cancelled())

    served(Asking, tasks(b"1"))
    assert asked == [False, False, True]


def test_another_thread_can_ask_it() -> None:
    class Asking(Worker):
        def forward(self, data: Any) -> bool:
            server.cancel(1)
            with ThreadPoolExecutor(1) as threads:
                threads.submit(until, self.is_cancelled).result()
            return self.is_cancelled()

    server = ServerEnd()
    served(Asking, json_tasks(1), server=server)
    assert server.answers == {1: ok(True)}


def test_when_the_server_ends_the_stream_everybody_has_left() -> None:
    class Asking(Worker):
        def forward(self, data: Any) -> bool:
            server.end()
            until(self.is_cancelled)
            return True

    server = ServerEnd()
    served(Asking, json_tasks(1), server=server)
    assert server.answers == {1: ok(True)}


# -- the end -----------------------------------------------------------------------------------------------------------


def test_what_was_sent_before_the_end_of_the_stream_is_still_answered() -> None:
    with ServerEnd() as server:
        server.send(json_tasks(1, 2), json_tasks(3, first=3))
        server.end()
        served_by(worker_of(lambda item: item), server)
    assert server.answers == {1: ok(1), 2: ok(2), 3: ok(3)}


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_what_ends_the_worker_passes_through_forward(max_batch_size: int) -> None:
    closed: list[bool] = []

    def forward(data: Any) -> Any:
        raise Ending

    worker = worker_of(forward, close=lambda self: closed.append(True))
    with pytest.raises(Ending):
        served(worker, json_tasks(1, 2), max_batch_size=max_batch_size)
    assert closed == [True]


def test_the_answers_of_a_worker_whose_server_is_gone_go_nowhere() -> None:
    calls: list[int] = []

    def forward(item: int) -> int:
        calls.append(item)
        server.end()
        server._sock.shutdown(socket.SHUT_RDWR)
        return item

    server = ServerEnd()
    served(worker_of(forward), json_tasks(1), server=server, answers=False)
    assert calls == [1]
    assert server.answers == {}
