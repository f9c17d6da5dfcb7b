"""Streams over HTTP/2, to a client that opens and closes the windows of its streams as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

import pytest
from common import settled_loop, until
from fake_engine import FakeTask
from stream_side import MUCH, RAW, Side, uvicorn_serving

from mosec_asgi.web.limits import DEFAULT, Limits

pytest.importorskip("zttp", reason="the extra http2 is not installed")
h2_connection = pytest.importorskip("h2.connection")
h2_exceptions = pytest.importorskip("h2.exceptions")
h2_events = pytest.importorskip("h2.events")

PROTOCOL = "mosec_asgi.web.uvicorn.http2:AutoProtocol"
# Far more than the window of a stream and what may wait for it to open.
ENOUGH = 20 * len(MUCH)


class Client:
    """A connection.

    Attributes:
        ignored: the streams whose windows it does not open again for what has come.
        received: what has come, by stream.
        ended: the streams that have come to their end.
        broken: the streams that the server has broken off.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ignored: set[int] = set()
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.broken: set[int] = set()
        self.over = asyncio.Event()
        self.statuses: dict[int, str] = {}
        self._reader, self._writer = reader, writer
        self._connection = h2_connection.H2Connection()
        self._connection.initiate_connection()
        # The connection's own window is never what a stream waits for.
        self._connection.increment_flow_control_window(1 << 30)
        self._unread: dict[int, int] = defaultdict(int)
        self._flush()

    def ask(self, *, reads: bool = True, path: str = "/path") -> int:
        """Send a request, and return its stream."""
        stream: int = self._connection.get_next_available_stream_id()
        headers = {":method": "POST", ":path": path, ":scheme": "http", ":authority": "test", "content-length": "1"}
        self._connection.send_headers(stream, headers.items())
        self._connection.send_data(stream, b"1", end_stream=True)
        if not reads:
            self.ignored.add(stream)
        self._flush()
        return stream

    def send(self, data: bytes) -> None:
        """Send frames as they are."""
        self._writer.write(data)

    async def ended_by_server(self) -> None:
        """Wait for the end of the connection."""
        await asyncio.wait_for(self.over.wait(), 10)

    def leave(self) -> None:
        self._writer.transport.abort()

    def reset(self, stream: int) -> None:
        """Give up on a request; the connection stays."""
        self._connection.reset_stream(stream)
        self._flush()

    def read_on(self, stream: int) -> None:
        """Open the window of a stream again."""
        self.ignored.remove(stream)
        self._open_windows()
        self._flush()

    async def run(self) -> None:
        while data := await self._reader.read(1 << 16):
            for event in self._connection.receive_data(data):
                if isinstance(event, h2_events.DataReceived):
                    self.received[event.stream_id] += event.data
                    self._unread[event.stream_id] += event.flow_controlled_length
                elif isinstance(event, h2_events.StreamEnded):
                    self.ended.add(event.stream_id)
                elif isinstance(event, h2_events.ResponseReceived):
                    self.statuses[event.stream_id] = dict(event.headers)[b":status"].decode()
                elif isinstance(event, h2_events.StreamReset):
                    self.broken.add(event.stream_id)
            self._open_windows()
            self._flush()
        self.over.set()

    def _open_windows(self) -> None:
        for stream in self._unread.keys() - self.ignored:
            size = self._unread.pop(stream)
            if size and stream not in self.ended | self.broken:
                self._connection.increment_flow_control_window(size, stream)

    def _flush(self) -> None:
        self._writer.write(self._connection.data_to_send())


