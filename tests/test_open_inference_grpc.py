"""The open inference protocol over gRPC: Triton's and KServe's own clients, gRPC's statuses, streams, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc_workers
import numpy as np
import open_inference_workers
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from harness import TESTS, Program, environment_of_programs, free_port, running
from tritonclient.grpc import service_pb2 as theirs
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mosec_asgi import Server
from mosec_asgi.errors import CANCELLED, DefinitionError, StartupError
from mosec_asgi.protocols import OpenInference
from mosec_asgi.web.grpc.streams import MOST_AT_ONCE

ROOT = TESTS.parent
METHOD = "/inference.GRPCInferenceService/"
Code = grpc.StatusCode
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
NUMBERS = ("bool", *INTEGERS, "float16", "float32", "float64")


def given(name: str, values: Any, datatype: str | None = None) -> Any:
    """Return an input of Triton's client."""
    array = np.asarray(values)
    tensor = triton.InferInput(name, array.shape, datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def words(*texts: str) -> Any:
    return given("text_input", np.array([[text.encode()] for text in texts], object))


class Answers:
    """What the blocking client's stream calls."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self.queue.put(error or result)

    def take(self) -> Any:
        return self.queue.get(timeout=20)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A service under uvicorn."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "grpc_workers:server", "--port", "{port}", "--app-dir", str(TESTS)]
    with running(command, log, environment={"GRPC_PORT": str(port)}) as program:
        program.wait_ready()
        program.grpc = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
        yield program


@pytest.fixture
def client(program: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(program.grpc) as client:
        yield client


@pytest.fixture
def call(program: Any) -> Iterator[Callable[..., bytes]]:
    """Calls a method with bytes, whatever they are."""
    with grpc.insecure_channel(program.grpc) as channel:

        def call(method: str, message: bytes = b"", **options: Any) -> bytes:
            path = method if method.startswith("/") else METHOD + method
            answer: bytes = channel.unary_unary(path)(message, timeout=20, **options)
            return answer

        yield call


@contextlib.asynccontextmanager
async def asked(**settings: Any) -> AsyncIterator[tuple[Server, Any]]:
    """Serve in this process; yield the server, and Triton's asynchronous client."""
    server, protocol = grpc_workers.serve(**settings)
    async with server, triton_aio.InferenceServerClient(f"127.0.0.1:{protocol.grpc_port}") as client:
        yield server, client


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def slept_turns(count: int) -> None:
    """Let the event loop go on, in which the server runs as well."""
    for _ in range(count):
        await asyncio.sleep(0.001)


def admitted(server: Server) -> int:
    assert server._running is not None
    return server._running.statistics().admitted


# -- Triton's clients --------------------------------------------------------------------------------------------------


def test_the_server_and_its_models_tell_of_themselves(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum")
    assert client.is_model_ready("sum", "1")
    assert client.get_server_metadata().name == "mosec_asgi"
    told = client.get_model_metadata("sum", as_json=True)
    assert told["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}
    assert [output["name"] for output in told["outputs"]] == ["sum", "who", "batch"]


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_each_datatype_come_back_as_they_went(client: Any, kind: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(kind)
    if values.dtype.kind == "f":
        values[0] = [np.nan, np.inf, -np.inf, -0.0]
    elif values.dtype.kind in "iu":
        values[0, :2] = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
    answer = client.infer("echo", [given("x", values)]).as_numpy("x")
    assert (answer.dtype, answer.tobytes()) == (values.dtype, values.tobytes())


def test_bytes_and_bf16_come_back_as_they_went(client: Any, call: Callable[..., bytes]) -> None:
    texts = np.array([[b"a", b""], [b"\x00\xff", "\u00e9".encode()]], object)
    answer = client.infer("echo", [given("x", texts)])
    assert answer.as_numpy("x").tolist() == texts.tolist()
    # 1.5 and -2.0, the upper halves of their FP32. A worker that describes no output gets and gives them as FP32.
    halves = raw(b"\xc0\x3f\x00\xc0", datatype="BF16")
    told = theirs.ModelInferResponse.FromString(call("ModelInfer", halves.SerializeToString()))
    assert (told.outputs[0].datatype, told.raw_output_contents[0]) == ("FP32", struct.pack("<2f", 1.5, -2.0))


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-5, 5]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"a", b"\xff"]),
    ],
)
def test_values_in_lists_are_answered_in_lists(
    call: Callable[..., bytes], datatype: str, field: str, values: list[Any]
) -> None:
    request = theirs.ModelInferRequest(model_name="echo", id="7")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(tensor.contents, field).extend(values)
    answer = theirs.ModelInferResponse.FromString(call("ModelInfer", request.SerializeToString()))
    assert (answer.id, answer.model_name, answer.model_version) == ("7", "echo", "1")
    assert list(getattr(answer.outputs[0].contents, field)) == values
    assert not answer.raw_output_contents


