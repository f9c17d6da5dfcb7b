from __future__ import annotations

import ctypes
import json
import logging
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import spec, told

from mosec_asgi.errors import ClientError, MosecTimeoutError, ServerError, ValidationError
from mosec_asgi.ipc import frames
from mosec_asgi.pool import child
from mosec_asgi.pool.child import Executor, as_input, load, warm_up
from mosec_asgi.worker import Worker

BOTH = frames.INGRESS | frames.EGRESS
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2  # <linux/prctl.h>
HANG = 10.0  # seconds; a test in which the timeout fails ends all the same


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Leave no alarm and no handler behind."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="mosec_asgi")
    return caplog


def worker_of(forward: Callable[[Any], Any], **members: Any) -> type[Worker]:
    """Return a worker class around a function, with further attributes and methods."""
    return type("Made", (Worker,), {"forward": lambda self, data: forward(data), **members})


def tasks(*payloads: bytes, flags: int = BOTH) -> frames.Tasks:
    """Return tasks numbered from 1, with the request ids r1, r2, ..."""
    count = len(payloads)
    return frames.Tasks(range(1, count + 1), [flags] * count, [f"r{i}" for i in range(1, count + 1)], payloads)


def json_tasks(*values: Any) -> frames.Tasks:
    return tasks(*(json.dumps(value).encode() for value in values))


def replies_of(worker: type[Worker], work: frames.Tasks, **options: Any) -> list[frames.Results]:
    made = spec(worker, stage="Made_1", worker_id=3, **options)
    replies: list[frames.Results] = []
    Executor(load(made), made).run(work, replies.append)
    return replies


def run(worker: type[Worker], work: frames.Tasks, **options: Any) -> list[tuple[int, bytes]]:
    """Return the status and payload of each task, in order; each must have exactly one."""
    replies = replies_of(worker, work, **options)
    ids = [task_id for reply in replies for task_id in reply.ids]
    assert ids == list(work.ids)
    assert all(len(reply.ids) == len(reply.codes) == len(reply.payloads) for reply in replies)
    return [pair for reply in replies for pair in zip(reply.codes, reply.payloads, strict=True)]


def run_batch(worker: type[Worker], *values: Any, **options: Any) -> list[tuple[int, bytes]]:
    return run(worker, json_tasks(*values), **{"max_batch_size": 64, **options})


def ok(value: Any) -> tuple[int, bytes]:
    return 200, json.dumps(value, separators=(",", ":")).encode()


INTERNAL = (500, b"inference internal error")


def doubled(batch: list[int]) -> list[int]:
    return [2 * item for item in batch]


# -- one by one --------------------------------------------------------------------------------------------------------


def test_without_batching_forward_gets_one_item() -> None:
    assert run(worker_of(lambda item: item + 1), json_tasks(1, 2, 3)) == [ok(2), ok(3), ok(4)]


@pytest.mark.parametrize(
    ("flags", "sent", "received"),
    [
        (frames.INGRESS | frames.EGRESS, b"[1]", b"[1,1]"),
        (frames.INGRESS, b"[1]", pickle.dumps([1, 1], protocol=pickle.HIGHEST_PROTOCOL)),
        (0, pickle.dumps([1]), pickle.dumps([1, 1], protocol=pickle.HIGHEST_PROTOCOL)),
        (frames.EGRESS, pickle.dumps([1]), b"[1,1]"),
    ],
    ids=["only stage", "first stage", "middle stage", "last stage"],
)
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_the_place_in_the_pipeline_decides_the_formats(
    flags: int, sent: bytes, received: bytes, max_batch_size: int
) -> None:
    forward = (lambda item: item * 2) if max_batch_size == 1 else (lambda batch: [item * 2 for item in batch])
    assert run(worker_of(forward), tasks(sent, flags=flags), max_batch_size=max_batch_size) == [(200, received)]


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
    monkeypatch.setattr(child, "GATHER_SECONDS", 100.0)
    (reply,) = replies_of(worker_of(lambda item: item), json_tasks(1, 2, 3))
    assert list(reply.ids) == [1, 2, 3]
    assert 0 < reply.seconds < 100.0


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_the_reply_of_a_slow_item_goes_out_before_the_next_begins() -> None:
    heard: list[list[int]] = []

    def forward(item: int) -> int:
        assert heard == [[n] for n in range(1, item)]
        busy(2 * child.GATHER_SECONDS)
        return item

    made = spec(worker_of(forward))
    executor = Executor(load(made), made)
    executor.run(json_tasks(1, 2, 3), lambda reply: heard.append([*reply.ids]))
    assert heard == [[1], [2], [3]]


