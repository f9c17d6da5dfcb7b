"""Results that set the status and headers of their responses, in processes and in threads."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import request_workers as workers
from harness import serving
from test_request import BOTH, client_of

from mosec_asgi import Reply, ServerError
from mosec_asgi.reply import cut, packed_head, unpacked_head


def test_a_head_comes_back_as_it_went() -> None:
    reply = Reply("value", 201, {"Location": " /a:b ", "x-empty": ""})
    head, rest = cut(packed_head(reply) + b"rest")
    assert rest == b"rest"
    assert unpacked_head(head) == (201, [(b"location", b"/a:b"), (b"x-empty", b"")])


@pytest.mark.parametrize("payload", [b"", b"12345", packed_head(Reply(1, 200, {"a": "b"}))[:-1]])
def test_what_is_no_reply_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="short"):
        cut(payload)


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (199, {}, "the status of a Reply is a whole number from 200 to 599, not 199"),
        (600, {}, "not 600"),
        (True, {}, "not True"),
        ("200", {}, "not '200'"),
        (200, {"a b": "c"}, "a header's name in a Reply"),
        (200, {"": "c"}, "a header's name in a Reply"),
        (200, {"a\r\nb": "c"}, "a header's name in a Reply"),
        (200, {"a": "c\r\nset-cookie: x"}, "holds a line break"),
        (200, {"a": "c\x00"}, "holds a line break or a control character"),
        (200, {"a": 7}, "the value of the header a of a Reply is text, not int"),
        (200, {"a": "€"}, "beyond Latin-1"),
        (200, {"Content-Length": "7"}, "cannot set the header Content-Length"),
        (200, {"transfer-encoding": "chunked"}, "cannot set the header transfer-encoding"),
        (200, {"connection": "close"}, "cannot set the header connection"),
        (200, {"x-request-id": "a"}, "cannot set the header x-request-id"),
        (200, 7, "the headers of a Reply are a dictionary"),
        (200, ["abc"], "the headers of a Reply are a dictionary"),
    ],
)
def test_what_cannot_be_sent_is_refused(status: Any, headers: Any, text: str) -> None:
    with pytest.raises(ServerError) as caught:
        packed_head(Reply(1, status, headers))
    assert text in str(caught.value)


@BOTH
async def test_a_reply_sets_status_and_headers(executor: str) -> None:
    async with client_of(workers.Plain, workers.Replies, executor=executor) as (client, server):
        made = await client.post(
            "/inference", json={"value": [1], "status": 201, "headers": {"Location": "/a", "x-color": "red"}}
        )
        assert (made.status_code, made.json(), made.headers["location"], made.headers["x-color"]) == (
            201,
            [1],
            "/a",
            "red",
        )
        assert (made.headers["content-type"], made.headers["content-length"]) == ("application/json", "3")
        assert "x-request-id" in made.headers
        cookies = await client.post(
            "/inference", json={"headers": [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["content-type", "text/x"]]}
        )
        assert cookies.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert cookies.headers.get_list("content-type") == ["text/x"]
        plain = await client.post("/inference", json=[1])
        assert (plain.status_code, plain.json(), "x-color" in plain.headers) == (200, [1], False)
        # A caller in the program gets it as it is.
        assert await server.infer({"value": 7, "status": 404}) == Reply(7, 404)


@BOTH
async def test_a_status_without_a_body_has_none(executor: str) -> None:
    async with client_of(workers.Replies, executor=executor) as (client, _):
        for status in (204, 304):
            answer = await client.post("/inference", json={"value": "not sent", "status": status})
            assert (answer.status_code, answer.content, "content-length" in answer.headers) == (status, b"", False)


@BOTH
async def test_in_a_batch_each_item_has_its_own_and_a_bad_one_fails_alone(executor: str) -> None:
    async with client_of(workers.RepliesBatch, executor=executor, max_batch_size=8, max_wait_time=300) as (client, _):
        items = [1, {"value": 2, "status": 202}, {"value": 3, "headers": {"a": "b\nc"}}, {"value": 4, "status": 99}, 5]
        answers = await asyncio.gather(*(client.post("/inference", json=item) for item in items))
        assert [answer.status_code for answer in answers] == [200, 202, 500, 500, 200]
        assert "internal error: the value of the header a of a Reply holds a line break" in answers[2].text
        assert "the status of a Reply is a whole number from 200 to 599, not 99" in answers[3].text


@BOTH
async def test_a_large_reply_arrives_whole(executor: str) -> None:
    async with client_of(workers.Replies, executor=executor) as (client, _):
        text = os.urandom(300_000).hex()
        answer = await client.post("/inference", json={"value": text, "status": 203})
        assert (answer.status_code, answer.json()) == (203, text)


@BOTH
async def test_an_earlier_stage_cannot_reply(executor: str) -> None:
    async with client_of(workers.Replies, workers.Plain, executor=executor) as (client, server):
        answer = await client.post("/inference", json={"value": 1})
        assert answer.status_code == 500
        assert "Replies_1 returned a Reply, which only the last stage of a route can" in answer.text
        with pytest.raises(ServerError, match="only the last stage of a route can"):
            await server.infer({"value": 1})


@BOTH
async def test_a_stream_cannot_reply(executor: str) -> None:
    async with client_of(workers.RepliesStream, executor=executor) as (client, server):
        answer = await client.post("/inference", json=1)
        assert answer.text.startswith("data: first\n\nevent: error\n")
        assert "a Reply was given as an event of a stream" in answer.text
        with pytest.raises(ServerError, match="a Reply was given as an event"):
            _ = [event async for event in server.stream(1)]


def test_under_run_a_connection_goes_on_after_a_reply(tmp_path: Path) -> None:
    """Replies take the short way past ASGI as well."""
    stages = """
        from request_workers import Replies, TellsLast
        server.append_worker(Replies, executor="thread")
        server.append_worker(TellsLast, executor="thread", route="/tell/{name}", methods=["GET", "POST"])
    """
    with serving(tmp_path, stages) as program, httpx.Client(base_url=program.url) as client:
        for status in (200, 204, 304, 201, 404, 599):
            for _ in range(2):
                answer = client.post(
                    "/inference", json={"value": "x", "status": status, "headers": {"x-percent": "1%d", "x-a": "b"}}
                )
                assert (answer.status_code, answer.headers["x-percent"]) == (status, "1%d")
                assert answer.content == (b"" if status in (204, 304) else b'"x"')
            plain = client.post("/inference", json=1)
            assert (plain.status_code, plain.content, "x-a" in plain.headers) == (200, b"1", False)
        told = client.get("/tell/b%C3%A4r?c=d").json()
        assert (told["path"], told["query"], told["method"]) == ({"name": "bär"}, {"c": "d"}, "GET")
        assert client.head("/tell/a").content == b""
        assert client.options("/tell/a").headers["allow"] == "GET, HEAD, OPTIONS, POST"
        assert client.options("/inference").headers["allow"] == "OPTIONS, POST"