class Held(open_inference_workers.Sum):
    """Begins when it is told to."""

    told = threading.Event()

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        assert self.told.wait(20)
        return super().forward(data)


async def test_requests_of_several_clients_share_batches_and_keep_their_rows() -> None:
    server = Server()
    server.append_worker(Held, max_batch_size=32, route="/sum", executor="thread")
    protocol = OpenInference({"sum": "/sum"}, grpc_port=0, grpc_host="127.0.0.1")
    server.add_protocol(protocol)
    async with server, triton_aio.InferenceServerClient(f"127.0.0.1:{protocol.grpc_port}") as client:

        async def one(number: int) -> Any:
            x = given("x", np.full((2, 3), number, np.float32))
            who = given("name", np.array([b"a", b"b"], object))
            outputs = [triton.InferRequestedOutput("sum"), triton.InferRequestedOutput("batch")]
            answer = await client.infer("sum", [x, who], outputs=outputs, parameters={"times": 2})
            return answer.as_numpy("sum").tolist(), max(answer.as_numpy("batch")), answer.as_numpy("who")

        asking = asyncio.gather(*map(one, range(20)))
        # Each has a row there, and none is answered: whatever the first batch holds, the next one has those of several.
        await until(lambda: admitted(server) >= 20)
        Held.told.set()
        answers = await asking
    assert [each[0] for each in answers] == [[6.0 * number] * 2 for number in range(20)]
    assert max(each[1] for each in answers) > 2
    assert {each[2] for each in answers} == {None}, "only what was asked for"


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_answers_requests_of_whole_answers_in_their_order_and_errors_among_them(client: Any) -> None:
    answers = Answers()
    client.start_stream(answers)
    for number, seconds in enumerate((0.3, 0.0, 0.1, 0.0)):
        client.async_stream_infer("sleep", [given("seconds", np.array([seconds], np.float32))], request_id=str(number))
    client.async_stream_infer("none", [given("seconds", np.array([0], np.float32))], request_id="4")
    told = [answers.take().get_response() for _ in range(4)]
    assert [each.id for each in told] == ["0", "1", "2", "3"]
    assert [each.parameters["triton_final_response"].bool_param for each in told] == [True] * 4
    error = answers.take()
    assert isinstance(error, InferenceServerException)
    assert "no model 'none'" in error.message()
    client.stop_stream()


@pytest.mark.parametrize("empty_final", [False, True])
def test_a_model_that_streams_gives_several_answers_to_a_request(client: Any, empty_final: bool) -> None:
    answers = Answers()
    client.start_stream(answers)
    client.async_stream_infer(
        "write", [words("a b c")], request_id="9", enable_empty_final_response=empty_final, parameters={"max_tokens": 2}
    )
    for text in ("a ", "b "):
        answer = answers.take()
        assert answer.as_numpy("text_output").tolist() == [text.encode()]
        response = answer.get_response()
        assert (response.id, response.parameters["triton_final_response"].bool_param) == ("9", False)
    if empty_final:
        last = answers.take().get_response()
        assert (len(last.outputs), last.parameters["triton_final_response"].bool_param) == (0, True)
    client.async_stream_infer("write", [words("fail")])
    assert "a word that fails" in answers.take().message()
    client.async_stream_infer("write", [words("a", "b")])
    assert "takes one row" in answers.take().message()
    client.stop_stream()
    assert answers.queue.empty()


