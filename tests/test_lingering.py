"""What is unread of a request that is refused is read and dropped, within bounds; `test_asgi_servers` shows why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from common import settled_loop
from fake_engine import ManualLoop, in_manual_time
from starlette.types import Message, Receive, Scope, Send

from mosec_asgi.web.limits import LINGER_SECONDS, LINGER_SILENCE_SECONDS
from mosec_asgi.web.lingering import Lingering

PIECE: Message = {"type": "http.request", "body": b"x" * 1000, "more_body": True}
LAST: Message = {"type": "http.request", "body": b"x", "more_body": False}
LEFT: Message = {"type": "http.disconnect"}
START: Message = {"type": "http.response.start", "status": 404, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"no such path"}
HELD: Message = {**BODY, "more_body": True}
END: Message = {"type": "http.response.body", "body": b""}


class Client:
    """Sends the pieces of a body one after the other, then nothing any more."""

    def __init__(self, pieces: Sequence[Message], pause: float = 0.0) -> None:
        self.sent: list[Message] = []
        self.read = 0
        self._pieces = pieces
        self._pause = pause

    async def receive(self) -> Message:
        if self._pause:
            await asyncio.sleep(self._pause)
        if self.read == len(self._pieces):
            await asyncio.Event().wait()
        self.read += 1
        return self._pieces[self.read - 1]

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def request(**other: Any) -> Scope:
    return {"type": "http", "http_version": "1.1", "headers": [(b"content-length", b"5000")], **other}


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await send({**START, "status": scope.get("answer", 404)})
    await send(BODY)


@pytest.mark.parametrize("last", [LAST, LEFT], ids=["the end", "the client's leaving"])
async def test_the_answer_goes_out_first_then_the_rest_is_read_then_comes_the_end(last: Message) -> None:
    client = Client([PIECE, PIECE, last, PIECE])
    await Lingering(refuse)(request(), client.receive, client.send)
    assert client.sent == [START, HELD, END]
    assert client.read == 3


@pytest.mark.parametrize("header", [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")])
async def test_either_header_tells_of_a_body(header: tuple[bytes, bytes]) -> None:
    client = Client([LAST])
    await Lingering(refuse)(request(headers=[header]), client.receive, client.send)
    assert client.sent == [START, HELD, END]


@pytest.mark.parametrize(
    "other",
    [{"headers": []}, {"headers": [(b"content-length", b"0")]}, {"http_version": "2"}, {"answer": 200}],
    ids=["no body", "an empty body", "HTTP/2", "no failure"],
)
async def test_else_the_answer_goes_out_as_it_is(other: dict[str, Any]) -> None:
    client = Client([])
    await Lingering(refuse)(request(**other), client.receive, client.send)
    assert client.sent == [{**START, "status": other.get("answer", 404)}, BODY]
    assert client.read == 0


@pytest.mark.parametrize(
    ("pieces", "pause", "seconds"),
    [([PIECE], 0.0, LINGER_SILENCE_SECONDS), ([PIECE] * 1000, 1.0, LINGER_SECONDS)],
    ids=["silence", "a body without end"],
)
def test_a_client_that_pauses_or_sends_for_too_long_is_not_waited_for(
    pieces: list[Message], pause: float, seconds: float
) -> None:
    async def main(loop: ManualLoop) -> None:
        client = Client(pieces, pause)
        asking = loop.create_task(Lingering(refuse)(request(), client.receive, client.send))
        await settled_loop()
        await loop.advance(seconds - 0.5)
        assert client.sent == [START, HELD]
        await loop.advance(1.0)
        assert client.sent == [START, HELD, END]
        await asking

    in_manual_time(main)


def test_a_cancellation_that_comes_with_a_piece_is_not_lost() -> None:
    async def main(loop: ManualLoop) -> None:
        client = Client([PIECE])

        async def receive() -> Message:
            message = await client.receive()
            loop.call_soon(asking.cancel)
            return message

        asking = loop.create_task(Lingering(refuse)(request(), receive, client.send))
        await settled_loop()
        assert asking.cancelled()

    in_manual_time(main)
