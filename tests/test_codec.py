from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from common import told
from fake_port import BOTH, INTERNAL, json_tasks, ok, run, run_batch, spec_of, tasks, worker_of

from mosec_asgi import log
from mosec_asgi.errors import ClientError, EncodingError, Failure, MosecTimeoutError, ServerError, ValidationError
from mosec_asgi.inside.codec import Codec, as_input, examples, on_the_wire
from mosec_asgi.inside.loading import load
from mosec_asgi.ipc import frames, reference
from mosec_asgi.ipc.mapped import Mapped
from mosec_asgi.ipc.shm import SharedMemory
from mosec_asgi.messages import EGRESS, EXAMPLE, INGRESS, OBJECT_IN, OBJECT_OUT
from mosec_asgi.rationing import MOST, MOST_WHOLE, NAMES
from mosec_asgi.worker import Worker

pytestmark = pytest.mark.usefixtures("logged")


def codec_of(max_batch_size: int = 1, **members: Any) -> Codec:
    spec = spec_of(worker_of(lambda data: data, **members), max_batch_size=max_batch_size)
    return Codec(load(spec), spec)


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sent", "received"),
    [
        (INGRESS | EGRESS, b"[1]", b"[1,1]"),
        (INGRESS, b"[1]", pickle.dumps([1, 1], protocol=pickle.HIGHEST_PROTOCOL)),
        (0, pickle.dumps([1]), pickle.dumps([1, 1], protocol=pickle.HIGHEST_PROTOCOL)),
        (EGRESS, pickle.dumps([1]), b"[1,1]"),
    ],
    ids=["only stage", "first stage", "middle stage", "last stage"],
)
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_the_place_in_the_pipeline_decides_the_formats(
    flags: int, sent: bytes, received: bytes, max_batch_size: int
) -> None:
    forward = (lambda item: item * 2) if max_batch_size == 1 else (lambda batch: [item * 2 for item in batch])
    assert run(worker_of(forward), tasks(sent, flags=flags), max_batch_size=max_batch_size) == [(200, received)]


@pytest.mark.parametrize(
    ("flags", "sent", "received"),
    [
        (OBJECT_IN | OBJECT_OUT, pickle.dumps({1}), pickle.dumps((lambda item: [item] * 2)({1}), 5)),
        (OBJECT_IN, pickle.dumps({1}), b"ipc"),
        (OBJECT_OUT, b"item", pickle.dumps(["ipc of item"] * 2, 5)),
    ],
    ids=["only stage", "first stage", "last stage"],
)
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_call_of_objects_passes_no_format_at_its_ends_and_the_workers_own_between(
    flags: int, sent: bytes, received: bytes, max_batch_size: int
) -> None:
    members = {
        "deserialize_ipc": lambda self, data: f"ipc of {data.decode()}",
        "serialize_ipc": lambda self, data: b"ipc",
    }
    forward = (lambda item: [item] * 2) if max_batch_size == 1 else (lambda batch: [[item] * 2 for item in batch])
    worker = worker_of(forward, **members)
    assert run(worker, tasks(sent, flags=flags), max_batch_size=max_batch_size) == [(200, received)]


def test_an_item_of_a_call_of_objects_is_checked_by_the_format() -> None:
    worker = worker_of(lambda item: item, _checked=lambda self, item: f"checked {item}")
    expected = (200, pickle.dumps("checked 1", 5))
    assert run(worker, tasks(pickle.dumps(1), flags=OBJECT_IN | OBJECT_OUT)) == [expected]


def test_a_serializer_that_returns_text_is_told_so() -> None:
    worker = worker_of(lambda item: item, serialize=lambda self, data: "text")
    expected = (500, b"encoding error: a serializer must return bytes, not str")
    assert run(worker, json_tasks(1)) == [expected]
    worker = worker_of(lambda batch: batch, serialize_ipc=lambda self, data: "text")
    assert run(worker, tasks(b"1", flags=INGRESS), max_batch_size=4) == [expected]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_serializer_may_return_anything_that_is_bytes(kind: Callable[[bytes], Any]) -> None:
    worker = worker_of(lambda item: item, serialize=lambda self, data: kind(b"abc"))
    assert run(worker, json_tasks(1)) == [(200, b"abc")]


def test_a_result_that_cannot_be_encoded_is_answered_with_why() -> None:
    code, text = codec_of().answer(BOTH, object(), "r1")
    assert code == 500
    assert text.startswith(b"encoding error: ")
    assert codec_of(serialize=lambda self, data: {}["a secret"]).answer(BOTH, 1, "r1") == INTERNAL