async def test_the_asynchronous_client_streams_more_than_are_taken_at_one_time() -> None:
    async def requests() -> AsyncIterator[Any]:
        for number in range(300):
            yield {"model_name": "echo", "inputs": [given("x", np.array([number], np.int32))]}

    async with asked() as (_, client):
        values = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            values.append(int(result.as_numpy("x")[0]))
    assert values == list(range(300))


async def test_a_stream_has_so_many_requests_taken_at_one_time_and_all_of_them_end_with_it() -> None:
    async def requests() -> AsyncIterator[Any]:
        for _ in range(100):
            yield {"model_name": "sleep", "inputs": [given("seconds", np.array([30], np.float32))]}

    async with asked() as (server, client):
        answers = client.stream_infer(requests())
        asking = asyncio.ensure_future(anext(answers))
        await until(lambda: admitted(server) == MOST_AT_ONCE)
        await slept_turns(100)
        assert admitted(server) == MOST_AT_ONCE
        answers.cancel()
        await until(lambda: admitted(server) == 0)
        with contextlib.suppress(asyncio.CancelledError, InferenceServerException, grpc.RpcError):
            await asking


async def test_events_of_a_stream_wait_for_a_client_that_does_not_read() -> None:
    async def requests() -> AsyncIterator[Any]:
        yield {"model_name": "count", "inputs": [given("n", np.array([3000], np.int64))]}

    async with asked(stream_buffer=2000) as (_, client):
        numbers = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            numbers.append(int(result.as_numpy("number")[0]))
    assert numbers == list(range(3000))


def test_without_a_stream_a_model_that_streams_gives_its_text_as_a_whole(client: Any) -> None:
    assert client.infer("write", [words("a b")]).as_numpy("text_output").tolist() == [b"a b "]


# -- statuses ----------------------------------------------------------------------------------------------------------


def x(**more: Any) -> Any:
    request = theirs.ModelInferRequest(model_name="echo")
    request.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 2], **more})
    return request


def raw(*pieces: bytes, **more: Any) -> Any:
    request = x(**more)
    request.raw_input_contents.extend(pieces)
    return request


def contents(field: str, values: list[Any], **more: Any) -> Any:
    request = x(**more)
    getattr(request.inputs[0].contents, field).extend(values)
    return request


def both() -> Any:
    request = raw(bytes(8))
    request.inputs[0].contents.fp32_contents.extend([1, 2])
    return request


def shared() -> Any:
    request = raw(bytes(8))
    request.inputs[0].parameters["shared_memory_region"].string_param = "a"
    return request


def many(count: int) -> Any:
    request = raw(bytes(8))
    for number in range(count):
        request.parameters[str(number)].bool_param = True
    return request