async def stream_enough(task: FakeTask) -> None:
    for _ in range(ENOUGH // len(MUCH)):
        task.chunk(MUCH)
        await settled_loop()


@contextlib.asynccontextmanager
async def connected(content_type: str = RAW, limits: Limits = DEFAULT) -> AsyncIterator[tuple[Side, Client]]:
    async with uvicorn_serving(PROTOCOL, content_type, limits) as (side, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = Client(reader, writer)
        running = asyncio.create_task(client.run())
        try:
            yield side, client
        finally:
            writer.close()
            await running


@pytest.fixture(autouse=True)
def _nothing_is_complained_of(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.exc_info or record.name == "asyncio"]


async def test_a_stream_goes_out_as_fast_as_its_client_reads_and_no_faster() -> None:
    async with connected() as (side, client):
        stream = client.ask(reads=False)
        task = await side.admitted(1)
        await stream_enough(task)
        assert sum(task.taken) < ENOUGH / 4
        client.read_on(stream)
        await until(lambda: sum(task.taken) == ENOUGH)
        task.answer()
        await until(lambda: stream in client.ended)
        assert len(client.received[stream]) == ENOUGH
        assert side.answers == {200: 1}


async def test_a_stream_that_waits_for_its_client_keeps_no_other_waiting() -> None:
    async with connected() as (side, client):
        slow = client.ask(reads=False)
        first = await side.admitted(1)
        await stream_enough(first)
        quick = client.ask()
        second = await side.admitted(2)
        await stream_enough(second)
        second.answer()
        await until(lambda: quick in client.ended)
        assert len(client.received[quick]) == ENOUGH
        assert sum(first.taken) < ENOUGH / 4
        client.read_on(slow)
        first.answer()
        await until(lambda: slow in client.ended)
        assert len(client.received[slow]) == ENOUGH


@pytest.mark.parametrize("reads", [True, False])
async def test_a_stream_that_its_client_gives_up_cancels_its_task_alone(reads: bool) -> None:
    async with connected() as (side, client):
        given_up = client.ask(reads=reads)
        first = await side.admitted(1)
        other = client.ask()
        second = await side.admitted(2)
        if reads:
            first.chunk(b"a")
        else:
            await stream_enough(first)
        await until(lambda: client.received[given_up])
        client.reset(given_up)
        await until(lambda: side.service.cancelled)
        assert side.service.cancelled == [first.id]
        second.chunk(b"b")
        second.answer()
        await until(lambda: other in client.ended)
        assert client.received[other] == b"b"


async def test_a_client_that_closes_its_connection_cancels_all_that_waits_for_it() -> None:
    async with connected() as (side, client):
        for number in range(1, 4):
            client.ask(reads=False)
            await stream_enough(await side.admitted(number))
    assert sorted(side.service.cancelled) == [1, 2, 3]


async def test_a_raw_stream_that_fails_half_way_is_reset(caplog: pytest.LogCaptureFixture) -> None:
    async with connected() as (side, client):
        stream = client.ask()
        task = await side.admitted(1)
        task.chunk(b"RIFF")
        await until(lambda: client.received[stream])
        task.fail(500, "inference internal error")
        await until(lambda: stream in client.broken)
        assert stream not in client.ended
        assert client.received[stream] == b"RIFF"
    assert [record.levelno for record in caplog.records if record.name.startswith("mosec_asgi")] == [logging.WARNING]


# -- what a client may hold --------------------------------------------------------------------------------------------

PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"12345678"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.mark.parametrize("frame", [PING, SETTINGS], ids=["ping", "settings"])
async def test_frames_that_bring_nothing_end_the_connection_when_they_are_too_many(frame: bytes) -> None:
    async with connected() as (_, client):
        client.send(frame * 5000)
        await client.ended_by_server()


async def test_streams_that_are_given_up_at_once_end_the_connection_sooner() -> None:
    async with connected() as (side, client):
        # Until it is told that nothing more is taken.
        with contextlib.suppress(h2_exceptions.ProtocolError):
            for _ in range(150):
                client.reset(client.ask())
                await settled_loop()
        await client.ended_by_server()
        await until(lambda: not side.server.server_state.connections)
        assert len(side.service.tasks) <= 101


async def test_streams_that_are_given_up_when_their_answer_has_begun_do_not() -> None:
    async with connected() as (side, client):
        for number in range(1, 151):
            stream = client.ask()
            (await side.admitted(number)).chunk(b"a")
            await until(lambda stream=stream: client.received[stream])
            client.reset(stream)
        last = client.ask()
        (await side.admitted(151)).answer(b"")
        await until(lambda: last in client.ended)


async def test_a_client_that_pings_now_and_then_is_served() -> None:
    async with connected() as (side, client):
        for number in range(1, 31):
            client.send(PING * 10)
            stream = client.ask()
            (await side.admitted(number)).answer(b"")
            await until(lambda stream=stream: stream in client.ended)


async def test_a_path_that_is_no_ascii_is_answered_400_and_its_neighbours_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (side, client):
        good = client.ask()
        task = await side.admitted(1)
        bad = client.ask(path="/\xe4")
        await until(lambda: bad in client.statuses)
        assert client.statuses[bad] == "400"
        task.chunk(b"a")
        task.answer()
        await until(lambda: good in client.ended)
        assert client.received[good] == b"a"


@pytest.mark.parametrize("complete", [True, False])
async def test_nothing_stays_of_an_answer_that_was_not_sent_when_its_connection_has_ended(complete: bool) -> None:
    async with connected() as (side, client):
        client.ask(reads=False)
        task = await side.admitted(1)
        await stream_enough(task)
        (connection,) = side.server.server_state.connections
        requests = list(connection.cycles.values())  # type: ignore[union-attr]
        ended = [weakref.ref(each) for each in (connection, *requests)]
        assert len(ended) == 2
        del connection, requests
        if complete:
            task.answer()
        await settled_loop()
        gc.collect()
        gc.disable()
        try:
            client.leave()
            await until(lambda: not any(each() for each in ended))
        finally:
            gc.enable()


async def test_a_client_that_does_not_take_its_answer_is_ended() -> None:
    async with connected(limits=Limits(stall_timeout=0.3)) as (side, client):
        client.ask(reads=False)
        task = await side.admitted(1)
        task.chunk(MUCH * 3)
        task.answer()
        await client.ended_by_server()


async def test_answers_on_many_streams_that_are_not_taken_are_bounded(logged: pytest.LogCaptureFixture) -> None:
    async with connected(limits=Limits(answer_memory=4 * len(MUCH))) as (side, client):
        for _ in range(4):
            client.ask(reads=False)
        await side.admitted(4)
        for task in side.service.tasks:
            task.chunk(MUCH * 2)
            task.answer()
        await client.ended_by_server()
    assert any("`answer_memory`" in record.getMessage() for record in logged.records)


async def test_what_runs_on_a_connection_that_breaks_the_protocol_is_dropped_without_an_error(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (side, client):
        client.ask()
        task = await side.admitted(1)
        [connection] = side.server.server_state.connections
        [cycle] = connection.cycles.values()  # type: ignore[union-attr]
        # Before the loop's next turn, in which it hears of the end: an answer that is sent now has nowhere to go.
        connection.data_received(b"\xff" * 100)  # type: ignore[union-attr]
        task.answer()
        assert cycle.disconnected
        await client.ended_by_server()
    assert [record.getMessage() for record in logged.records if "Invalid HTTP/2" in record.getMessage()]
