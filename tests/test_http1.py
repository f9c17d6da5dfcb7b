"""What a client of HTTP/1.1 can make the server hold, loop over, recurse into, or lose: nothing beyond the limits."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from common import settled_loop, until
from direct_side import FLOOD, LIMIT, Client, Side, post, serving
from starlette.middleware import Middleware

from mosec_asgi.errors import CLOSING
from mosec_asgi.rationing import MOST, MOST_WHOLE
from mosec_asgi.web.limits import LINGER_SILENCE_SECONDS, Limits
from mosec_asgi.web.uvicorn.http1 import BODY, MOST_HEADERS
from mosec_asgi.web.uvicorn.http1 import HEAD as HEAD_AWAITED

HEAD = b"POST /json HTTP/1.1\r\nhost: t\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"


def limits(**changes: float) -> Limits:
    return Limits(**changes)  # type: ignore[arg-type]


# -- requests without end ----------------------------------------------------------------------------------------------


async def test_no_number_of_wishes_for_another_protocol_makes_the_stack_deep(logged: pytest.LogCaptureFixture) -> None:
    count = 3 * sys.getrecursionlimit()
    async with serving() as side, side.client() as client:
        client.send(UPGRADE * count)
        for _ in range(count):
            assert (await client.response()).status == 200
    assert not [record for record in logged.records if record.exc_info]


@pytest.mark.parametrize("request_", [post(b""), b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"], ids=["direct", "asgi"])
async def test_many_requests_at_once_leave_others_their_turns(request_: bytes) -> None:
    async with serving() as side, side.client() as client, side.client() as other:
        client.send(request_ * 3000)
        await client.drain()
        await client.response()
        other.send(post(b"[1]"))
        await until(lambda: side.service.tasks)
        side.service.task.answer(b"done")
        assert (await other.response()).body == b"done"
        for _ in range(2999):
            await client.response()


async def test_no_more_requests_wait_for_their_turn_than_the_limit() -> None:
    async with serving(limits=limits(pipelined=5)) as side, side.client() as client:
        client.send(post(b"1") * 300)
        await side.task(1)
        await client.drain()
        await settled_loop()
        (connection,) = side.server.server_state.connections
        assert len(connection.pipeline) <= 5  # type: ignore[union-attr]
        for number in range(1, 301):
            (await side.task(number)).answer(b"%d" % number)
            assert (await client.response()).body == b"%d" % number


async def test_no_more_wait_where_each_read_ends_within_a_request() -> None:
    async with serving(limits=limits(pipelined=5)) as side, side.client() as client:
        client.send(post(b"1"))
        await side.task(1)
        # Nothing of this is a head whole, as far as one piece of a read shows.
        client.send(b"GET /json HTTP/1.1\r\nhost: t\r\nx: y")
        await settled_loop()
        client.send(b"\r\n\r\nGET /json HTTP/1.1\r\nhost: t\r\nx: y" * 1000 + b"\r\n\r\n")
        await settled_loop()
        await client.drain()
        await settled_loop()
        (connection,) = side.server.server_state.connections
        # One piece of a read is given to the parser as it comes.
        assert len(connection.pipeline) < 150  # type: ignore[union-attr]
        side.service.task.answer(b"1")
        for _ in range(1002):
            await client.response()


async def test_requests_that_were_held_back_are_all_answered_in_order() -> None:
    async with serving(limits=limits(pipelined=3)) as side, side.client() as client:
        bodies = [b"%d" % number * (1 + 997 * (number % 7)) for number in range(200)]
        client.send(b"".join(map(post, bodies)))
        for number, body in enumerate(bodies, 1):
            task = await side.task(number)
            assert task.body == body
            task.answer(body)
            assert (await client.response()).body == body


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 50])
async def test_a_head_that_is_too_large_is_answered_431(pieces: int) -> None:
    async with serving(limits=limits(max_head_size=10_000)) as side, side.client() as client:
        head = HEAD + b"".join(b"x-%d: %b\r\n" % (number, b"y" * 100) for number in range(300)) + b"\r\n"
        size = -(-len(head) // pieces)
        for place in range(0, len(head), size):
            client.send(head[place : place + size])
            await settled_loop()
        response = await client.response()
        assert (response.status, response.header("connection")) == (431, "close")
        assert b"max_head_size" in response.body
        assert await client.at_end()


@pytest.mark.parametrize("path", ["/json", "/livez"])
@pytest.mark.parametrize("pieces", [1, 2, 30])
@pytest.mark.parametrize("ends", [True, False])
async def test_a_head_of_very_many_headers_is_answered_431(ends: bool, pieces: int, path: str) -> None:
    async with serving() as side, side.client() as client:
        for count in (MOST_HEADERS, 3 * MOST_HEADERS) if ends else (3 * MOST_HEADERS,):
            first = b"POST %b HTTP/1.1\r\ncontent-length: 0" % path.encode()
            head = b"\r\n".join([first, *[b"a:b"] * (count - 1), b"" if not ends else b"\r\n"])
            size = -(-len(head) // pieces)
            for place in range(0, len(head), size):
                client.send(head[place : place + size])
                await settled_loop()
            response = await client.response()
            if count == MOST_HEADERS:
                assert response.status in (400, 405)
            else:
                assert (response.status, b"the 1000 headers" in response.body) == (431, True)
                assert await client.at_end()


async def test_trailers_are_kept_nowhere() -> None:
    async with serving() as side, side.client() as client:
        client.send(b"POST /json HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n")
        await until(lambda: bool(side.server.server_state.connections))
        (connection,) = side.server.server_state.connections
        await until(lambda: connection._awaits == BODY)
        connection.data_received(b"a:b\r\n" * 500)
        assert not connection.headers
        client.send(b"\r\n")
        (await side.task()).answer()
        assert (await client.response()).status == 200


async def test_a_header_that_never_ends_is_answered_431_soon() -> None:
    async with serving() as side, side.client() as client:
        client.send(HEAD + b"x: ")
        began = time.process_time()
        for _ in range(100):
            client.send(b"y" * 4096)
            await settled_loop()
        assert (await client.response()).status == 431
        assert time.process_time() - began < 2


async def test_a_url_that_is_too_long_is_answered_414() -> None:
    async with serving(limits=limits(max_url_size=100)) as side, side.client() as client:
        client.send(b"GET /%b HTTP/1.1\r\nhost: t\r\n\r\n" % (b"x" * 100))
        response = await client.response()
        assert (response.status, b"max_url_size" in response.body) == (414, True)
        assert await client.at_end()


@pytest.mark.parametrize("reads", [1, 2])
@pytest.mark.parametrize("path", ["/json", "/json?asgi"])
@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (b"GET /livez?%b HTTP/1.1\r\nhost: t\r\n\r\n" % (b"a" * 5000), 414),
        (b"GET /livez HTTP/1.1\r\nhost: t\r\nx: %b\r\n\r\n" % (b"a" * 20_000), 431),
    ],
    ids=["url", "head"],
)
async def test_a_request_that_is_refused_takes_no_answer_from_the_one_before_it(
    refused: bytes, status: int, path: str, reads: int
) -> None:
    async with (
        serving(limits=limits(max_url_size=1000, max_head_size=10_000)) as side,
        side.client() as client,
    ):
        if reads == 1:
            client.send(post(b"[1]", path) + refused)
        else:
            client.send(post(b"[1]", path))
            await side.task()
            client.send(refused)
        task = await side.task()
        await client.drain()
        await settled_loop()
        task.answer(b"mine")
        first, second = await client.response(), await client.response()
        assert (first.status, first.body) == (200, b"mine")
        assert (second.status, second.header("connection")) == (status, "close")
        assert await client.at_end()


async def test_a_first_request_that_is_refused_gets_its_answer_though_its_body_still_comes(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with serving() as side, side.client() as client:
        client.send(b"POST /%b HTTP/1.1\r\nhost: t\r\ncontent-length: 2000000\r\n\r\n" % (b"a" * 17_000))
        response = await client.response()
        assert (response.status, response.header("connection")) == (414, "close")
        client.send(b"x" * 2_000_000)
        await client.drain()
        client.end_sending()
        assert await client.at_end()
    assert not [record for record in logged.records if record.exc_info]


async def test_so_is_one_that_comes_at_once_with_a_large_head(logged: pytest.LogCaptureFixture) -> None:
    async with serving() as side, side.client() as client:
        client.send(b"GET /%b HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\n\r\n1" % (b"x" * 60_000))
        assert (await client.response()).status == 414
        assert await client.at_end()
    assert not [record for record in logged.records if record.exc_info]


@pytest.mark.parametrize("endless", [b"a: b\r\n", b"x"], ids=["lines", "line"])
@pytest.mark.parametrize("before", [b"3\r\n[1]\r\n0\r\n", b"3\r\n[1]\r\n0\r\na: ", b"3;"])
async def test_what_is_no_body_and_never_ends_is_answered_431(before: bytes, endless: bytes) -> None:
    if before.endswith(b"0\r\n") and endless == b"x":
        before += b"a: "
    async with serving(limits=limits(max_head_size=4096)) as side, side.client() as client:
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + before)
        response = asyncio.ensure_future(client.response())
        for _ in range(1000):
            if response.done():
                break
            client.send(endless * 500 if not before.endswith(b";") else b"x" * 500)
            await asyncio.sleep(0.001)
        assert (await response).status == 431
        assert not side.service.tasks


async def test_a_read_of_very_many_chunks_leaves_others_their_turns() -> None:
    async with serving() as side, side.client() as client, side.client() as other:
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n1\r\n" * 400_000 + b"0\r\n\r\n")
        # A part of a read waits.
        await until(lambda: any(each._unfed for each in side.server.server_state.connections))  # type: ignore[union-attr]
        other.send(post(b"[1]"))
        task = await side.task()
        assert task.call.payload == b"[1]"
        task.answer(b"done")
        assert (await other.response()).body == b"done"
        second = await side.task(2)
        assert second.call.payload == b"1" * 400_000
        second.answer(b"all")
        assert (await client.response()).body == b"all"


async def test_a_large_head_behind_a_large_body_is_taken() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"x" * 2_000_000) + post(b"2", X_Large="y" * 50_000))
        (await side.task(1)).answer(b"1")
        (await side.task(2)).answer(b"2")
        assert (await client.response()).body == b"1"
        assert (await client.response()).body == b"2"


# -- slow clients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beginning",
    [HEAD, HEAD + b"content-length: 10\r\n\r\n123", HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\n123\r\n"],
    ids=["head", "body", "chunks"],
)
async def test_a_request_that_does_not_arrive_is_answered_408(beginning: bytes) -> None:
    async with serving(limits=limits(read_timeout=0.3)) as side, side.client() as client:
        client.send(beginning)
        response = await client.response()
        assert response.status == 408
        assert b"read_timeout" in response.body
        assert not side.service.tasks


async def test_a_body_that_moves_at_the_least_rate_arrives_and_one_below_it_does_not() -> None:
    async with serving(limits=limits(read_timeout=0.4, least_rate=100)) as side:
        async with side.client() as client:
            client.send(HEAD + b"content-length: 200\r\n\r\n")
            for _ in range(10):
                client.send(b"x" * 20)
                await asyncio.sleep(0.1)
            (await side.task()).answer(b"done")
            assert (await client.response()).body == b"done"
        async with side.client() as client:
            client.send(HEAD + b"content-length: 200\r\n\r\n")
            for _ in range(7):
                client.send(b"x")
                await asyncio.sleep(0.1)
            assert (await client.response()).status == 408
        assert len(side.service.tasks) == 1


@pytest.mark.parametrize("framing", [b"content-length: 500000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n7a120\r\n"])
async def test_a_body_of_which_much_has_come_may_pause_no_longer_than_another(framing: bytes) -> None:
    async with serving(limits=limits(read_timeout=0.3, least_rate=1000)) as side, side.client() as client:
        # By the rate alone it would have 400 s.
        client.send(HEAD + framing + b"x" * 400_000)
        response = asyncio.ensure_future(client.response())
        for _ in range(100):
            if response.done():
                break
            client.send(b"x")
            await asyncio.sleep(0.1)
        assert (await response).status == 408
        assert not side.service.tasks


async def test_a_request_that_waits_behind_another_is_not_taken_for_slow() -> None:
    async with serving(limits=limits(read_timeout=0.2)) as side, side.client() as client:
        client.send(post(b"1") + post(b"2" * 500_000))
        task = await side.task()
        await asyncio.sleep(0.6)
        task.answer(b"1")
        assert (await client.response()).body == b"1"
        (await side.task(2)).answer(b"2")
        assert (await client.response()).body == b"2"


@pytest.mark.parametrize("connection", ["", "close"])
@pytest.mark.parametrize("path", ["/json", "/json?asgi"])
async def test_a_client_that_does_not_read_its_answer_is_ended(
    path: str, connection: str, logged: pytest.LogCaptureFixture
) -> None:
    async with serving(limits=limits(stall_timeout=0.2)) as side, side.client() as client:
        client.send(post(path=path, Connection=connection))
        client.stop_reading()
        (await side.task()).answer(FLOOD)
        await until(lambda: not side.server.server_state.connections)
    assert any("does not read" in record.getMessage() for record in logged.records)


@pytest.mark.parametrize("path", ["/json", "/json?asgi"])
async def test_answers_that_many_clients_leave_unread_are_bounded_and_who_reads_has_its_own(
    path: str, logged: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(serving(limits=limits(answer_memory=2 * len(FLOOD))))
        clients = [await stack.enter_async_context(side.client()) for _ in range(6)]
        for number, client in enumerate(clients, 1):
            client.stop_reading()
            client.send(post(path=path))
            (await side.task(number)).answer(FLOOD)
            await settled_loop()
        await until(lambda: len(side.server.server_state.connections) <= 3)
        # The newest are left, one of which reads now.
        clients[-1].read_on()
        assert (await clients[-1].response()).body == FLOOD
    assert any("`answer_memory`" in record.getMessage() for record in logged.records)


@pytest.mark.parametrize("path", ["/json", "/json?asgi"])
async def test_behind_an_unread_answer_no_request_is_begun(path: str) -> None:
    async with serving() as side, side.client() as client:
        client.stop_reading()
        client.send(post(path=path))
        (await side.task()).answer(FLOOD)
        await settled_loop()
        client.send(post(b"2", path) + post(b"3", path))
        # Time enough for requests that are not held back.
        async with side.client() as other:
            other.send(post(b"4", path))
            (await side.task(2)).answer(b"other")
            assert (await other.response()).body == b"other"
        assert len(side.service.tasks) == 2
        client.read_on()
        assert (await client.response()).body == FLOOD
        for number in (3, 4):
            (await side.task(number)).answer(b"%d" % number)
            assert (await client.response()).body == b"%d" % number


async def test_a_flood_of_refused_requests_logs_some_lines_and_how_many_were_left_out(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with serving() as side:
        for _ in range(2 * MOST):
            async with side.client() as client:
                client.send(b"garbage\r\n\r\n")
                assert (await client.response()).status == 400
    lines = [record.getMessage() for record in logged.records if "refused" in record.getMessage()]
    assert len(lines) == MOST


class Broken:
    """Middleware that cannot take any request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise ArithmeticError("broken")