HOSTILE = {
    "no message": (b"\xff\xff\xff", "no inference.ModelInferRequest"),
    "no inputs": (theirs.ModelInferRequest(model_name="echo"), "needs inputs"),
    "too few bytes": (raw(bytes(7)), "7 bytes came"),
    "too many bytes": (raw(bytes(9)), "9 bytes came"),
    "two for one": (raw(bytes(8), bytes(8)), "1 inputs, and 2 of raw_input_contents"),
    "negative": (raw(bytes(8), shape=[1, -2]), "not negative"),
    "huge": (raw(bytes(8), shape=[1, 2**62]), "not more than"),
    "huge product": (raw(bytes(8), shape=[2, 2**40, 2**40]), "not more than"),
    "no shape": (raw(bytes(8), shape=[]), "1 to 32 whole numbers"),
    "long shape": (raw(bytes(8), shape=[1] * 100_000), "1 to 32 whole numbers"),
    "no rows": (raw(b"", shape=[0, 2]), "it has no row"),
    "many rows": (raw(bytes(8), shape=[10**6, 2]), "from 1 to 2048"),
    "no datatype": (raw(bytes(8), datatype="FP128"), "its datatype must be one of"),
    "no name": (raw(bytes(8), name=""), "must be a text that is not empty"),
    "a length that lies": (raw(struct.pack("<I", 2**31) + b"ab", datatype="BYTES", shape=[1]), "and 2 are left"),
    "half a length": (raw(b"\x01", datatype="BYTES", shape=[1]), "4 at least"),
    "a bool of 2": (raw(b"\x02", datatype="BOOL", shape=[1]), "0 or 1"),
    "the wrong list": (contents("fp64_contents", [1, 2]), "values of FP32 stand in fp32_contents"),
    "a list too short": (contents("fp32_contents", [1]), "1 values came"),
    "a list too long": (contents("fp32_contents", [0] * 200_000), "3 values came"),
    "out of range": (contents("int_contents", [128, 0], datatype="INT8"), "from -128 to 127"),
    "FP16 in a list": (contents("fp32_contents", [1, 2], datatype="FP16"), "raw_input_contents"),
    "both": (both(), "leave one of them out"),
    "shared memory": (shared(), "shared_memory_region"),
    "parameters": (many(5000), "more than 4096 parts"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_wrong_tensor_is_an_invalid_argument(call: Callable[..., bytes], kind: str) -> None:
    request, told = HOSTILE[kind]
    with pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", request if isinstance(request, bytes) else request.SerializeToString())
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert told in caught.value.details()


@pytest.mark.parametrize("count", [65, 500_000])
def test_more_tensors_than_a_request_may_have_are_refused_before_they_are_made(
    call: Callable[..., bytes], count: int
) -> None:
    for field in (b"\x2a\x00", b"\x32\x00"):
        message = theirs.ModelInferRequest(model_name="echo").SerializeToString() + field * count
        with pytest.raises(grpc.RpcError, match=r"a request may have 64|more than 4096 parts"):
            call("ModelInfer", message)


def summed(name: bytes) -> list[Any]:
    return [given("x", np.ones((1, 3), np.float32)), given("name", np.array([name], object))]


@pytest.mark.parametrize(
    ("model", "inputs", "code", "told"),
    [
        ("none", summed(b"a"), Code.NOT_FOUND, "there is no model 'none'"),
        ("sum", summed(b"a")[:1], Code.INVALID_ARGUMENT, "'name': it is missing"),
        ("sum", summed(b"bad"), Code.INVALID_ARGUMENT, "a bad name"),
        ("sum", summed(b"invalid"), Code.INVALID_ARGUMENT, "an invalid name"),
        ("sum", summed(b"broken"), Code.INTERNAL, "the model 'sum' returned"),
        ("sleep", [given("seconds", np.array([-1], np.float32))], Code.INTERNAL, "inference internal error"),
        ("echo", [given("x", np.zeros((1, 300_000), np.float32))], Code.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)
def test_what_goes_wrong_has_grpcs_status(client: Any, model: str, inputs: Any, code: Any, told: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs)
    assert (caught.value.status(), told in caught.value.message()) == (f"StatusCode.{code.name}", True)


def test_a_request_has_its_id_and_what_is_too_much_says_when_to_come_again(program: Any) -> None:
    with grpc.insecure_channel(program.grpc) as channel:
        method = channel.unary_unary(f"{METHOD}ServerLive")
        _, called = method.with_call(b"", metadata=[("x-request-id", "mine")])
        assert dict(called.trailing_metadata())["x-request-id"] == "mine"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"{METHOD}RepositoryIndex")(b"")
        assert caught.value.code() is Code.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_grpcs_own_health_check_is_answered(call: Callable[..., bytes], service: str) -> None:
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    asked = health.HealthCheckRequest(service=service).SerializeToString()
    answer = health.HealthCheckResponse.FromString(call("/grpc.health.v1.Health/Check", asked))
    assert answer.status == health.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        call("/grpc.health.v1.Health/Check", health.HealthCheckRequest(service="none").SerializeToString())
    assert caught.value.code() is Code.NOT_FOUND


async def slept(client: Any, seconds: float, **options: Any) -> Any:
    return await client.infer("sleep", [given("seconds", np.array([seconds], np.float32))], **options)


async def test_the_deadline_of_a_call_and_its_cancellation_are_those_of_its_work() -> None:
    # The service's own timeout is longer than the test waits.
    async with asked(timeout=120_000) as (server, client):
        with pytest.raises(InferenceServerException) as caught:
            await slept(client, 100, client_timeout=0.3)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        await until(lambda: admitted(server) == 0)
        asking = asyncio.ensure_future(slept(client, 100))
        await until(lambda: admitted(server) == 1)
        asking.cancel()
        await until(lambda: admitted(server) == 0)
        # What nobody was answered is no answer, as on the other ways.
        assert all(CANCELLED not in codes for codes in server.statistics().answered.values())


async def test_a_service_without_room_or_time_says_so() -> None:
    async with asked(capacity=1, timeout=300) as (server, client):
        asking = asyncio.ensure_future(slept(client, 30))
        await until(lambda: admitted(server) == 1)
        with pytest.raises(InferenceServerException, match="at its capacity") as caught:
            await slept(client, 0)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        with pytest.raises(InferenceServerException, match="not done within") as caught:
            await asking
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_where_the_service_has_keys_a_call_needs_one_but_not_to_ask_whether_it_works() -> None:
    async with asked(api_keys=["a-key-of-sixteen-letters"]) as (_, client):
        key = {"authorization": "Bearer a-key-of-sixteen-letters"}
        assert (await slept(client, 0, headers=key)).as_numpy("slept").tolist() == [0]
        for headers in ({}, {"x-api-key": "another"}):
            with pytest.raises(InferenceServerException) as caught:
                await slept(client, 0, headers=headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"

        async def requests() -> AsyncIterator[Any]:
            yield {"model_name": "sleep", "inputs": [given("seconds", np.array([0], np.float32))]}

        with pytest.raises(grpc.RpcError) as refused:
            await anext(client.stream_infer(requests()))
        assert refused.value.code() is Code.UNAUTHENTICATED
        health = client._channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"") == b"\x08\x01"


# -- beginning and end -------------------------------------------------------------------------------------------------


async def test_at_the_end_what_runs_is_answered_and_streams_end() -> None:
    waiting = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield {"model_name": "sleep", "inputs": [given("seconds", np.array([0.5], np.float32))]}
        await waiting.wait()

    async def streamed(client: Any, got: list[Any]) -> None:
        async for result, error in client.stream_infer(requests()):
            got.append(error or float(result.as_numpy("slept")[0]))

    server, protocol = grpc_workers.serve()
    async with server:
        client = triton_aio.InferenceServerClient(f"127.0.0.1:{protocol.grpc_port}")
        got: list[Any] = []
        streaming = asyncio.ensure_future(streamed(client, got))
        asking = asyncio.ensure_future(slept(client, 0.5))
        await until(lambda: admitted(server) == 2)
    answer = await asking
    with pytest.raises(grpc.RpcError, match="shutting down"):
        await streaming
    assert (float(answer.as_numpy("slept")[0]), got) == (0.5, [0.5])
    with pytest.raises(InferenceServerException) as caught:
        await slept(client, 0)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    await client.close()


def test_a_server_of_its_own_ends_in_good_order(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, str(TESTS / "grpc_workers.py"), "--port", "{port}"]
    with running(command, tmp_path / "log", environment={"GRPC_PORT": str(port)}) as program:
        program.wait_ready()
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_ready()
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(20) == 0
    assert f"gRPC listens on 127.0.0.1:{port}" in program.output


async def test_a_server_starts_again_and_a_port_that_is_taken_ends_its_start() -> None:
    server, protocol = grpc_workers.serve()
    for _ in range(2):
        async with server, triton_aio.InferenceServerClient(f"127.0.0.1:{protocol.grpc_port}") as client:
            assert await client.is_server_ready()
            other, _ = grpc_workers.serve(port=protocol.grpc_port)
            with pytest.raises(StartupError, match="choose another grpc_port"):
                await other.lifespan().__aenter__()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"grpc_port": "8001"}, "must be a port"),
        ({"grpc_port": 70_000}, "must be a port"),
        ({"grpc_port": True}, "must be a port"),
        ({"grpc_port": 1, "grpc_host": ""}, "must be an address"),
    ],
)
def test_a_port_or_an_address_that_is_none_is_refused(settings: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        OpenInference({"echo": "/echo"}, **settings)


# -- other clients, and the proto file ---------------------------------------------------------------------------------

KSERVE = """
import asyncio, sys
import numpy as np
import open_inference_workers
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def main():
    client = InferenceGRPCClient(sys.argv[1])
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("echo")
    for binary in (False, True):
        tensor = InferInput("x", [2, 2], "FP32", None if binary else [1.0, 2.0, 3.0, 4.0])
        if binary:
            tensor.set_data_from_numpy(np.array([[1, 2], [3, 4]], np.float32), binary_data=True)
        answer = await client.infer(InferRequest("echo", [tensor], request_id="5"))
        assert answer.id == "5" and answer.outputs[0].as_numpy().tolist() == [[1, 2], [3, 4]], answer
    await client.close()
    print("well")

asyncio.run(main())
"""


def test_kserves_client_is_served(program: Any) -> None:
    """In a program of its own: its messages have the names of Triton's."""
    command = [sys.executable, "-W", "ignore", "-c", KSERVE, program.grpc]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment_of_programs(), timeout=60)
    assert ran.stdout.strip().endswith("well"), ran.stderr


