"""Clients of gRPC who send slowly, or do not read what they are answered: what they may hold, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc_workers
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb

from mosec_asgi.web.grpc.arrivals import LEAST_AT_ONCE, Arrivals, GivenUp
from mosec_asgi.web.grpc.exchange import headers_of

Metadata = Sequence[tuple[str, str]]
METHOD = "/inference.GRPCInferenceService/"


def head(method: str) -> list[tuple[str, str]]:
    """Return the head of a call."""
    path = (":path", METHOD + method)
    rest = [("content-type", "application/grpc"), ("te", "trailers")]
    return [(":method", "POST"), (":scheme", "http"), path, (":authority", "x"), *rest]


class Told:
    """A call with so many seconds left until its deadline, and metadata."""

    def __init__(self, left: float | None, metadata: Metadata = ()) -> None:
        self._left = left
        self._metadata = metadata

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        return self._left


@pytest.mark.parametrize(
    ("left", "own", "timeout"),
    [
        (None, None, None),
        (1e12, None, None),
        (1.5, None, b"1500"),
        (0.0001, None, b"1"),
        (-1.0, None, b"1"),
        (1.5, "2000", b"1500"),
        (1.5, "1000", b"1000"),
        # Told of in the usual words.
        (1.5, "soon", b"soon"),
    ],
)
def test_the_deadline_of_a_call_is_the_timeout_of_its_request(
    left: float | None, own: str | None, timeout: bytes | None
) -> None:
    call: Any = Told(left, [] if own is None else [("x-request-timeout", own)])
    assert headers_of(call).get(b"x-request-timeout") == timeout


class Raw:
    """A client that sends what it is told, and takes 64 KiB of answers at most."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.http.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.http.data_to_send())

    async def call(self, method: str, data: bytes, *, ends: bool = False, metadata: Metadata = ()) -> int:
        """Begin a call with so many bytes; return the number of its stream."""
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, [*head(method), *metadata])
        while len(data) > (room := min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)):
            self.http.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
            if not room:
                # What comes is not taken: nothing but the first 64 KiB will.
                self.http.receive_data(await asyncio.wait_for(self.reader.read(65536), 20))
        self.http.send_data(stream, data, end_stream=ends)
        self.flush()
        return stream

    async def status(self, stream: int) -> str:
        """Return the status of a call."""
        while data := await asyncio.wait_for(self.reader.read(65536), 20):
            for event in self.http.receive_data(data):
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    headers = dict(event.headers)
                    if event.stream_id == stream and b"grpc-status" in headers:
                        return str(headers[b"grpc-status"].decode())
            self.flush()
        raise ConnectionError("ended")

    async def ended(self) -> None:
        """Return once the server has ended the connection."""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(65536), 20):
                self.http.receive_data(data)
                self.flush()


@contextlib.asynccontextmanager
async def asked(**settings: Any) -> AsyncIterator[tuple[Raw, Any]]:
    """Serve in this process; yield a raw client and an honest one."""
    server, protocol = grpc_workers.serve(**settings)
    async with server, triton_aio.InferenceServerClient(f"127.0.0.1:{protocol.grpc_port}") as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", protocol.grpc_port)
        try:
            yield Raw(reader, writer), client
        finally:
            writer.close()


def echo(size: int) -> bytes:
    """Return a request to be answered by so many bytes, in its frame."""
    request = pb.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="UINT8", shape=[1, size])
    request.raw_input_contents.append(bytes(size))
    message = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(message)) + message


async def is_served(client: Any) -> bool:
    tensor = triton.InferInput("x", [1], "INT32")
    tensor.set_data_from_numpy(np.array([7], np.int32))
    return bool((await client.infer("echo", [tensor])).as_numpy("x")[0] == 7)


# -- messages on their way ---------------------------------------------------------------------------------------------


async def test_a_message_that_does_not_come_is_given_up_and_others_are_served() -> None:
    async with asked(read_timeout=300, max_request_size=10_000) as (raw, client):
        stream = await raw.call("ModelInfer", echo(1000)[:-1])
        assert await is_served(client)
        assert await raw.status(stream) == "4"
        assert await is_served(client)


async def test_a_call_without_a_message_is_told_so() -> None:
    async with asked() as (raw, _):
        assert await raw.status(await raw.call("ModelInfer", b"", ends=True)) == "3"


@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_metadata_that_is_no_ascii_is_read_as_any_other(keys: Sequence[str]) -> None:
    async with asked(**({"api_keys": keys} if keys else {})) as (raw, _):
        for name in ("x-note", "x-request-id", "authorization"):
            stream = await raw.call("ModelInfer", echo(10), ends=True, metadata=[(name, "\u65e5")])
            assert await raw.status(stream) == ("16" if keys else "0")


async def test_of_too_many_messages_on_their_way_the_oldest_is_given_up() -> None:
    arrivals = Arrivals(0, 60)
    loop = asyncio.get_running_loop()
    messages: list[asyncio.Future[int]] = [loop.create_future() for _ in range(LEAST_AT_ONCE + 1)]
    reading = [asyncio.ensure_future(arrivals.only(message)) for message in messages]
    with pytest.raises(GivenUp):
        await reading[0]
    for number, message in enumerate(messages[1:]):
        message.set_result(number)
    assert await asyncio.gather(*reading[1:]) == list(range(LEAST_AT_ONCE))
    assert len(arrivals) == 0
    arrivals.stop()


async def test_a_stream_that_waits_longest_gives_its_place_to_a_newer_one_but_no_clock_ends_it() -> None:
    arrivals = Arrivals(0, 0.01)
    given_up = []
    for number in range(LEAST_AT_ONCE):
        arrivals.begin(number, lambda number=number: given_up.append(number))
    arrivals.end(0)
    # This one has a clock.
    with pytest.raises(GivenUp):
        await arrivals.only(asyncio.get_running_loop().create_future())
    assert given_up == []
    arrivals.begin("a", lambda: given_up.append(-1))
    arrivals.begin("b", lambda: given_up.append(-1))
    assert given_up == [1]
    arrivals.stop()


async def test_a_call_that_is_cancelled_is_not_taken_for_one_that_is_given_up() -> None:
    arrivals = Arrivals(0, 60)
    reading = asyncio.ensure_future(arrivals.only(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert len(arrivals) == 0
    arrivals.stop()


# -- answers that are not taken ----------------------------------------------------------------------------------------


async def test_a_client_that_reads_nothing_is_ended_where_its_answers_take_too_much() -> None:
    async with asked(answer_memory=500_000) as (raw, client):
        with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
            await raw.call("ModelStreamInfer", 50 * echo(20_000))
        await raw.ended()
        assert await is_served(client)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_a_client_that_takes_nothing_for_too_long_is_ended(method: str) -> None:
    async with asked(stall_timeout=300, least_rate=10_000_000) as (raw, client):
        await raw.call(method, echo(200_000), ends=True)
        await raw.ended()
        assert await is_served(client)


async def test_a_client_that_reads_is_not_ended_whatever_its_model_takes() -> None:
    async def requests() -> AsyncIterator[Any]:
        for seconds in (1.0, 0.0, 0.0):
            tensor = triton.InferInput("seconds", [1], "FP32")
            tensor.set_data_from_numpy(np.array([seconds], np.float32))
            yield {"model_name": "sleep", "inputs": [tensor]}

    async with asked(stall_timeout=100, least_rate=10_000_000) as (_, client):
        slept = [float(result.as_numpy("slept")[0]) async for result, _ in client.stream_infer(requests())]
    assert slept == [1.0, 0.0, 0.0]
