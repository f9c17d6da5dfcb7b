"""A request whose head has come before is submitted without its being read, and nobody can tell."""

from __future__ import annotations

import pytest
from common import settled_loop, until
from direct_side import LIMIT, Side, post, serving
from test_direct import USUAL

from mosec_asgi.errors import Failure
from mosec_asgi.web.known_heads import MAX_HEAD_SIZE, MAX_HEADS, KnownHeads


def known(side: Side) -> set[bytes]:
    return set(side.direct_routes().known.heads)


class Parsed:
    """What the parser was given."""

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        (connection,) = side.server.server_state.connections
        parser = connection.parser  # type: ignore[union-attr]
        outer = self

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(parser, name)

            def feed_data(self, data: bytes) -> None:
                outer.reads += 1
                parser.feed_data(data)

        monkeypatch.setattr(connection, "parser", Counting())


@pytest.mark.parametrize("case", USUAL.values(), ids=USUAL)
async def test_the_second_of_two_equal_requests_is_answered_as_the_first(
    case: tuple[bytes, bytes | Failure | None],
) -> None:
    request, outcome = case
    async with serving() as side, side.client() as client:
        answers = []
        for number in range(1, 4):
            client.send(request)
            if outcome is not None:
                (await side.task(number)).end(outcome)
            answers.append((await client.response()).comparable)
        assert answers[0] == answers[1] == answers[2]
        assert side.asked == 0


async def test_a_known_head_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as side, side.client() as client:
        for number, body in enumerate((b"[1]", b"[2]", b"[3]"), 1):
            client.send(post(body))
            task = await side.task(number)
            assert task.body == body
            task.answer(b"<%b>" % body)
            assert (await client.response()).body == b"<%b>" % body
            if number == 1:
                parsed = Parsed(side, monkeypatch)
        assert parsed.reads == 0
        assert known(side) == {post(b"[1]").removesuffix(b"[1]")}


async def test_another_connection_knows_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as side:
        for number in range(1, 3):
            async with side.client() as client:
                for again in range(2):
                    client.send(post(b"[1]"))
                    (await side.task(2 * number + again - 1)).answer(b"x")
                    await client.response()
            await until(lambda: not side.server.server_state.connections)
        assert len(known(side)) == 1


async def test_requests_that_come_together_are_read_one_by_one() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"[0]"))
        (await side.task(1)).answer(b"0")
        assert (await client.response()).body == b"0"
        client.send(post(b"[1]") + post(b"[2]"))
        (await side.task(2)).answer(b"1")
        (await side.task(3)).answer(b"2")
        assert [(await client.response()).body for _ in range(2)] == [b"1", b"2"]
        assert [task.body for task in side.service.tasks] == [b"[0]", b"[1]", b"[2]"]


async def test_one_that_comes_while_another_runs_waits_for_its_turn() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"[0]"))
        (await side.task(1)).answer(b"0")
        await client.response()
        client.send(post(b"[1]"))
        first = await side.task(2)
        client.send(post(b"[2]"))
        await client.drain()
        await settled_loop()
        first.answer(b"1")
        assert (await client.response()).body == b"1"
        (await side.task(3)).answer(b"2")
        assert (await client.response()).body == b"2"


async def test_a_known_head_without_its_whole_body_waits_for_it() -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"[0]"))
        (await side.task(1)).answer(b"0")
        await client.response()
        whole = post(b"[1]")
        client.send(whole[:-2])
        await client.drain()
        await settled_loop()
        assert len(side.service.tasks) == 1
        client.send(whole[-2:])
        task = await side.task(2)
        assert task.body == b"[1]"
        task.answer(b"1")
        assert (await client.response()).body == b"1"


async def test_what_ends_the_body_before_is_no_part_of_a_head() -> None:
    ours = post(b"hello")
    rest = b"POST /raw HTTP/1.1\r\nhost: t\r\nx: "
    async with serving() as side:
        async with side.client() as client:
            client.send(b"POST /nowhere HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n1" % (1 + len(rest)))
            assert (await client.response()).status == 404
            client.send(rest + ours)
            (await side.task(1)).answer(b"1")
            assert (await client.response()).status == 200
        assert not known(side)
        async with side.client() as client:
            client.send(post(b"[2]"))
            (await side.task(2)).answer(b"2")
            await client.response()
            client.send(rest + ours)
            task = await side.task(3)
            assert task.call.route == 1
            task.answer(b"3")
            assert (await client.response()).body == b"3"


async def test_empty_lines_are_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b""))
        assert (await client.response()).status == 400
        client.send(b"\r\n\r\n")
        client.send(post(b"[1]"))
        (await side.task(1)).answer(b"1")
        assert (await client.response()).body == b"1"
        assert b"\r\n\r\n" not in known(side)


async def test_a_known_head_finds_no_room_where_another_finds_none() -> None:
    body = b"~" * 20_000
    async with serving() as side, side.client() as client:
        client.send(post(body))
        (await side.task(1)).answer(b"0")
        await client.response()
        (route, *_), *_ = side.direct_routes().known.heads.values()
        budget = route.shared.budget
        budget.limit, budget.used = LIMIT, LIMIT - 10_000
        client.send(post(body))
        response = await client.response()
        budget.used = 0
        assert response.status in (429, 503)
        assert len(side.service.tasks) == 1


@pytest.mark.parametrize(
    "headers",
    [{"X_Request_Id": "mine"}, {"Traceparent": "00-1-2-03"}, {"X_Long": "~" * MAX_HEAD_SIZE}],
    ids=["request id", "trace", "long"],
)
async def test_a_head_that_will_not_come_again_or_is_long_is_not_kept(headers: dict[str, str]) -> None:
    async with serving() as side, side.client() as client:
        client.send(post(b"[1]", **headers))
        (await side.task(1)).answer(b"1")
        await client.response()
        assert not known(side)


def test_heads_without_end_are_not_kept_without_end() -> None:
    heads: KnownHeads[str] = KnownHeads()
    for number in range(3 * MAX_HEADS):
        heads.learn(b"%d" % number, "route", {}, 1)
        assert len(heads.heads) <= MAX_HEADS
        assert heads.heads[b"%d" % number] == ("route", {}, 1)


def test_a_head_that_is_known_takes_no_place_from_the_others() -> None:
    heads: KnownHeads[str] = KnownHeads()
    for number in range(MAX_HEADS):
        heads.learn(b"%d" % number, "route", {}, 1)
    heads.learn(b"0", "route", {}, 1)
    assert len(heads.heads) == MAX_HEADS


REFUSED_AT_ONCE = post(b"", x_refused="yes")


@pytest.mark.parametrize("before", [b"\r\n\r\n", REFUSED_AT_ONCE], ids=["empty lines", "a request that is refused"])
async def test_a_head_is_not_taken_for_that_of_a_request_behind_it(before: bytes) -> None:
    body = b"~" * 1000
    head = post(body).removesuffix(body)
    # What comes behind the first empty line is as long as the body, but is another head and a part of the body.
    begun = len(body) - len(head)
    async with serving() as side, side.client() as client:
        client.send(before + head + body[:begun])
        if before == REFUSED_AT_ONCE:
            assert (await client.response()).status == 400
        await client.drain()
        await settled_loop()
        client.send(body[begun:])
        task = await side.task(1)
        assert task.body == body
        task.answer(b"1")
        assert (await client.response()).body == b"1"
        assert before not in known(side)
