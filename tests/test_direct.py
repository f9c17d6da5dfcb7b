"""The short way of a request past ASGI: which requests take it, and that nobody can tell by what they are answered."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from common import settled_loop, told, until
from direct_side import FLOOD, LARGE, LIMIT, Client, Side, answered, post, serving
from fake_engine import FakeEngine
from fakes import Held
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mosec_asgi.batching.engine import TAKES_HELD, Caller
from mosec_asgi.errors import Failure
from mosec_asgi.messages import Call, LinkError, Pieces
from mosec_asgi.web.limits import DEFAULT
from mosec_asgi.web.uvicorn.http1 import BODY, Http1Protocol

# -- the same answers --------------------------------------------------------------------------------------------------

USUAL: dict[str, tuple[bytes, bytes | Failure | None]] = {
    "result": (post(), b"[1]"),
    "empty result": (post(), b""),
    "large result": (post(), LARGE),
    "large body": (post(LARGE), b"[1]"),
    "another content type": (post(path="/raw"), b"\x00%d%b"),
    "request id": (post(X_Request_Id="my-%d-id"), b"[1]"),
    "request id that is none": (post(X_Request_Id="ü" * 200), b"[1]"),
    "request id of a failure": (post(X_Request_Id="mine"), Failure(422, "wrong")),
    "failure": (post(), Failure(500, "größer: 100%d")),
    "failure with an unknown status": (post(), Failure(499 + 91, "odd")),
    "time over": (post(X_Request_Timeout="20"), Failure(408, "inference timeout")),
    "busy": (post(), Failure(429, "too many", retry_after=7)),
    "no body": (post(b""), None),
    "bad timeout": (post(X_Request_Timeout="soon"), None),
    "kept explicitly": (post(Connection="keep-alive"), b"[1]"),
}


@pytest.mark.parametrize("case", USUAL.values(), ids=USUAL)
async def test_a_usual_request_goes_past_asgi_and_is_answered_as_it_would_be_there(
    case: tuple[bytes, bytes | Failure | None],
) -> None:
    responses, counted, asked = [], [], []
    for protocol in (Http1Protocol, HttpToolsProtocol):
        async with serving(protocol) as side:
            responses.append((await answered(side, *case)).comparable)
            await until(lambda side=side: side.metrics.throughput)
            counted.append((side.metrics.throughput, side.metrics.duration.count))
            asked.append(side.asked)
    assert responses[0] == responses[1]
    assert counted[0] == counted[1]
    assert asked == [0, 1]


async def test_a_task_has_the_body_the_route_the_id_and_the_time_of_its_request() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(LARGE, "/raw", X_Request_Id="mine", X_Request_Timeout="1500"))
        task = await side.task()
        assert (task.call.route, task.call.request_id, task.call.timeout) == (1, "mine", 1.5)
        assert task.body == LARGE
        task.answer(b"")
        assert (await client.response()).header("x-request-id") == "mine"


async def test_requests_of_a_connection_follow_each_other_with_ids_of_their_own() -> None:
    async with serving() as side, side.client() as client:
        ids = set()
        for number in range(1, 6):
            client.send(post(b"%d" % number))
            (await side.task(number)).answer(b"<%d>" % number)
            response = await client.response()
            assert response.body == b"<%d>" % number
            ids.add(response.header("x-request-id"))
        assert len(ids) == 5
        assert side.asked == 0
        assert side.server.server_state.total_requests == 5


async def test_the_date_is_that_of_the_response() -> None:
    async with serving() as side, side.client() as client:
        for number, date in enumerate(("Mon, 01 Jan", "Tue, 02 Jan"), 1):
            client.send(post())
            task = await side.task(number)
            side.server.server_state.default_headers = [(b"date", date.encode())]
            task.answer()
            assert (await client.response()).header("date") == date


async def test_writes_need_not_be_gathered() -> None:
    async with serving(gathers=False) as side:
        assert (await answered(side, post(), LARGE)).body == LARGE
        assert side.asked == 0


async def test_a_body_in_pieces_is_put_together() -> None:
    async with serving() as side, side.client() as client:
        request = post(b"0123456789")
        for place in range(len(request)):
            client.send(request[place : place + 1])
            await settled_loop()
        assert (await side.task()).body == b"0123456789"
        assert side.asked == 0
        side.service.task.answer()
        await client.response()


# -- what goes through ASGI --------------------------------------------------------------------------------------------

CHUNKED = b"POST /json HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n"
UNUSUAL = {
    "chunks": CHUNKED,
    "closing": post(Connection="close"),
    "an older version": post(version="1.0"),
    "an older version that stays": post(version="1.0", Connection="keep-alive"),
    "a query": post(path="/json?a=1"),
    "an encoded path": post(path="/js%6Fn"),
    "a route that is written otherwise": post(path="/a%25b"),
    "a content encoding": post(Content_Encoding="identity"),
}


@pytest.mark.parametrize("request_", UNUSUAL.values(), ids=UNUSUAL)
async def test_what_is_unusual_goes_through_asgi(request_: bytes) -> None:
    async with serving() as side:
        assert (await answered(side, request_, b"done")).body == b"done"
        assert side.asked == 1


async def test_a_client_that_waits_to_be_told_to_go_on_is_told() -> None:
    async with serving() as side, side.client() as client:
        head, body = post(Expect="100-continue").split(b"[")
        client.send(head)
        await until(lambda: side.asked)
        client.send(b"[" + body)
        (await side.task()).answer(b"done")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        assert (await client.response()).body == b"done"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /json HTTP/1.1\r\nhost: t\r\n\r\n", 405),
        (post(path="/other"), 404),
        (post(path="/json/"), 404),
        (b"POST /json HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % (LIMIT + 1), 413),
        (b"POST /json HTTP/1.1\r\nhost: t\r\ncontent-length: 1%d\r\n\r\n" % 10**18, 413),
        (post(Content_Encoding="gzip"), 415),
    ],
)
async def test_what_is_refused_by_its_head_is_refused_by_asgi(request_: bytes, status: int) -> None:
    async with serving() as side:
        assert (await answered(side, request_, None)).status == status
        assert side.asked == 1


@pytest.mark.parametrize(
    "wrong",
    [
        post(Transfer_Encoding="chunked"),
        post(Content_Length="3, 4"),
        post(Content_Length="-3"),
        post(Content_Length="0x3"),
        b"POST /json HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n[1]",
    ],
)
async def test_two_lengths_or_none_that_is_a_number_are_no_request(wrong: bytes) -> None:
    async with serving() as side, side.client() as client:
        client.send(wrong)
        assert (await client.response()).status == 400
        assert await client.at_end()
        assert not side.service.tasks


async def test_a_stream_goes_through_asgi() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(path="/stream"))
        (await side.task()).answer()
        assert (await client.until(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert side.asked == 1


@pytest.mark.parametrize("settings", [{"limit_concurrency": 10}, {"access_log": True}], ids=repr)
async def test_where_uvicorn_is_to_see_requests_it_sees_them(settings: dict[str, Any]) -> None:
    logging.getLogger("uvicorn.access").addHandler(handler := logging.NullHandler())
    try:
        async with serving(**settings) as side:
            await answered(side, post(), b"done")
            assert side.asked == 1
    finally:
        logging.getLogger("uvicorn.access").removeHandler(handler)


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    async with serving() as side, side.client() as client:
        client.send(post())
        (await side.task()).answer(FLOOD)
        client.send(post())
        assert (await client.response()).body == FLOOD
        (await side.task(2)).answer(b"last")
        # Only ASGI has a way to wait until there is room for more.
        assert side.asked == 1
        assert (await client.response()).body == b"last"


# -- results that lie in shared memory ---------------------------------------------------------------------------------


class Lent(Held):
    """A result that is written over as soon as it is dropped, as its worker may do with shared memory."""

    def __init__(self, contents: bytes) -> None:
        super().__init__(contents)
        self._memory = bytearray(contents)

    def read(self) -> bytes:
        raise AssertionError("it is sent from where it lies, without a copy of all")

    def lend(self) -> memoryview:
        assert not self.drops
        return memoryview(self._memory)

    def drop(self) -> None:
        super().drop()
        # Raises where somebody still has a part of it.
        self._memory.extend(b"!")
        self._memory[:] = bytes(len(self._memory))


LOOPS = pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def run_on(loop_of: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]) -> None:
    loop = loop_of()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


@LOOPS
@pytest.mark.parametrize("gathers", [True, False])
def test_a_result_in_shared_memory_is_sent_from_there_and_then_dropped(
    loop_of: Callable[[], asyncio.AbstractEventLoop], gathers: bool
) -> None:
    async def main() -> None:
        async with serving(gathers=gathers) as side, side.client() as client:
            for number, contents in enumerate((b"small", LARGE, FLOOD, b"", LARGE), 1):
                client.send(post())
                held = Lent(contents)
                task = await side.task(number)
                task.end(held)
                assert held.drops == 1
                response = await client.response()
                assert response.body == contents
                assert response.header("content-length") == str(len(contents))

    run_on(loop_of, main())


@LOOPS
def test_a_client_that_leaves_before_it_has_read_all_has_it_dropped_once(
    loop_of: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        async with serving() as side, side.client() as client:
            client.send(post())
            task = await side.task()
            (connection,) = side.server.server_state.connections
            connection.transport.abort()  # type: ignore[attr-defined]
            # The protocol has not heard of it yet.
            task.end(late := Lent(FLOOD))
            assert late.drops == 1
            assert await client.at_end()
            async with side.client() as other:
                other.send(post())
                task = await side.task(2)
                other.stop_reading()
                task.end(held := Lent(FLOOD))
                assert held.drops == 1
                other.leave()

    run_on(loop_of, main())


@LOOPS
def test_one_that_has_closed_its_side_gets_it_whole(loop_of: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        async with serving() as side, side.client() as client:
            client.send(post())
            client.end_sending()
            task = await side.task()
            assert await client.until(b"HTTP/1.1 ") == b"HTTP/1.1 "
            task.end(Lent(LARGE))
            assert (await client.rest()).endswith(b"\r\n\r\n" + LARGE)

    run_on(loop_of, main())


async def test_an_answer_that_is_packed_is_read_as_bytes() -> None:
    async with serving(app={"compressed": True}) as side, side.client() as client:
        client.send(post())
        task = await side.task()
        assert not getattr(task.caller, TAKES_HELD)
        task.answer(b"x")
        await client.response()


async def test_a_result_that_is_no_bytes_is_a_fault_of_the_service(logged: pytest.LogCaptureFixture) -> None:
    class Odd(Lent):
        def lend(self) -> memoryview:
            raise LinkError("it is an object")

    async with serving() as side, side.client() as client:
        client.send(post())
        (await side.task()).end(odd := Odd(b""))
        assert (await client.response()).status == 500
        assert odd.drops == 1
    assert "a request was not answered" in logged.text


# -- bodies in pieces --------------------------------------------------------------------------------------------------


class Gathering(FakeEngine):
    """An engine that puts the pieces of a body together where a worker reads them."""

    takes_pieces = True

    def submit(self, call: Call, caller: Caller) -> None:
        if isinstance(call.payload, Pieces):
            self.pieces = len(call.payload.pieces)
            assert len(call.payload) == sum(map(len, call.payload.pieces))
            call = call._replace(payload=call.payload.read())
        super().submit(call, caller)


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 200_000, len(LARGE)])
async def test_an_engine_may_take_a_large_body_in_the_pieces_in_which_it_came(size: int) -> None:
    async with serving(service=Gathering()) as side, side.client() as client:
        # The head is known from the second request on.
        for number in range(1, 4):
            body = bytes([number]) * size
            client.send(post(body))
            task = await side.task(number)
            assert task.body == body
            task.answer(b"%d" % number)
            assert (await client.response()).body == b"%d" % number
        assert side.asked == 0


async def test_reads_of_two_bytes_are_put_together_as_they_come() -> None:
    body = bytes(range(256)) * 400
    service = Gathering()
    async with serving(service=service) as side, side.client() as client:
        client.send(post(body).removesuffix(body))
        await until(lambda: bool(side.server.server_state.connections))
        (connection,) = side.server.server_state.connections
        await until(lambda: connection._awaits == BODY)
        for place in range(0, len(body), 2):
            connection.data_received(body[place : place + 2])
        task = await side.task()
        assert task.body == body
        # Of 51,200 reads.
        assert service.pieces < 1000
        task.answer()
        await client.response()


# -- large bodies behind heads that have come before -------------------------------------------------------------------


async def known(side: Side, client: Client, body: bytes) -> int:
    """Have the head of a request with this body known; return how many requests that took."""
    for number in (1, 2):
        client.send(post(body))
        (await side.task(number)).answer(b"first")
        await client.response()
    return 2


@pytest.mark.parametrize("service", [FakeEngine, Gathering])
@pytest.mark.parametrize("cuts", [(0,), (1,), (70_000,), (1, 2, 3, 100_000), (199_999,)])
async def test_a_large_body_may_come_in_pieces_behind_a_known_head(
    service: type[FakeEngine], cuts: tuple[int, ...]
) -> None:
    body = bytes(range(256)) * 1000
    head = post(body).removesuffix(body)
    async with serving(service=service()) as side, side.client() as client:
        number = await known(side, client, body)
        (connection,) = side.server.server_state.connections
        for other in (body, body[::-1]):
            number += 1
            places = [0, *cuts, len(other)]
            client.send(head + other[: places[1]])
            for begin, end in itertools.pairwise(places[1:]):
                await until(lambda: connection._awaits == BODY)
                client.send(other[begin:end])
                # So that it comes with a read of its own.
                await client.drain()
                await settled_loop()
            task = await side.task(number)
            assert task.body == other
            task.answer(b"%d" % number)
            assert (await client.response()).body == b"%d" % number
        assert side.asked == 0


async def test_what_comes_behind_such_a_body_is_the_next_request() -> None:
    body = b"~" * 100_000
    async with serving() as side, side.client() as client:
        await known(side, client, body)
        (connection,) = side.server.server_state.connections
        both = post(body) + post(b"small") + post(body) + post(b"[2]", "/raw")
        client.send(both[:60_000])
        await until(lambda: connection._awaits == BODY)
        client.send(both[60_000:])
        for number, expected in enumerate((body, b"small", body, b"[2]"), 3):
            task = await side.task(number)
            assert task.body == expected
            task.answer(b"%d" % number)
            assert (await client.response()).body == b"%d" % number


async def test_a_head_is_not_taken_for_that_of_the_request_behind_it() -> None:
    body = b"~" * 100_000
    async with serving() as side, side.client() as client:
        # The first is answered at once, so that the second is on the short way as well, and its body comes in part.
        client.send(post(b"", "/raw") + post(body)[:50_000])
        assert (await client.response()).status == 400
        client.send(post(body)[50_000:])
        (await side.task()).answer(b"large")
        assert (await client.response()).body == b"large"
        client.send(post(b"", "/raw"))
        assert (await client.response()).status == 400
        client.send(post(b"[1]"))
        task = await side.task(2)
        assert task.body == b"[1]"
        task.answer(b"small")
        assert (await client.response()).body == b"small"


async def test_one_that_leaves_in_the_middle_of_such_a_body_leaves_nothing() -> None:
    body = b"~" * 100_000
    async with serving() as side, side.client() as client:
        await known(side, client, body)
        (connection,) = side.server.server_state.connections
        client.send(post(body)[:60_000])
        await until(lambda: connection._awaits == BODY)
        budget = side.direct_routes()[b"/json"].shared.budget
        assert budget.used
        client.leave()
        await until(lambda: not side.server.server_state.connections)
        assert not budget.used
    assert len(side.service.tasks) == 2


async def test_such_a_body_that_does_not_arrive_is_answered_408() -> None:
    body = b"~" * 100_000
    async with serving(limits=replace(DEFAULT, read_timeout=0.05)) as side, side.client() as client:
        await known(side, client, body)
        client.send(post(body)[:60_000])
        response = await client.response()
        assert (response.status, response.header("connection")) == (408, "close")
    assert len(side.service.tasks) == 2


async def test_such_bodies_have_the_same_room_as_others() -> None:
    body = b"~" * 100_000
    room = {"max_request_size": 150_000, "body_memory": 150_000}
    async with serving(app=room) as side, side.client() as first, side.client() as second:
        await known(side, first, body)
        second.send(post(b"small"))
        (await side.task(3)).answer()
        await second.response()
        for client in (first, second):
            client.send(post(body)[:80_000])
            await until(lambda: side.direct_routes()[b"/json"].shared.budget.used)
        assert (await second.response()).status == 503
        first.send(post(body)[80_000:])
        (await side.task(4)).answer(b"done")
        assert (await first.response()).body == b"done"


# -- another protocol --------------------------------------------------------------------------------------------------

# As curl and Java's client ask for it.
H2C: dict[str, str] = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
WEBSOCKET = {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket"}


@pytest.mark.parametrize("wish", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_the_wish_for_another_protocol_is_ignored(wish: dict[str, str], pieces: int) -> None:
    async with serving(Http1Protocol) as side, side.client() as client:
        request = post(b"0123456789", X_Request_Id="mine", **wish) + post(b"behind", X_Request_Id="next")
        size = -(-len(request) // pieces)
        for place in range(0, len(request), size):
            client.send(request[place : place + size])
            await settled_loop()
        for number, (body, name) in enumerate(((b"0123456789", "mine"), (b"behind", "next")), 1):
            task = await side.task(number)
            assert (task.body, task.call.request_id) == (body, name)
            task.answer(b"<%b>" % body)
            assert (await client.response()).body == b"<%b>" % body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 200),
        (b"GET /json HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 405),
        (CHUNKED.replace(b"\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n", 1), 200),
        (b"CONNECT t:80 HTTP/1.1\r\nhost: t\r\n\r\n", 400),
    ],
    ids=["no body", "a wrong method", "chunks", "a tunnel"],
)
async def test_it_is_ignored_whatever_asks_for_it(request_: bytes, status: int) -> None:
    async with serving() as side:
        outcome = b"done" if request_.startswith(b"POST") else None
        assert (await answered(side, request_, outcome)).status == status


async def test_one_that_asks_for_another_protocol_and_the_end_gets_the_end() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(Connection="Upgrade, close", Upgrade="h2c"))
        (await side.task()).answer(b"done")
        response = await client.response()
        assert (response.body, response.header("connection")) == (b"done", "close")
        assert await client.at_end()


# -- several at a time on one connection -------------------------------------------------------------------------------


async def test_requests_sent_ahead_are_run_one_after_the_other() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"1") + post(b"2") + post(b"3"))
        for number in (1, 2, 3):
            task = await side.task(number)
            await settled_loop()
            assert len(side.service.tasks) == number
            assert task.body == b"%d" % number
            task.answer(b"<%d>" % number)
            assert (await client.response()).body == b"<%d>" % number
        # Those behind wait as uvicorn has them wait; the next that comes alone takes the short way again.
        assert side.asked == 2
        client.send(post(b"4"))
        (await side.task(4)).answer()
        await client.response()
        assert side.asked == 2


async def test_a_request_that_is_refused_at_once_is_answered_before_the_one_behind_it() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"") + post(b"2"))
        assert (await client.response()).status == 400
        (await side.task()).answer(b"<2>")
        assert (await client.response()).body == b"<2>"


@pytest.mark.parametrize("behind", [0, 1])
async def test_a_client_that_leaves_while_its_request_runs_frees_it(behind: int) -> None:
    async with serving() as side, side.client() as client:
        client.send(post() * (1 + behind))
        await side.task()
        client.leave()
        await until(lambda: side.service.cancelled == [1])
        await until(lambda: not side.server.server_state.connections)
    assert len(side.service.tasks) == 1
    assert side.metrics.throughput == {}


@pytest.mark.parametrize("sent", [post(), post(LARGE)], ids=["short", "long"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(sent: bytes) -> None:
    async with serving() as side, side.client() as client:
        client.send(sent[:-1])
        await until(lambda: side.server.server_state.connections)
        await settled_loop()
        client.leave()
    assert not side.service.tasks


async def test_an_answer_to_a_client_that_has_left_meanwhile_goes_nowhere() -> None:
    async with serving() as side, side.client() as client:
        client.send(post())
        task = await side.task()
        (connection,) = side.server.server_state.connections
        connection.transport.abort()  # type: ignore[attr-defined]
        # The protocol has not heard of it yet.
        task.answer(b"late")
        assert await client.at_end()


# -- faults, and the end -----------------------------------------------------------------------------------------------


class Faulty(FakeEngine):
    """A service with a fault, in the first call."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.faults = [error("a secret")]

    def submit(self, call: Call, caller: Caller) -> None:
        if self.faults:
            raise self.faults.pop()
        super().submit(call, caller)


