"""The parts of a message are counted right, whatever it is, and before it is read."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pb: Any = pytest.importorskip("tritonclient.grpc.service_pb2")

from google.protobuf.message import DecodeError  # noqa: E402

from mosec_asgi.errors import ClientError  # noqa: E402
from mosec_asgi.web.protocols.open_inference.grpc.bounds import MOST_FIELDS, check_fields  # noqa: E402


def request(inputs: int, outputs: int, parameters: int, of_each: int, values: int) -> Any:
    """Return a request, and how many parts it has."""
    message = pb.ModelInferRequest(model_name="m")
    count = 1 + parameters + inputs * (2 + of_each) + outputs * (2 + of_each)
    for number in range(parameters):
        message.parameters[str(number)].int64_param = number
    for tensors, total in ((message.inputs, inputs), (message.outputs, outputs)):
        for _ in range(total):
            tensor = tensors.add(name="x")
            for number in range(of_each):
                tensor.parameters[str(number)].bool_param = True
    for tensor in message.inputs[:1] if values else ():
        tensor.contents.bytes_contents.extend([b""] * values)
        count += 1
    return message.SerializeToString(), count


@pytest.mark.parametrize("shape", [(64, 64, 30, 30), (1, 0, MOST_FIELDS, 0), (2000, 0, 0, 1), (0, 1, 0, MOST_FIELDS)])
@pytest.mark.parametrize("values", [0, 100_000])
def test_a_request_may_have_so_many_parts_beside_its_values(shape: Any, values: int) -> None:
    message, count = request(*shape, values)
    if count <= MOST_FIELDS:
        check_fields(message)
    else:
        with pytest.raises(ClientError, match="more than 4096 parts"):
            check_fields(message)


def test_the_limit_itself_is_kept_to_one() -> None:
    message, count = request(1, 0, MOST_FIELDS - 3, 0, 0)
    assert count == MOST_FIELDS
    check_fields(message)
    with pytest.raises(ClientError):
        check_fields(message + b"\x1a\x01a")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_left_to_the_parser(data: bytes) -> None:
    check_fields(data)


@pytest.mark.parametrize(
    "piece", [b"\x2a\x00", b"\x32\x02\x0a\x00", b"\x22\x00", b"\x3a\x00", b"\xf8\x01\x01", b"\x80"]
)
def test_ten_megabytes_of_the_smallest_parts_take_no_longer_than_the_first_of_them(piece: bytes) -> None:
    message = piece * (10_000_000 // len(piece))
    began = time.process_time()
    with contextlib.suppress(ClientError):
        check_fields(message)
    assert time.process_time() - began < 0.2


# Fields that the parser passes over, as it does not know them: a group, one within a group, an input that is a number,
# and an input with a group in it.
@pytest.mark.parametrize(
    "before", [b"\xc3\x3e\xc4\x3e", b"\xc3\x3e\xcb\x3e\xcc\x3e\xc4\x3e", b"\x28\x03", b"\x2a\x04\xc3\x3e\xc4\x3e"]
)
def test_parts_behind_what_the_parser_passes_over_are_counted(before: bytes) -> None:
    few, many = before + b"\x2a\x00" * 1000, before + b"\x2a\x00" * (MOST_FIELDS + 1)
    for message in (few, many):
        pb.ModelInferRequest.FromString(message)
    check_fields(few)
    with pytest.raises(ClientError, match="more than 4096 parts"):
        check_fields(many)


@given(
    st.lists(
        st.sampled_from([b"\x2a", b"\x00", b"\x03", b"\x28", b"\xc3\x3e", b"\xc4\x3e", b"\x0a\x01", b"\x05", b"\xff"])
    )
)
def test_no_beginning_of_a_message_ends_the_counting_but_where_it_ends_the_parser(pieces: list[bytes]) -> None:
    message = b"".join(pieces) + b"\x2a\x00" * (MOST_FIELDS + 1)
    try:
        read = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        return
    if len(read.inputs) > MOST_FIELDS:
        with pytest.raises(ClientError):
            check_fields(message)