def test_the_time_of_a_reply_is_that_of_its_own_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GATHER_SECONDS", 0.0)
    began = time.perf_counter()
    replies = replies_of(worker_of(lambda _: busy(0.005)), json_tasks(1, 2, 3))
    elapsed = time.perf_counter() - began
    assert all(reply.seconds >= 0.005 for reply in replies)
    assert sum(reply.seconds for reply in replies) <= elapsed


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_and_one_reply() -> None:
    calls: list[list[int]] = []

    def forward(batch: list[int]) -> list[int]:
        calls.append(batch)
        return doubled(batch)

    (reply,) = replies_of(worker_of(forward), json_tasks(1, 2, 3), max_batch_size=8)
    assert calls == [[1, 2, 3]]
    assert list(reply.payloads) == [b"2", b"4", b"6"]
    assert reply.seconds > 0


def test_an_item_that_cannot_be_decoded_fails_alone_and_does_not_reach_forward() -> None:
    seen: list[list[int]] = []

    def forward(batch: list[int]) -> list[int]:
        seen.append(batch)
        return doubled(batch)

    answers = run(worker_of(forward), tasks(b"1", b"{", b"3", b"NaN"), max_batch_size=8)
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


def test_a_serializer_that_returns_text_is_told_so() -> None:
    worker = worker_of(lambda item: item, serialize=lambda self, data: "text")
    expected = (500, b"encoding error: a serializer must return bytes, not str")
    assert run(worker, json_tasks(1)) == [expected]
    worker = worker_of(lambda batch: batch, serialize_ipc=lambda self, data: "text")
    assert run(worker, tasks(b"1", flags=frames.INGRESS), max_batch_size=4) == [expected]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_serializer_may_return_anything_that_is_bytes(kind: Callable[[bytes], Any]) -> None:
    worker = worker_of(lambda item: item, serialize=lambda self, data: kind(b"abc"))
    assert run(worker, json_tasks(1)) == [(200, b"abc")]


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


def hang() -> None:
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("max_batch_size", [1, 8])
def test_a_forward_that_takes_too_long_is_interrupted_and_answered_408(max_batch_size: int) -> None:
    def forward(data: Any) -> Any:
        hang()
        return data

    began = time.monotonic()
    answers = run(worker_of(forward), json_tasks(1), max_batch_size=max_batch_size, timeout=0.03)
    assert answers == [(408, b"mosec timeout error: `forward` took longer than 0.03 s")]
    assert time.monotonic() - began < HANG / 2


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
    answers = run(worker_of(lambda item: busy(item)), json_tasks(0.25, HANG, 0.25, 0.25), timeout=0.4)
    assert [code for code, _ in answers] == [200, 408, 200, 200]


def test_an_alarm_that_is_late_interrupts_nothing() -> None:
    made = spec(worker_of(lambda item: item), timeout=0.03)
    executor = Executor(load(made), made)
    replies: list[frames.Results] = []
    executor.run(json_tasks(1), replies.append)
    busy(0.1)
    executor.run(json_tasks(2), replies.append)
    assert [list(reply.codes) for reply in replies] == [[200], [200]]


def test_time_in_serialize_is_not_that_of_forward() -> None:
    def serialize(self: Worker, data: Any) -> bytes:
        busy(0.1)
        return b"done"

    worker = worker_of(lambda item: item, serialize=serialize)
    assert run(worker, json_tasks(1), timeout=0.03) == [(200, b"done")]


def test_forward_may_raise_the_timeout_itself() -> None:
    def forward(item: Any) -> Any:
        raise MosecTimeoutError("gave up")

    assert run(worker_of(forward), json_tasks(1)) == [(408, b"mosec timeout error: gave up")]


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ClientError("x"), "INFO"),
        (ValidationError("x"), "INFO"),
        (ServerError("x"), "WARNING"),
        (ValueError("x"), "WARNING"),
    ],
)
def test_a_fault_is_logged_with_its_request_stage_and_worker(
    error: Exception, level: str, logged: pytest.LogCaptureFixture
) -> None:
    def forward(item: Any) -> Any:
        raise error

    run(worker_of(forward), json_tasks(1))
    (record,) = logged.records
    assert (record.levelname, *told(record, "request_id", "stage", "worker")) == (level, "r1", "Made_1", 3)
    # A traceback is told of a bug, and not of an answer that the worker meant to give.
    assert bool(record.exc_info) is isinstance(error, ValueError)


