"""What anyone may send, to real workers of every format: the client is told what is wrong, and the worker lives on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import httpx
import msgpack
import pytest
from harness import Program, python, running, written

from mosec_asgi.formats import MAX_DEPTH

# Each echoes; the second stages show that what was accepted can also be pickled.
PROGRAM = """
from __future__ import annotations
from typing import Any
import msgspec, pydantic
from mosec_asgi import Server, Worker
from mosec_asgi.mixin import MsgpackMixin, PydanticMixin, TypedMsgPackMixin

class Node(msgspec.Struct):
    child: Node | None = None
    value: Any = None

class Model(pydantic.BaseModel):
    child: Model | None = None
    value: Any = None

class Echo(Worker):
    def forward(self, data):
        return data

class Msgpack(MsgpackMixin, Echo): ...
class Untyped(TypedMsgPackMixin, Echo): ...

class Typed(TypedMsgPackMixin):
    def forward(self, data: Node) -> Node:
        return data

class Checked(PydanticMixin):
    def forward(self, data: Model) -> Model:
        return data

class Unchecked(PydanticMixin):
    def forward(self, data):
        return data

if __name__ == "__main__":
    server = Server()
    for stage in (Echo, Msgpack, Untyped, Typed, Checked, Unchecked):
        for _ in range(2):
            server.append_worker(stage, route=f"/{stage.__name__.lower()}")
    server.run()
"""

JSON = {
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"child":' * 100_000,
    "deep and closed": b"[" * 5000 + b"]" * 5000,
    "huge integer": b"1" + b"0" * 400,
    "huger integer": b'{"value": 1' + b"0" * 100_000 + b"}",
    "huge float": b"1e999",
    "no number": b"[NaN, Infinity]",
    "invalid UTF-8": b'{"value": "\xff\xfe"}',
    "half a surrogate": rb'{"value": "\ud83d"}',
    "repeated keys": b'{"child": null, "child": {"value": 1}}',
    "zero bytes": bytes(1000),
    "UTF-16": '{"value": 1}'.encode("utf-16"),
}
MSGPACK = {
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "text of 4 GB": b"\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
    "extension of 4 GB": b"\xc9\xff\xff\xff\xff\x05",
    "unknown extension": b"\xd4\x7fa",
    "bad timestamp": b"\xd7\xff" + b"\xff" * 8,
    "never used byte": b"\xc1",
    "invalid UTF-8": b"\xa1\xff",
    "map in a map's key": b"\x81\x80\xc0",
    "array in a map's key": b"\x81\x91\x01\xc0",
    "repeated keys": b"\x82\xa5value\x01\xa5value\x02",
    "deep arrays": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa5child" * 100_000 + b"\xc0",
}
# As deep as one of the libraries on the way can just follow, and another one cannot.
for depth in (MAX_DEPTH, MAX_DEPTH + 1, 200, 254, 255, 500, 750, 980, 1000, 1024, 5000, 10_000):
    JSON[f"{depth} arrays"] = b"[" * depth + b"]" * depth
    JSON[f"{depth} objects"] = b'{"child":' * depth + b"null" + b"}" * depth
    MSGPACK[f"{depth} arrays"] = b"\x91" * depth + b"\xc0"
    MSGPACK[f"{depth} maps"] = b"\x81\xa5child" * depth + b"\xc0"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("bad_input")
    with running(python(written(folder, PROGRAM)), folder / "log") as program:
        program.wait_ready()
        yield program


def assert_the_clients_fault_or_none(answer: httpx.Response, what: str) -> None:
    assert answer.status_code in (200, 400, 422), f"{what}: {answer.status_code} {answer.text}"
    if answer.status_code != 200:
        message, _, reason = answer.text.partition(": ")
        assert message in ("decoding error", "request validation error"), f"{what}: {answer.text}"
        assert reason, what


@pytest.mark.parametrize("route", ["/echo", "/checked", "/unchecked"])
def test_bad_json_is_the_clients_fault_and_the_workers_live_on(service: Program, route: str) -> None:
    workers = service.members()
    for what, body in JSON.items():
        assert_the_clients_fault_or_none(service.client.post(route, content=body), what)
    assert service.client.post(route, content=b'{"child": null, "value": 1}').json() == {"child": None, "value": 1}
    assert service.members() == workers


@pytest.mark.parametrize("route", ["/msgpack", "/untyped", "/typed"])
def test_bad_msgpack_is_the_clients_fault_and_the_workers_live_on(service: Program, route: str) -> None:
    workers = service.members()
    for what, body in MSGPACK.items():
        assert_the_clients_fault_or_none(service.client.post(route, content=body), what)
    good = {"child": None, "value": 1}
    assert msgpack.unpackb(service.client.post(route, content=msgpack.packb(good)).content) == good
    assert service.members() == workers


def test_what_json_defines_is_given_back(service: Program) -> None:
    for route in ("/echo", "/unchecked"):
        for body in (b"[1" + b"0" * 300 + b"]", b"[" * MAX_DEPTH + b"]" * MAX_DEPTH):
            assert service.client.post(route, content=body).content == body
        assert service.client.post(route, content=b'{"a":1,"a":2}').json() == {"a": 2}


def test_what_msgpack_defines_is_given_back(service: Program) -> None:
    for route in ("/msgpack", "/untyped"):
        for body in (b"\xd4\x7fa", b"\xd6\xff\x00\x00\x00\x01", b"\x91" * MAX_DEPTH + b"\xc0"):
            answer = service.client.post(route, content=body)
            assert (answer.status_code, answer.content) == (200, body), answer.text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's memory")
def test_no_declared_length_takes_memory() -> None:
    """Nested arrays, of which each declares a length that fits into the body: 500 of them would take 16 GB."""
    program = """
import resource
from mosec_asgi import Worker
from mosec_asgi.errors import DecodingError
from mosec_asgi.mixin import MsgpackMixin, TypedMsgPackMixin

class Msgpack(MsgpackMixin, Worker):
    def forward(self, data): ...

class Typed(TypedMsgPackMixin, Worker):
    def forward(self, data): ...

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

for worker in (Msgpack(), Typed()):
    for head in (b"\\xdd\\x00\\x3d\\x00\\x00" * 100, b"\\xdd\\xff\\xff\\xff\\xff", b"\\xdf\\xff\\xff\\xff\\xff"):
        body = (head + b"\\xc0" * 100).ljust(4_000_000, b"\\xc0")
        before = peak()
        try:
            worker.deserialize(body)
        except DecodingError:
            pass
        else:
            raise AssertionError(head[:10])
        # In proportion to the body: 8 bytes for each of its bytes, and some copies.
        assert peak() - before < 30 * len(body), (worker, head[:10], peak() - before)
"""
    bound = 1 << 30
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound))  # noqa: E731
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, preexec_fn=limit, env=variables)