async def test_of_a_flood_of_requests_that_a_middleware_cannot_take_some_are_logged(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with serving(app={"middleware": [Middleware(Broken)]}) as side:
        for _ in range(2 * MOST):
            async with side.client() as client:
                client.send(b"GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
                assert (await client.response()).status == 500
    lines = [record for record in logged.records if record.name == "uvicorn.error" and record.levelname == "ERROR"]
    assert len(lines) == MOST
    assert sum(bool(record.exc_info) for record in lines) == MOST_WHOLE


# -- room for bodies ---------------------------------------------------------------------------------------------------

ROOM = LIMIT + 500_000


@pytest.mark.parametrize("path", ["/json", "/json?asgi"])
async def test_bodies_that_find_no_room_beside_others_are_answered_503_and_may_come_again(path: str) -> None:
    body = b"x" * (LIMIT - 1)
    async with serving(app={"body_memory": ROOM}) as side, side.client() as first, side.client() as second:
        first.send(post(body, path))
        task = await side.task()
        second.send(post(body, path))
        response = await second.response()
        assert (response.status, response.header("retry-after")) == (503, "1")
        assert b"body_memory" in response.body
        task.answer(b"done")
        assert (await first.response()).body == b"done"
        async with side.client() as third:
            third.send(post(body, path))
            (await side.task(2)).answer(b"again")
            assert (await third.response()).body == b"again"


@pytest.mark.parametrize("path", ["/json", "/json?asgi"])
async def test_a_small_body_has_room_beside_those_that_take_all(path: str) -> None:
    async with serving(app={"body_memory": LIMIT}) as side, side.client() as first, side.client() as second:
        first.send(post(b"x" * (LIMIT - 1), path))
        large = await side.task()
        second.send(post(b"x" * 16_000, path))
        (await side.task(2)).answer(b"small")
        assert (await second.response()).body == b"small"
        large.answer(b"large")
        assert (await first.response()).body == b"large"


@pytest.mark.parametrize("framing", [b"content-length: %d\r\n\r\n" % LIMIT, b"transfer-encoding: chunked\r\n\r\n"])
async def test_half_sent_bodies_take_room_until_their_clients_leave(framing: bytes) -> None:
    half = b"x" * (LIMIT // 2)
    chunk = half if b"length" in framing else b"%x\r\n%b\r\n" % (len(half), half)
    async with serving(app={"body_memory": ROOM}) as side:
        clients = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", side._port)
            clients.append(Client(reader, writer))
            clients[-1].send(HEAD + framing + chunk)
        # Two have room, and the others are told at once.
        waiting = [asyncio.ensure_future(client.response()) for client in clients]
        await until(lambda: sum(each.done() for each in waiting) == 4)
        assert {each.result().status for each in waiting if each.done()} == {503}
        for client, each in zip(clients, waiting, strict=True):
            each.cancel()
            client.leave()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: not side.server.server_state.connections)
        async with side.client() as client:
            client.send(post(b"x" * (LIMIT - 1)))
            (await side.task()).answer(b"done")
            assert (await client.response()).body == b"done"


# -- answers that are given early --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("head", "status"),
    [("POST /json", 413), ("POST /unknown", 404), ("PUT /json", 405), ("POST /raw", 415)],
)
async def test_an_answer_that_is_given_early_arrives(head: str, status: int, version: str) -> None:
    size = LIMIT + 1 if status == 413 else LIMIT - 1
    packed = "content-encoding: br\r\n" if status == 415 else ""
    async with serving() as side:
        for _ in range(3):
            async with side.client() as client:
                lines = (
                    f"{head} HTTP/{version}\r\nhost: t\r\nconnection: close\r\n{packed}content-length: {size}\r\n\r\n"
                )
                # As nginx does: all is sent before the answer is looked at.
                client.send(lines.encode())
                for _ in range(size // 100_000):
                    client.send(b"x" * 100_000)
                    await client.drain()
                client.send(b"x" * (size % 100_000))
                await client.drain()
                assert (await client.response()).status == status
                assert await client.at_end()


async def test_a_connection_whose_client_sends_on_and_on_behind_its_answer_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mosec_asgi.web.uvicorn.ending.LINGER_SECONDS", 0.3)
    async with serving() as side, side.client() as client:
        client.send(b"POST /unknown HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % 10**9)
        assert (await client.response()).status == 404
        deadline = time.monotonic() + 10
        while side.server.server_state.connections:
            assert time.monotonic() < deadline
            client.send(b"x")
            await asyncio.sleep(0.02)


# -- the end of the service --------------------------------------------------------------------------------------------


async def stops(side: Side) -> None:
    """Have the service stop, and wait until all connections are closed, for less time than one lingers elsewhere."""
    side.server.should_exit = True
    began = time.monotonic()
    await until(lambda: not side.server.server_state.connections)
    assert time.monotonic() - began < LINGER_SILENCE_SECONDS / 2


async def heads_are_awaited(side: Side, number: int) -> None:
    def awaited() -> int:
        return sum(each._awaits == HEAD_AWAITED for each in side.server.server_state.connections)

    await until(lambda: awaited() == number)


@pytest.mark.parametrize("before", [False, True])
async def test_a_head_that_has_come_in_part_is_answered_503_at_the_end_and_does_not_delay_it(before: bool) -> None:
    async with serving() as side, side.client() as client:
        if before:
            client.send(post())
            (await side.task()).answer(b"[2]")
            assert (await client.response()).status == 200
        client.send(HEAD)
        await heads_are_awaited(side, 1)
        await stops(side)
        response = await client.response()
        assert (response.status, response.body.decode()) == (503, CLOSING.text)
        assert (response.header("connection"), response.header("retry-after")) == ("close", "1")
        assert await client.at_end()


async def test_a_head_in_part_behind_a_request_that_runs_delays_the_end_no_longer_than_that() -> None:
    async with serving() as side, side.client() as client:
        client.send(post() + HEAD)
        task = await side.task()
        await heads_are_awaited(side, 1)
        side.server.should_exit = True
        await until(lambda: not side.server.servers[0].sockets)
        task.answer(b"[2]")
        assert (await client.response()).status == 200
        await stops(side)


@pytest.mark.parametrize("answered", [False, True])
async def test_a_client_that_sends_on_and_on_does_not_delay_the_end(answered: bool) -> None:
    head = b"POST /unknown HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % 10**9
    async with serving() as side, side.client() as client:
        client.send(head if answered else HEAD)
        if answered:
            assert (await client.response()).status == 404
        else:
            await heads_are_awaited(side, 1)

        async def send_on() -> None:
            while True:
                client.send(b"x")
                await asyncio.sleep(0.01)

        sending = asyncio.ensure_future(send_on())
        await stops(side)
        sending.cancel()


# -- clients that end their sending ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [post(), post(path="/json?asgi"), post(version="1.0")], ids=["direct", "asgi", "1.0"]
)
async def test_a_client_that_has_ended_its_sending_gets_its_answer(request_: bytes) -> None:
    async with serving() as side, side.client() as client:
        client.send(request_)
        client.end_sending()
        task = await side.task()
        # Longer than it takes to notice one that is gone.
        await asyncio.sleep(0.2)
        assert side.service.cancelled == []
        task.answer(b"done")
        response = await client.response()
        assert (response.status, response.body) == (200, b"done")
        assert await client.at_end()


async def test_so_does_one_that_has_sent_several_requests_and_one_with_a_stream() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"1") + post(b"2"))
        client.end_sending()
        for number in (1, 2):
            (await side.task(number)).answer(b"%d" % number)
            assert (await client.response()).body == b"%d" % number
        assert await client.at_end()
    async with serving() as side, side.client() as client:
        client.send(post(path="/stream"))
        task = await side.task()
        task.chunk(b"data: a\n\n")
        await client.until(b"data: a\n\n\r\n")
        client.end_sending()
        await asyncio.sleep(0.1)
        task.chunk(b"data: b\n\n")
        task.answer()
        assert (await client.rest()).endswith(b"data: b\n\n\r\n0\r\n\r\n")


