from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import zstandard
from harness import python, running, written
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import Failure
from mosec_asgi.web import compression

PACK = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}
UNPACK = {"gzip": gzip.decompress, "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body)}
encodings = pytest.mark.parametrize("encoding", ["gzip", "zstd"])
MEGABYTE = 1 << 20


def unpacked(body: bytes, encoding: str, limit: int = MEGABYTE) -> bytes | Failure:
    return asyncio.run(compression.decompress(body, encoding, limit))


@encodings
@given(data=st.binary(max_size=5000), repeats=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_what_was_packed_is_unpacked_and_the_other_way_round(encoding: str, data: bytes, repeats: int) -> None:
    body = data * repeats
    assert unpacked(PACK[encoding](body), encoding) == body
    assert UNPACK[encoding](asyncio.run(compression.compress(body, encoding))) == body


@encodings
@given(body=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_unpacked_or_answered_400(encoding: str, body: bytes) -> None:
    outcome = unpacked(body, encoding)
    assert isinstance(outcome, bytes) or outcome.code == 400


@encodings
@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_body_that_ends_too_early_is_answered_400(encoding: str, cut: int) -> None:
    outcome = unpacked(PACK[encoding](bytes(range(256)) * 4)[:-cut], encoding)
    assert isinstance(outcome, Failure)
    assert outcome.code == 400
    assert encoding in outcome.text


@encodings
def test_several_members_are_one_body_and_rubbish_behind_them_is_not(encoding: str) -> None:
    member = PACK[encoding](b"member")
    assert unpacked(member * 3, encoding) == b"member" * 3
    assert isinstance(unpacked(member + b"rubbish", encoding), Failure)


@encodings
def test_the_limit_is_exact(encoding: str) -> None:
    body = PACK[encoding](b"x" * 1000)
    assert unpacked(body, encoding, 1000) == b"x" * 1000
    outcome = unpacked(body, encoding, 999)
    assert isinstance(outcome, Failure)
    assert outcome.code == 413


@encodings
def test_a_bomb_is_unpacked_in_steps_of_bounded_size_and_no_further_than_the_limit(encoding: str) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(50_000_000)) if encoding == "zstd" else _gzip_bomb()
    assert len(bomb) < 100_000
    steps = compression._UNPACK[encoding](bomb)
    assert max(len(next(steps)) for _ in range(20)) <= compression.STEP
    outcome = unpacked(bomb, encoding, 100_000)
    assert isinstance(outcome, Failure)
    assert outcome.code == 413


def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(50_000_000))


async def test_the_loop_runs_while_a_large_body_is_unpacked() -> None:
    turns = 0

    async def other() -> AsyncIterator[None]:
        nonlocal turns
        while True:
            turns += 1
            yield await asyncio.sleep(0)

    async def count() -> None:
        async for _ in other():
            pass

    counting = asyncio.create_task(count())
    await compression.decompress(gzip.compress(bytes(4 * MEGABYTE)), "gzip", 8 * MEGABYTE)
    counting.cancel()
    assert turns >= 4 * MEGABYTE // compression.STEP


@encodings
def test_parts_that_hold_nothing_are_bounded(encoding: str) -> None:
    empty = PACK[encoding](b"")
    assert unpacked(empty * 50 + PACK[encoding](b"x"), encoding) == b"x"
    began = time.process_time()
    outcome = unpacked(empty * (8 * MEGABYTE // len(empty)), encoding)
    assert isinstance(outcome, Failure)
    assert (outcome.code, "empty" in outcome.text) == (400, True)
    assert time.process_time() - began < 1


@encodings
async def test_the_loop_runs_while_a_body_of_many_tiny_parts_is_unpacked(encoding: str) -> None:
    longest, last = 0.0, time.process_time()

    async def count() -> None:
        nonlocal longest, last
        while True:
            now = time.process_time()
            longest, last = max(longest, now - last), now
            await asyncio.sleep(0)

    part = PACK[encoding](b"x")
    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    began = time.process_time()
    body = await compression.decompress(part * 20_000, encoding, MEGABYTE)
    took = time.process_time() - began
    await asyncio.sleep(0)
    counting.cancel()
    assert body == b"x" * 20_000
    assert longest < took / 10


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("zstd;q=0.1, gzip;q=0.9", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=nonsense", None),
        ("identity, br", None),
        ("", None),
    ],
)
def test_the_client_has_the_choice_of_encodings(accept: str, chosen: str | None) -> None:
    assert compression.choose(accept) == chosen


SERVICE = """
from mosec_asgi import Server, Worker

class Echo(Worker):
    resp_mime_type = "application/octet-stream"
    def deserialize(self, data):
        return data
    def serialize(self, data):
        return data
    def forward(self, data):
        return data

server = Server(compression={on}, max_request_size=100_000)
server.append_worker(Echo)
if __name__ == "__main__":
    server.run()
"""


def memory_of(pid: int) -> int:
    """Return the most memory that a process has held so far, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_service_with_compression_on(tmp_path: Path, log: Path) -> None:
    file = written(tmp_path, SERVICE.format(on=True))
    with running(python(file), log) as program:
        program.wait_ready()
        client = program.client

        def post(body: bytes, **headers: str) -> httpx.Response:
            return client.post("/inference", content=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

        body = b"compressible " * 1000
        for encoding in ("gzip", "zstd"):
            response = post(PACK[encoding](body), content_encoding=encoding, accept_encoding="identity")
            assert (response.status_code, response.content) == (200, body)
            assert "content-encoding" not in response.headers
            response = post(body, accept_encoding=encoding)
            assert response.headers["content-encoding"] == encoding
            assert response.headers["vary"] == "accept-encoding"
            assert (response.content, int(response.headers["content-length"]) < 1000) == (body, True)
            assert post(b"not packed", content_encoding=encoding).status_code == 400
        assert "content-encoding" not in post(b"too small to gain", accept_encoding="gzip").headers
        response = post(b"x", content_encoding="br")
        assert (response.status_code, "zstd, gzip" in response.text) == (415, True)
        assert post(gzip.compress(b""), content_encoding="gzip").status_code == 400
        bomb = _gzip_bomb()
        assert post(zlib.compress(b"x"), content_encoding="gzip").status_code == 400
        before = memory_of(program.process.pid)
        began = time.monotonic()
        assert post(bomb, content_encoding="gzip").status_code == 413
        assert time.monotonic() - began < 5.0
        assert memory_of(program.process.pid) - before < 2_000_000


def test_a_service_with_compression_off_refuses_packed_bodies(tmp_path: Path, log: Path) -> None:
    file = written(tmp_path, SERVICE.format(on=False))
    with running(python(file), log) as program:
        program.wait_ready()
        response = program.client.post("/inference", content=b"x", headers={"content-encoding": "gzip"})
        assert (response.status_code, "compression" in response.text) == (415, True)
        assert program.client.post("/inference", content=b"x", headers={"content-encoding": "identity"}).content == b"x"