def test_an_encoded_result_of_another_kind_of_bytes_becomes_bytes() -> None:
    for kind in (bytearray, memoryview):
        encoded = codec_of(serialize=lambda self, data, kind=kind: kind(b"abc")).encode(BOTH, None)
        assert (type(encoded[1]), encoded) == (bytes, (200, b"abc"))
    with pytest.raises(EncodingError, match="must return bytes, not str"):
        codec_of(serialize=lambda self, data: "abc").encode(BOTH, None)


@pytest.mark.parametrize("method", ["serialize", "deserialize"])
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_timeout_that_the_formats_raise_fails_its_item(method: str, max_batch_size: int) -> None:
    def give_up(self: Worker, data: Any) -> Any:
        raise MosecTimeoutError("gave up")

    worker = worker_of(lambda data: data, **{method: give_up})
    assert run(worker, json_tasks(1), max_batch_size=max_batch_size) == [(408, b"mosec timeout error: gave up")]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ClientError("x"), "INFO"),
        (ValidationError("x"), "INFO"),
        (ServerError("x"), "ERROR"),
        (ValueError("x"), "ERROR"),
        (type("Busy", (ServerError,), {"code": 503})("x"), "WARNING"),
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
    # A traceback is told of what is a bug, as tools that gather errors look for it.
    assert bool(record.exc_info) is (level == "ERROR")


@pytest.mark.parametrize("code", [500, 503])
def test_a_fault_that_comes_again_and_again_is_logged_within_its_ration_and_all_are_counted(
    code: int, logged: pytest.LogCaptureFixture
) -> None:
    codec, failing = codec_of(), type("Failing", (ServerError,), {"code": code})
    for number in range(3 * MOST):
        try:
            raise failing("x" * 100_000)
        except ServerError as error:
            codec.told(error, [f"r{number}"])
    codec.told(KeyError("another"), ["other"])
    codec.close()
    *lines, other, summary = logged.records
    assert len(lines) == MOST
    assert sum(bool(record.exc_info) for record in lines) == (MOST_WHOLE if code == 500 else 0)
    assert [told(record, "request_id") for record in lines] == [(f"r{number}",) for number in range(MOST)]
    assert sum(len(log.JSONFormatter().format(record)) for record in lines) < MOST_WHOLE * 30_000 + MOST * 1000
    assert bool(other.exc_info)
    assert told(other, "request_id") == ("other",)
    assert summary.getMessage().startswith(f"{2 * MOST} more requests have failed in the same way")


def test_a_fault_of_many_requests_counts_them_all(logged: pytest.LogCaptureFixture) -> None:
    codec, names = codec_of(max_batch_size=50), [f"r{number}" for number in range(50)]
    for _ in range(MOST):
        codec.told(ValueError("the batch"), names)
    codec.close()
    *lines, summary = logged.records
    assert len(lines) == MOST // (50 // NAMES)
    assert summary.getMessage().startswith(f"{50 * (MOST - len(lines))} more requests")


@pytest.mark.parametrize(
    "forward", [lambda data: data["text"], lambda data: data.shape], ids=["indices", "an attribute"]
)
def test_a_forward_that_seems_not_to_know_of_batches_is_told_of_them(
    forward: Callable[[Any], Any], logged: pytest.LogCaptureFixture
) -> None:
    for max_batch_size in (8, 1):
        logged.clear()
        run(worker_of(forward), tasks(b"[1]"), max_batch_size=max_batch_size, isolation_calls=0)
        (record,) = logged.records
        assert ("is given a list of items" in record.getMessage()) is (max_batch_size > 1)


def test_a_result_that_cannot_be_pickled_is_told_with_both_stages() -> None:
    spec = dataclasses.replace(spec_of(worker_of(lambda data: data)), next_stages=("Next_2", "Other_3"))
    code, text = Codec(load(spec), spec).answer(INGRESS, open, "r1")
    assert code == 200
    code, text = Codec(load(spec), spec).answer(INGRESS, threading.Lock(), "r1")
    assert code == 500
    assert text.startswith(
        b"encoding error: what Made_1 returned cannot be pickled for Next_2 and Other_3: cannot pickle"
    )
    own = codec_of(serialize_ipc=lambda self, data: {}["a secret"])
    assert own.answer(INGRESS, 1, "r1") == INTERNAL
    own = codec_of(serialize_ipc=lambda self, data: len(1))  # type: ignore[arg-type]
    assert own.answer(INGRESS, 1, "r1") == INTERNAL