def test_an_error_whose_text_is_not_unicode_is_answered_all_the_same() -> None:
    def forward(item: Any) -> Any:
        raise ClientError("no file 'caf\udce9'")

    ((code, text),) = run(worker_of(forward), json_tasks(1))
    assert code == 400
    assert text.startswith(b"bad request: no file 'caf")
    ((code, _),) = run(worker_of(lambda batch: [ClientError("\ud800")]), json_tasks(1), max_batch_size=2)
    assert code == 400


# -- the worker --------------------------------------------------------------------------------------------------------


def test_a_worker_knows_its_number_stage_and_batch_size_in_its_init() -> None:
    class Curious(Worker):
        def __init__(self) -> None:
            self.seen = (self.worker_id, self.stage, self.max_batch_size)

        def forward(self, data: Any) -> Any:
            return data

    worker = load(spec(Curious, stage="Curious_2", worker_id=5, max_batch_size=16))
    assert isinstance(worker, Curious)
    assert worker.seen == (5, "Curious_2", 16)


@pytest.mark.parametrize(
    ("example", "max_batch_size", "expected"),
    [
        ({"a": 1}, 1, {"a": 1}),
        ([1, 2], 1, [1, 2]),
        ({"a": 1}, 4, [{"a": 1}]),
        ([1, 2], 4, [1, 2]),
        ((1, 2), 4, [(1, 2)]),
    ],
)
def test_an_example_becomes_what_forward_takes(example: Any, max_batch_size: int, expected: Any) -> None:
    assert as_input(example, max_batch_size) == expected


def warmed_up(max_batch_size: int = 1, **members: Any) -> list[Any]:
    seen: list[Any] = []
    made = spec(worker_of(lambda data: seen.append(data) or data, **members), max_batch_size=max_batch_size)  # type: ignore[func-returns-value]
    warm_up(load(made), made)
    return seen


def test_without_an_example_nothing_is_run() -> None:
    assert warmed_up() == []


def test_the_example_is_run_once_in_the_form_that_forward_takes() -> None:
    assert warmed_up(example=7) == [7]
    assert warmed_up(max_batch_size=4, example=7) == [[7]]
    assert warmed_up(example=0) == [0]


def test_several_examples_are_run_in_order_and_win_over_one() -> None:
    assert warmed_up(max_batch_size=4, example=7, multi_examples=[1, [2, 3]]) == [[1], [2, 3]]


def test_examples_may_be_an_array() -> None:
    numpy = pytest.importorskip("numpy")
    (example,) = warmed_up(example=numpy.zeros(3))
    assert example.shape == (3,)
    assert len(warmed_up(multi_examples=numpy.zeros((2, 3)))) == 2


def test_a_warm_up_that_fails_is_logged_and_the_worker_serves(logged: pytest.LogCaptureFixture) -> None:
    def forward(data: Any) -> Any:
        raise RuntimeError("no such layer")

    made = spec(worker_of(forward, example=1), stage="Made_1", worker_id=2)
    warm_up(load(made), made)
    (record,) = [record for record in logged.records if record.levelno >= logging.ERROR]
    assert "warm-up failed" in record.getMessage()
    assert told(record, "stage", "worker") == ("Made_1", 2)
    assert record.exc_info is not None
    assert "no such layer" in str(record.exc_info[1])


def test_a_dry_run_feeds_the_example_in_place_of_the_payload() -> None:
    flags = frames.EXAMPLE | frames.EGRESS
    assert run(worker_of(lambda item: item + 1, example=6), tasks(b"", flags=flags)) == [ok(7)]
    batched = worker_of(doubled, example=[4, 5])
    assert run(batched, tasks(b"", flags=flags), max_batch_size=4) == [ok(8)]
    several = worker_of(lambda item: item + 1, multi_examples=[1, 2])
    assert run(several, tasks(b"", flags=flags)) == [ok(2)]


# -- the process's loop ------------------------------------------------------------------------------------------------