async def test_one_that_has_closed_its_connection_is_noticed() -> None:
    async with serving() as side, side.client() as client:
        client.send(post())
        await side.task()
        client._writer.close()
        await client._writer.wait_closed()
        await until(lambda: side.service.cancelled == [1])


# -- the form of answers -----------------------------------------------------------------------------------------------


async def test_trailers_are_no_headers() -> None:
    async with serving() as side, side.client() as client:
        client.send(
            HEAD
            + b"x-request-id: mine\r\ntransfer-encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\nx-request-id: other\r\n\r\n"
        )
        task = await side.task()
        assert task.call.request_id == "mine"
        task.answer(b"done")
        assert (await client.response()).header("x-request-id") == "mine"


async def test_a_stream_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_the_connection() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(path="/stream", version="1.0"))
        task = await side.task()
        task.chunk(b"data: a\n\n")
        head = await client.until(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        task.chunk(b"data: b\n\n")
        task.answer()
        assert await client.rest() == b"data: a\n\ndata: b\n\n"


async def test_what_is_no_request_is_refused_behind_the_answers_to_those_before(
    logged: pytest.LogCaptureFixture,
) -> None:
    for path in ("/json", "/json?asgi"):
        async with serving() as side, side.client() as client:
            client.send(post(b"1", path) + post(b"2", path) + b"\x00garbage\r\n\r\n")
            for number in (1, 2):
                task = await side.task(number)
                await settled_loop()
                task.answer(b"%d" % number)
                assert (await client.response()).body == b"%d" % number
            assert (await client.response()).status == 400
            assert await client.at_end()


async def test_a_line_in_the_log_says_what_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as side, side.client() as client:
        client.send(b"\x1b[31mgarbage\r\n\r\n")
        assert (await client.response()).status == 400
    assert not any("\x1b" in record.getMessage() for record in caplog.records)
