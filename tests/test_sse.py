"""Streams between a scripted service and a scripted client: what goes out, in which form, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest
from common import settled_loop, until
from fake_engine import FakeClient, FakeTask, ManualLoop, in_manual_time
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_side import ENOUGH, LIMIT, RAW, serving, stream_enough, uvicorn_serving

from mosec_asgi.errors import BAD_TIMEOUT, Failure
from mosec_asgi.streaming import EVENT_STREAM
from mosec_asgi.web.protocols.plain import COMMENT as KEEP_ALIVE
from mosec_asgi.web.stream import KEEP_ALIVE_SECONDS

BOTH = pytest.mark.parametrize("content_type", [EVENT_STREAM, RAW])


async def ended(client: FakeClient) -> None:
    """Wait for the end of a request."""
    await asyncio.wait_for(client.call, 10)


# -- chunks ------------------------------------------------------------------------------------------------------------


@BOTH
async def test_chunks_go_out_byte_for_byte_as_they_come(content_type: str) -> None:
    chunks = [b"data: a\n\n", b"\xff\x00 no text", b"half an ev", b"ent\n\n"]
    async with serving(content_type) as side:
        client, task = await side.begin()
        for number, chunk in enumerate(chunks, 1):
            task.chunk(chunk)
            await settled_loop()
            assert client.pieces == chunks[:number]
        task.answer()
        await ended(client)
        assert client.body == b"".join(chunks)
        assert client.complete
        assert task.taken == [len(chunk) for chunk in chunks]


async def test_the_head_of_a_stream_names_its_type_its_request_and_its_server_and_forbids_to_collect_it() -> None:
    async with serving() as side:
        client = side.ask(headers={"x-request-id": "order 66"})
        await until(lambda: side.service.tasks)
        side.service.task.answer()
        await ended(client)
        assert client.status == 200
        assert client.headers == {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            "x-request-id": "order 66",
            "server": "test",
        }
        assert side.service.task.call.request_id == "order 66"


@BOTH
async def test_nothing_is_sent_before_the_first_chunk(content_type: str) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        assert client.offered == 0
        task.chunk(b"a")
        await settled_loop()
        assert (client.status, client.pieces, client.complete) == (200, [b"a"], False)
        task.answer()
        await ended(client)


async def test_the_chunks_that_are_there_at_one_time_are_one_message() -> None:
    async with serving() as side:
        client, task = await side.begin()
        task.chunk(b"a", b"b", b"c")
        await settled_loop()
        task.chunk(b"d", b"e")
        task.answer()
        await ended(client)
        assert client.pieces == [b"abc", b"de"]
        assert client.complete
        assert task.taken == [3, 2]


@BOTH
async def test_a_stream_may_end_without_a_chunk(content_type: str) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        task.answer()
        await ended(client)
        assert (client.status, client.pieces, client.complete) == (200, [b""], True)


@BOTH
async def test_while_the_client_does_not_read_the_chunks_gather_and_are_not_reported_as_taken(
    content_type: str,
) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        task.chunk(b"first")
        await settled_loop()
        client.stop_reading()
        task.chunk(b"second")
        await settled_loop()
        offered = client.offered
        task.chunk(b"third", b"fourth")
        await settled_loop()
        assert client.offered == offered
        assert task.taken == [5]
        client.read_on()
        await settled_loop()
        assert client.pieces == [b"first", b"second", b"thirdfourth"]
        assert task.taken == [5, 6, 11]
        task.answer()
        await ended(client)


async def test_a_stream_is_not_compressed_whatever_the_client_accepts() -> None:
    async with serving(compressed=True) as side:
        client = side.ask(headers={"accept-encoding": "gzip"})
        await until(lambda: side.service.tasks)
        side.service.task.chunk(b"data: " + b"a" * 5000 + b"\n\n")
        side.service.task.answer()
        await ended(client)
        assert "content-encoding" not in client.headers
        assert client.body == b"data: " + b"a" * 5000 + b"\n\n"


# -- the request -------------------------------------------------------------------------------------------------------


async def test_the_request_reaches_the_service_unpacked_with_its_route_and_timeout() -> None:
    async with serving(compressed=True) as side:
        client = side.ask(gzip.compress(b"input"), {"content-encoding": "gzip", "x-request-timeout": "1500"})
        await until(lambda: side.service.tasks)
        task = side.service.task
        assert (task.body, task.call.route, task.call.timeout) == (b"input", 7, 1.5)
        task.answer()
        await ended(client)


@BOTH
@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"", {}, 400, "no data provided"),
        (b"1", {"x-request-timeout": "0"}, 400, BAD_TIMEOUT.text),
        (b"x" * (LIMIT + 1), {}, 413, str(LIMIT)),
        (b"1", {"content-encoding": "br"}, 415, "br"),
    ],
)
async def test_a_bad_request_is_refused_by_an_ordinary_answer(
    content_type: str, body: bytes, headers: dict[str, str], status: int, text: str
) -> None:
    async with serving(content_type) as side:
        client = side.ask(body, headers)
        await ended(client)
        assert client.status == status
        assert text in client.body.decode()
        assert client.complete
        assert client.headers["content-type"] == "text/plain; charset=utf-8"
        assert client.headers["content-length"] == str(len(client.body))
        assert client.headers["server"] == "test"
        assert client.headers["x-request-id"]
        assert side.service.tasks == []
        assert side.answers == {status: 1}


@BOTH
@pytest.mark.parametrize("status", [429, 503])
async def test_what_the_service_refuses_is_an_ordinary_answer(content_type: str, status: int) -> None:
    async with serving(content_type) as side:
        side.service.refusal = Failure(status, "not now", retry_after=3)
        client = side.ask()
        await ended(client)
        assert (client.status, client.body, client.headers["retry-after"]) == (status, b"not now", "3")
        assert side.answers == {status: 1}


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "data"),
    [
        # As mosec 0.9.8 was seen to write them.
        (400, "bad request: cl", "SSE inference error: 400: Bad Request: bad request: cl"),
        (
            408,
            "mosec timeout error: mosec timeout error",
            "SSE inference error: 408: Request Timeout: mosec timeout error: mosec timeout error",
        ),
        (
            422,
            "request validation error: not - this",
            "SSE inference error: 422: Unprocessable Content: request validation error: not - this",
        ),
        (500, "inference internal error", "SSE inference error: 500: Internal Server Error: inference internal error"),
        # What it does not know.
        (413, "too long", "SSE inference error: 413: Content Too Large: too long"),
        (503, "shutting down", "SSE inference error: 503: Service Unavailable: shutting down"),
        (477, "a code of the user's own", "SSE inference error: 477: Bad Request: a code of the user's own"),
        (599, "another", "SSE inference error: 599: Internal Server Error: another"),
        (422, "two\nlines\r", "SSE inference error: 422: Unprocessable Content: two\ndata: lines\ndata: "),
    ],
)
async def test_a_failure_is_an_event_of_its_own_type(code: int, text: str, data: str) -> None:
    async with serving() as side:
        client, task = await side.begin()
        task.fail(code, text)
        await ended(client)
        assert client.status == 200
        assert client.headers["content-type"] == "text/event-stream"
        assert client.body.decode() == f"event: error\ndata: {data}\n\n"
        assert client.complete
        assert side.answers == {code: 1}


async def test_a_failure_during_a_stream_follows_its_chunks() -> None:
    async with serving() as side:
        client, task = await side.begin()
        task.chunk(b"data: a\n\n")
        await settled_loop()
        task.chunk(b"data: b\n\n")
        task.fail(500, "inference internal error")
        await ended(client)
        event = b"event: error\ndata: SSE inference error: 500: Internal Server Error: inference internal error\n\n"
        assert client.pieces == [b"data: a\n\n", b"data: b\n\n" + event]
        assert client.complete
        assert task.taken == [9, 9]
        assert side.answers == {500: 1}


async def test_a_failure_before_the_first_raw_chunk_is_an_ordinary_answer() -> None:
    async with serving(RAW) as side:
        client, task = await side.begin()
        task.fail(422, "request validation error: no voice", retry_after=2)
        await ended(client)
        assert (client.status, client.body) == (422, b"request validation error: no voice")
        assert client.headers["content-type"] == "text/plain; charset=utf-8"
        assert client.headers["retry-after"] == "2"
        assert client.complete
        assert side.answers == {422: 1}


@pytest.mark.parametrize("together", [False, True])
async def test_a_failure_after_the_first_raw_chunk_breaks_the_response_off(
    together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(RAW) as side:
        client, task = await side.begin()
        task.chunk(b"RIFF")
        if not together:
            await settled_loop()
            task.chunk(b"more")
        task.fail(500, "inference internal error")
        await ended(client)
        assert client.status == 200
        assert client.body == (b"RIFF" if together else b"RIFFmore")
        assert not client.complete
        assert sum(task.taken) == len(client.body)
        assert side.answers == {500: 1}
        (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
        assert "inference internal error" in record.getMessage()
        assert record.__dict__["request_id"] == task.call.request_id
        assert record.exc_info is None


@BOTH
async def test_a_stream_that_ends_well_is_counted_once_and_its_duration_measured(content_type: str) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        task.chunk(b"a")
        await settled_loop()
        task.chunk(b"b")
        assert side.answers == {}
        task.answer()
        await ended(client)
        failed, task = await side.begin()
        task.fail(500, "broken")
        await ended(failed)
        assert side.answers == {200: 1, 500: 1}
        assert side.metrics.duration.count == 1


# -- keep-alives -------------------------------------------------------------------------------------------------------


def test_a_silent_stream_of_events_is_kept_alive_by_comments_in_mosecs_time() -> None:
    async def main(loop: ManualLoop) -> None:
        async with serving() as side:
            client, task = await side.begin()
            await loop.advance(KEEP_ALIVE_SECONDS * 0.9)
            assert client.offered == 0
            await loop.advance(KEEP_ALIVE_SECONDS * 0.2)
            # The head as well: the client learns that there is somebody.
            assert (client.status, client.pieces) == (200, [KEEP_ALIVE])
            await loop.advance(KEEP_ALIVE_SECONDS * 3)
            assert client.pieces == [KEEP_ALIVE] * 4
            task.answer()
            await ended(client)
            assert task.taken == []
            await loop.advance(1)

    assert (KEEP_ALIVE, KEEP_ALIVE_SECONDS) == (b":\n\n", 3.0)
    in_manual_time(main)


def test_a_chunk_puts_the_next_keep_alive_off() -> None:
    async def main(loop: ManualLoop) -> None:
        async with serving() as side:
            client, task = await side.begin()
            for _ in range(10):
                await loop.advance(KEEP_ALIVE_SECONDS * 0.9)
                task.chunk(b"data: a\n\n")
                await settled_loop()
            assert client.pieces == [b"data: a\n\n"] * 10
            await loop.advance(KEEP_ALIVE_SECONDS * 0.9)
            assert len(client.pieces) == 10
            await loop.advance(KEEP_ALIVE_SECONDS * 0.2)
            assert client.pieces[10:] == [KEEP_ALIVE]
            task.answer()
            await ended(client)
            await loop.advance(1)

    in_manual_time(main)


def test_a_client_that_does_not_read_gets_no_keep_alives_piled_up() -> None:
    async def main(loop: ManualLoop) -> None:
        async with serving() as side:
            client, task = await side.begin()
            client.stop_reading()
            task.chunk(b"a")
            await loop.advance(KEEP_ALIVE_SECONDS * 10)
            task.chunk(b"b")
            client.read_on()
            await settled_loop()
            assert client.pieces == [b"a", b"b"]
            task.answer()
            await ended(client)
            await loop.advance(1)

    in_manual_time(main)


def test_raw_chunks_have_no_keep_alives_between_them() -> None:
    async def main(loop: ManualLoop) -> None:
        async with serving(RAW) as side:
            client, task = await side.begin()
            await loop.advance(1000)
            assert client.offered == 0
            task.chunk(b"a")
            await loop.advance(1000)
            assert client.pieces == [b"a"]
            task.answer()
            await ended(client)
            await loop.advance(1)

    in_manual_time(main)


# -- clients that leave ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("chunks", [(), (b"a",)])
async def test_a_client_that_leaves_cancels_its_task_in_silence(
    content_type: str, chunks: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        task.chunk(*chunks)
        await settled_loop()
        before = client.offered
        client.leave()
        await ended(client)
        assert side.service.cancelled == [task.id]
        assert client.offered == before
        assert side.answers == {}
        assert caplog.records == []


@BOTH
async def test_a_client_that_leaves_without_having_read_cancels_its_task_at_once(content_type: str) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        client.stop_reading()
        task.chunk(b"a")
        await settled_loop()
        client.leave()
        await until(lambda: side.service.cancelled)
        assert not client.call.done()
        # What servers do: a message to a client that has left goes nowhere.
        client.read_on()
        await ended(client)
        assert side.service.cancelled == [task.id]
        assert client.sent == []


@BOTH
@pytest.mark.parametrize("blocked", [False, True])
async def test_a_request_whose_task_is_cancelled_cancels_its_task(content_type: str, blocked: bool) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        if blocked:
            client.stop_reading()
        task.chunk(b"a")
        await settled_loop()
        client.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.call
        assert side.service.cancelled == [task.id]
        assert side.answers == {}


@BOTH
async def test_a_server_may_raise_on_sending_to_a_client_that_has_left(
    content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(content_type) as side:
        client, task = await side.begin()
        client.error = BrokenPipeError("the client has left")
        task.chunk(b"a")
        await ended(client)
        assert side.service.cancelled == [task.id]
        assert task.taken == []
        assert caplog.records == []


async def test_any_other_error_of_the_server_frees_the_task_as_well() -> None:
    async with serving() as side:

        async def send(message: Any) -> None:
            raise RuntimeError("no such header")

        client, task = await side.begin()
        client.leave()
        await ended(client)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"1"}

        call = asyncio.ensure_future(
            side.endpoint({"method": "POST", "http_version": "1.1", "headers": []}, receive, send)
        )
        await until(lambda: len(side.service.tasks) == 2)
        side.service.tasks[1].chunk(b"a")
        with pytest.raises(RuntimeError, match="no such header"):
            await call
        assert side.service.cancelled == [task.id, 2]


# -- any order of events -----------------------------------------------------------------------------------------------

EVENTS = ("chunk", "two chunks", "stop reading", "read on", "time", "end", "fail", "leave", "cancel", "error")


@pytest.mark.parametrize("content_type", [EVENT_STREAM, RAW])
@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.booleans()), max_size=25))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_in_whatever_order_the_client_gets_the_beginning_of_the_stream_and_nothing_is_left(
    content_type: str, events: list[tuple[str, bool]]
) -> None:
    async def main(loop: ManualLoop) -> None:
        async with serving(content_type) as side:
            client, task = await side.begin()
            made: list[bytes] = []
            for event, settle in events:
                await happen(event, loop, client, task, made)
                if settle:
                    await settled_loop()
            await settled_loop()
            check(client, task, b"".join(made))
            client.read_on()
            client.leave()
            await loop.advance(1)
            assert client.call.done()
            assert client.call.cancelled() or client.call.exception() is None
            assert sum(side.answers.values()) <= 1

    in_manual_time(main)


def check(client: FakeClient, task: FakeTask, made: bytes) -> None:
    """Compare what has become of a stream with what its worker has made."""
    if client.passed and client.passed[0]["status"] == 500:
        assert made == b""
        return
    passed = b"".join(message["body"] for message in client.passed[1:])
    chunks = passed.replace(KEEP_ALIVE, b"").partition(b"event: error\n")[0]
    assert made.startswith(chunks)
    assert sum(task.taken) == len(chunks)
    if client.complete:
        assert chunks == made


async def happen(event: str, loop: ManualLoop, client: FakeClient, task: FakeTask, made: list[bytes]) -> None:
    going_on = not task.done
    if event in ("chunk", "two chunks") and going_on:
        chunks = [b"<%d>" % (len(made) + place) for place in range(1 if event == "chunk" else 2)]
        made += chunks
        task.chunk(*chunks)
    elif event == "end" and going_on:
        task.answer()
    elif event == "fail" and going_on:
        task.fail(500, "broken")
    elif event == "time":
        await loop.advance(KEEP_ALIVE_SECONDS * 1.1)
    elif event == "error":
        client.error = BrokenPipeError("the client has left")
    elif event == "cancel":
        client.call.cancel()
    else:
        moves: dict[str, Callable[[], None]] = {
            "stop reading": client.stop_reading,
            "read on": client.read_on,
            "leave": client.leave,
        }
        moves.get(event, lambda: None)()


# -- under uvicorn -----------------------------------------------------------------------------------------------------

PROTOCOLS = {
    "httptools": "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol",
    "zttp": "uvicorn.protocols.http.auto_zttp_impl:AutoZttpProtocol",
}
EACH_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


class Connection:
    """A connection of a client that takes what comes as it comes."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Connection:
        sock = socket.socket()
        # A size of its own keeps the kernel from making it larger as it sees fit.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.connect(("127.0.0.1", self._port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock)
        self.ask()
        return self

    def ask(self) -> None:
        """Send a request."""
        self.writer.write(b"POST /path HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\n1")

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@EACH_PROTOCOL
async def test_on_the_wire_a_stream_is_chunked_and_the_connection_is_good_for_the_next(protocol: str) -> None:
    async with uvicorn_serving(protocol) as (side, port), Connection(port) as client:
        for number in range(1, 4):
            if number > 1:
                client.ask()
            task = await side.admitted(number)
            task.chunk(b"data: a\n\n")
            head, _, chunk = (await client.reader.readuntil(b"data: a\n\n\r\n")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"transfer-encoding: chunked" in head
            assert chunk == b"9\r\ndata: a\n\n\r\n"
            task.chunk(b"data: b\n\n")
            task.answer()
            assert await client.reader.readuntil(b"0\r\n\r\n") == b"9\r\ndata: b\n\n\r\n0\r\n\r\n"


@EACH_PROTOCOL
async def test_a_client_notices_that_a_raw_stream_was_broken_off(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with uvicorn_serving(protocol, RAW) as (side, port), Connection(port) as client:
        await until(lambda: side.service.tasks)
        side.service.task.chunk(b"RIFF")
        side.service.task.fail(500, "inference internal error")
        packets = await client.reader.read()
        assert packets.endswith(b"\r\n\r\n4\r\nRIFF\r\n"), "the last chunk of all is missing, and the connection closed"
    assert not [record for record in caplog.records if record.exc_info]


@EACH_PROTOCOL
async def test_the_service_hears_of_what_a_slow_client_takes_and_not_before(protocol: str) -> None:
    async with uvicorn_serving(protocol) as (side, port), Connection(port) as client:
        task = await side.admitted(1)
        await stream_enough(task)
        assert sum(task.taken) < ENOUGH
        task.answer()
        answer = bytearray()
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += await client.reader.read(1 << 20)
        assert answer.count(b"~") == ENOUGH
        await until(lambda: sum(task.taken) == ENOUGH)


@EACH_PROTOCOL
@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_closes_its_connection_cancels_its_task(
    protocol: str, reads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with uvicorn_serving(protocol) as (side, port):
        async with Connection(port) as client:
            task = await side.admitted(1)
            task.chunk(b"~")
            await client.reader.readuntil(b"~")
            if not reads:
                await stream_enough(task)
                assert sum(task.taken) < ENOUGH
        await until(lambda: side.service.cancelled)
        assert side.answers == {}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