def test_an_error_whose_text_is_not_unicode_is_answered_all_the_same() -> None:
    def forward(item: Any) -> Any:
        raise ClientError("no file 'caf\udce9'")

    ((code, text),) = run(worker_of(forward), json_tasks(1))
    assert code == 400
    assert text.startswith(b"bad request: no file 'caf")
    ((code, _),) = run(worker_of(lambda batch: [ClientError("\ud800")]), json_tasks(1), max_batch_size=2)
    assert code == 400


def test_a_failure_is_what_a_client_is_told() -> None:
    assert on_the_wire(Failure(422, "no")) == (422, b"no")
    assert on_the_wire(Failure(500, "caf\udce9")) == (500, b"caf\\udce9")
    assert codec_of().answer(BOTH, Failure(418, "tea"), ["r1"]) == (418, b"tea")


def test_an_exception_in_the_place_of_a_result_is_its_answer() -> None:
    codec = codec_of()
    assert codec.answer(BOTH, ValidationError("odd"), "r1") == (422, b"request validation error: odd")
    assert codec.answer(BOTH, KeyError("a secret"), "r1") == INTERNAL


def test_a_fault_that_several_requests_share_is_told_once_with_all_of_them(logged: pytest.LogCaptureFixture) -> None:
    shared, other = ClientError("shared"), ClientError("other")
    results = codec_of().told_of_all([shared, 7, other, shared], ["r1", "r2", "r3", "r4"])
    assert results == [Failure(400, "bad request: shared"), 7, Failure(400, "bad request: other"), results[0]]
    assert [told(record, "request_id", "stage", "worker") for record in logged.records] == [
        ("r1 r4", "Made_1", 3),
        ("r3", "Made_1", 3),
    ]


def test_an_error_that_cannot_say_what_it_is_fails_its_item_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(ClientError):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    # The handlers of pytest would raise; those of a worker complain on stderr.
    caplog.set_level(logging.CRITICAL, logger="mosec_asgi")

    def forward(batch: list[int]) -> list[Any]:
        return [Mute() if item == 2 else item for item in batch]

    assert run_batch(worker_of(forward), 1, 2, 3) == [ok(1), (400, b"bad request: bad request"), ok(3)]


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "max_batch_size", "expected"),
    [
        ({"a": 1}, 1, {"a": 1}),
        ([1, 2], 1, [1, 2]),
        ({"a": 1}, 4, [{"a": 1}]),
        ([1, 2], 4, [1, 2]),
        ((1, 2), 4, (1, 2)),
    ],
)
def test_an_example_becomes_what_forward_takes(example: Any, max_batch_size: int, expected: Any) -> None:
    assert as_input(example, batched=max_batch_size > 1) == expected


def test_the_examples_of_a_worker() -> None:
    assert examples(worker_of(lambda data: data)()) == []
    assert examples(worker_of(lambda data: data, example=0)()) == [0]
    assert examples(worker_of(lambda data: data, example=1, multi_examples=(2, 3))()) == [2, 3]


def test_examples_may_come_from_any_iterable_and_a_generator_is_read_once() -> None:
    worker = worker_of(lambda data: data, example=1, multi_examples=(number for number in (2, 3)))
    derived = type("Derived", (worker,), {})
    assert [examples(made) for made in (derived(), derived(), worker())] == [[2, 3]] * 3
    assert examples(worker_of(lambda data: data, multi_examples={4: "", 5: ""}.keys())()) == [4, 5]
    assert examples(worker_of(lambda data: data, multi_examples=np.array([6]))()) == [6]
    one = worker_of(lambda data: data, example=1)()
    one.multi_examples = iter([2])
    assert [examples(one), examples(one), examples(type(one)())] == [[2], [2], [1]]


def test_none_is_no_examples() -> None:
    assert examples(worker_of(lambda data: data, example=1, multi_examples=None)()) == [1]


def test_a_dry_run_feeds_the_example_in_place_of_the_payload() -> None:
    flags = EXAMPLE | EGRESS
    assert run(worker_of(lambda item: item + 1, example=6), tasks(b"", flags=flags)) == [ok(7)]
    batched = worker_of(lambda batch: [2 * item for item in batch], example=[4, 5])
    assert run(batched, tasks(b"", flags=flags), max_batch_size=4) == [ok(8)]
    several = worker_of(lambda item: item + 1, multi_examples=[1, 2])
    assert run(several, tasks(b"", flags=flags)) == [ok(2)]