def test_our_messages_have_the_fields_of_tritons() -> None:
    from mosec_asgi.web.protocols.open_inference.grpc import open_inference_pb2 as ours

    def fields(message: Any) -> dict[str, Any]:
        told = {field.name: (field.number, field.type) for field in message.fields}
        return told | {each.name: fields(each) for each in message.nested_types}

    names = ours.DESCRIPTOR.message_types_by_name
    assert len(names) == 15
    for name, message in names.items():
        expected = fields(theirs.DESCRIPTOR.message_types_by_name[name])
        assert fields(message) == {key: expected[key] for key in fields(message)}, name
    methods = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in ours.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        of_triton = methods[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            of_triton.input_type.full_name, of_triton.output_type.full_name,
        )  # fmt: skip


def test_what_is_made_of_the_proto_file_is_up_to_date() -> None:
    ran = subprocess.run([sys.executable, ROOT / ".ci/proto", "--check"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


# -- API keys ----------------------------------------------------------------------------------------------------------


async def test_a_call_without_an_api_key_is_refused_and_health_is_open() -> None:
    key = "key-of-the-service-0123"
    server, protocol = grpc_workers.serve(api_keys=[key, "key-of-another-path-0123 /v1/*"])
    async with server.lifespan(), grpc.aio.insecure_channel(f"127.0.0.1:{protocol.grpc_port}") as channel:

        async def ask(path: str, *metadata: tuple[str, str], stream: bool = False) -> Any:
            try:
                if stream:
                    return [each async for each in channel.stream_stream(path)(iter([b""]), metadata=metadata)]
                return await channel.unary_unary(path)(b"", timeout=20, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()

        for name in ("ServerMetadata", "ModelReady", "ModelInfer", "Unknown"):
            assert await ask(METHOD + name) == Code.UNAUTHENTICATED, name
            assert await ask(METHOD + name, ("x-api-key", "wrong")) == Code.UNAUTHENTICATED
            assert await ask(METHOD + name, ("x-api-key", "key-of-another-path-0123")) == Code.PERMISSION_DENIED
        assert await ask(METHOD + "ModelStreamInfer", stream=True) == Code.UNAUTHENTICATED
        for path in (f"{METHOD}ServerLive", f"{METHOD}ServerReady", "/grpc.health.v1.Health/Check"):
            assert isinstance(await ask(path), bytes), path
        assert isinstance(await ask(f"{METHOD}ServerMetadata", ("authorization", f"Bearer {key}")), bytes)