def death_signal() -> int:
    """Return the signal that this process gets when its parent dies; 0 for none."""
    number = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0)
    return number.value


@pytest.fixture
def quiet_process() -> Iterator[None]:
    """Put back what `main` changes for its whole process."""
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    logger = logging.getLogger("mosec_asgi")
    state = logger.level, logger.propagate, list(logger.handlers)
    yield
    if sys.platform == "linux":
        # Or this process would be ended with the thread that has started it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    for number, handler in signals.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    logger.setLevel(state[0])
    logger.propagate, logger.handlers = state[1], state[2]


def talk(worker: type[Worker], *work: frames.Tasks, extra: bytes = b"", **options: Any) -> list[frames.Frame]:
    """Return all that a worker says that is sent `work` and then the end of the stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for each in work:
            ours.sendall(frames.encode_tasks(each))
        ours.sendall(extra)
        ours.shutdown(socket.SHUT_WR)
        try:
            child.main(spec(worker, **options), theirs)
        finally:
            theirs.close()
            decoder = frames.Decoder()
            while data := ours.recv(65536):
                decoder.receive_data(data)
        return list(iter(decoder.next_frame, None))


@pytest.mark.usefixtures("quiet_process")
def test_a_worker_says_that_it_is_ready_answers_what_it_is_sent_and_closes_at_the_end() -> None:
    closed: list[bool] = []
    worker = worker_of(lambda item: item + 1, close=lambda self: closed.append(True))
    ready, *replies = talk(worker, json_tasks(1), json_tasks(10))
    assert ready == frames.Ready()
    assert [list(reply.payloads) for reply in replies if isinstance(reply, frames.Results)] == [[b"2"], [b"11"]]
    assert closed == [True]


@pytest.mark.usefixtures("quiet_process")
def test_a_worker_that_cannot_start_sends_its_traceback_and_exits_with_1() -> None:
    def fail(self: Worker) -> None:
        raise OSError("no weights here")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(SystemExit) as stop:
            child.main(spec(worker_of(lambda item: item, __init__=fail)), theirs)
        assert stop.value.code == 1
        decoder = frames.Decoder()
        decoder.receive_data(ours.recv(65536))
        frame = decoder.next_frame()
    assert isinstance(frame, frames.Failed)
    assert "Traceback" in frame.text
    assert "OSError: no weights here" in frame.text


@pytest.mark.usefixtures("quiet_process")
def test_a_worker_whose_server_is_gone_stops_without_a_fuss() -> None:
    calls: list[Any] = []
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        child.main(spec(worker_of(calls.append)), theirs)
    assert calls == []


@pytest.mark.usefixtures("quiet_process")
def test_a_worker_ignores_the_signals_that_are_meant_for_its_server() -> None:
    seen: list[Any] = []

    def forward(item: Any) -> Any:
        seen.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
        return item

    talk(worker_of(forward), json_tasks(1))
    assert seen == [signal.SIG_IGN, signal.SIG_IGN]


@pytest.mark.skipif(sys.platform != "linux", reason="no other system can do it")
@pytest.mark.usefixtures("quiet_process")
def test_a_worker_at_work_whose_server_dies_is_told_by_the_system_and_closes() -> None:
    told_to: list[int] = []
    closed: list[bool] = []

    def load_weights(self: Worker) -> None:
        told_to.append(death_signal())

    def forward(item: Any) -> Any:
        try:
            signal.raise_signal(told_to[0])
            hang()
        except Exception:
            raise AssertionError("it was swallowed") from None

    worker = worker_of(forward, __init__=load_weights, close=lambda self: closed.append(True))
    began = time.monotonic()
    with pytest.raises(SystemExit):
        talk(worker, json_tasks(1))
    assert told_to[0] != 0, "known before the model is loaded, which may take long"
    assert closed == [True]
    assert time.monotonic() - began < HANG / 2


@pytest.mark.usefixtures("quiet_process")
@pytest.mark.parametrize("extra", [b"garbage" * 10, frames.encode_ready()], ids=["garbage", "no tasks"])
def test_a_worker_that_is_sent_no_tasks_ends_after_closing(extra: bytes) -> None:
    closed: list[bool] = []
    with pytest.raises(frames.FrameError):
        talk(worker_of(lambda item: item, close=lambda self: closed.append(True)), extra=extra)
    assert closed == [True]