# -- shared memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memfd")
    memory = SharedMemory(1 << 20, 1)
    yield Mapped(memory.open_worker().share)
    memory.close()


def test_large_bytes_of_a_workers_own_format_go_through_the_memory(mapped: Mapped) -> None:
    members = {
        "serialize_ipc": lambda self, data: bytearray(data),
        "deserialize_ipc": lambda self, data: (type(data), data),
        "serialize": lambda self, data: data,
        "deserialize": lambda self, data: (type(data), data),
    }
    spec = dataclasses.replace(spec_of(worker_of(lambda data: data, **members)), buffers_apart=True)
    codec = Codec(load(spec), spec, mapped)
    for encoding, decoding in ((0, 0), (EGRESS, INGRESS)):
        large, small = bytes(range(256)) * 300, bytes(65_535)
        code, payload = codec.encode(encoding, large)
        assert (code, reference.unpack(payload).kind) == (frames.IN_MEMORY, reference.Kind.BYTES)
        assert codec.decode(decoding | frames.SHARED, payload) == (bytearray, large)
        assert codec.encode(encoding, small) == (200, small)
        assert codec.decode(decoding, small) == (bytearray, small)


def test_what_stages_read_in_their_own_way_is_one_pickle(mapped: Mapped) -> None:
    large = np.zeros(100_000, np.uint8)
    spec = spec_of(worker_of(lambda data: data))
    code, payload = Codec(load(spec), spec, mapped).encode(INGRESS, large)
    contents = reference.unpack(payload)
    assert (code, contents.kind) == (frames.IN_MEMORY, reference.Kind.BYTES)
    assert np.array_equal(pickle.loads(mapped.read(contents.spans[0])), large)
    spec = dataclasses.replace(spec, buffers_apart=True)
    code, payload = Codec(load(spec), spec, mapped).encode(INGRESS, large)
    assert (code, reference.unpack(payload).kind) == (frames.IN_MEMORY, reference.Kind.PICKLE)


def test_a_worker_without_the_memory_answers_what_it_cannot_read_with_an_error() -> None:
    payload = reference.pack(reference.Kind.BYTES, [reference.Span(0, 5)])
    with pytest.raises(frames.FrameError, match="this worker has none"):
        codec_of().decode(INGRESS | frames.SHARED, payload)


# -- what a deserializer is given --------------------------------------------------------------------------------------


def change_in_place(self: Worker, data: Any) -> Any:
    data.extend(b"!")
    numbers = np.frombuffer(data, dtype=np.uint8)
    numbers += 1
    return bytes(data).decode()


@pytest.mark.parametrize("method", ["deserialize", "deserialize_ipc"])
def test_a_users_own_deserializer_may_change_what_it_is_given(method: str) -> None:
    sent = b"abc"
    codec = codec_of(**{method: change_in_place})
    assert codec.decode(INGRESS if method == "deserialize" else 0, sent) == 'bcd"'
    assert sent == b"abc"


def test_a_deserializer_of_this_package_is_given_the_bytes_without_a_copy() -> None:
    sent: list[Any] = []

    def noted(self: Worker, data: Any) -> None:
        sent.append(data)

    # As a mixin's.
    noted.__module__ = "mosec_asgi.mixin.made"
    codec = codec_of(deserialize=noted, deserialize_ipc=noted)
    body, pickled = b"[1]", pickle.dumps([1])
    codec.decode(INGRESS, body)
    codec.decode(0, pickled)
    assert sent[0] is body
    assert sent[1] is pickled


@pytest.mark.parametrize("method", ["deserialize", "deserialize_ipc"])
def test_a_users_deserializer_may_call_the_one_that_it_overrides(method: str) -> None:
    codec = codec_of(**{method: lambda self, data: getattr(Worker, method)(self, data)})
    assert codec.decode(INGRESS, b"[1]") == [1] if method == "deserialize" else codec.decode(0, pickle.dumps([1]))


def test_what_a_deserializer_changes_stays_its_own_in_shared_memory(mapped: Mapped) -> None:
    spec = spec_of(worker_of(lambda data: data, deserialize=change_in_place))
    codec = Codec(load(spec), spec, mapped)
    span = mapped.put(b"abc" * 30_000)
    assert span is not None
    where = reference.pack(reference.Kind.BYTES, [span])
    assert codec.decode(INGRESS | frames.SHARED, where) == "bcd" * 30_000 + '"'
    assert mapped.read(span) == b"abc" * 30_000