# Those of a library need be no `Exception`.
@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])
async def test_a_fault_of_ours_is_no_fault_of_the_clients(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    async with serving(service=Faulty(error)) as side, side.client() as client:
        client.send(post(X_Request_Id="mine"))
        response = await client.response()
        assert (response.status, response.body) == (500, b"inference internal error")
        client.send(post())
        (await side.task()).answer(b"done")
        assert (await client.response()).body == b"done"
    (record,) = [record for record in logged.records if record.levelno >= logging.ERROR]
    assert told(record, "request_id") == ("mine",)
    assert record.exc_info is not None


async def test_at_the_end_a_connection_closes_behind_the_answer_that_it_waits_for() -> None:
    # Long enough for nothing else to close a connection.
    async with serving(timeout_keep_alive=3600) as side, side.client() as client, side.client() as idle:
        idle.send(post())
        (await side.task()).answer()
        await idle.response()
        client.send(post())
        task = await side.task(2)
        side.server.should_exit = True
        assert await idle.at_end()
        task.answer(b"the last")
        response = await client.response()
        assert (response.body, response.header("connection")) == (b"the last", "close")
        assert await client.at_end()


@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("running", [False, True], ids=["answered", "running"])
def test_a_connection_that_has_ended_is_freed_at_once(
    loop_of: Callable[[], asyncio.AbstractEventLoop], running: bool
) -> None:
    async def main() -> None:
        async with serving() as side, side.client() as client:
            client.send(post())
            task = await side.task()
            if not running:
                task.answer(b"done")
                await client.response()
            (connection,) = side.server.server_state.connections
            parts = [weakref.ref(connection), weakref.ref(connection.transport)]
            del connection
            gc.collect()
            gc.disable()
            try:
                client.leave()
                await until(lambda: not any(part() for part in parts))
            finally:
                gc.enable()

    loop = loop_of()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
