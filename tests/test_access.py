from __future__ import annotations

import logging
from typing import Any

import pytest
from common import FakeClock, told, until
from fake_engine import FakeClient
from starlette.types import Message, Receive, Scope, Send

from mosec_asgi.web.access import AccessLog

FIELDS = ("method", "path", "status", "duration_ms")


class Scripted:
    """An app that sends what it is told, and keeps what it was asked."""

    def __init__(self, clock: FakeClock, *messages: Message | Exception, seconds: float = 0.25) -> None:
        self.clock = clock
        self.messages = messages
        self.seconds = seconds
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = scope["headers"]
        self.clock.advance(self.seconds)
        for message in self.messages:
            if isinstance(message, Exception):
                raise message
            await send(message)


def start(status: int) -> Message:
    return {"type": "http.response.start", "status": status, "headers": []}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def access(
    logged: pytest.LogCaptureFixture, *messages: Message | Exception, path: str = "/a", **headers: str
) -> tuple[logging.LogRecord, FakeClient, Scripted]:
    """Ask an app that sends these messages; return the one line that is logged."""
    clock = FakeClock()
    app = Scripted(clock, *messages)
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    client = FakeClient(AccessLog(app, clock), b"secret", pairs, path)
    await until(client.call.done)
    [record] = [one for one in logged.records if one.name == "mosec_asgi.web.access"]
    return record, client, app


@pytest.mark.parametrize("status", [200, 422, 503])
async def test_a_line_says_how_a_request_has_ended(logged: pytest.LogCaptureFixture, status: int) -> None:
    record, client, _ = await access(logged, start(status), body(b"answer"))
    assert told(record, *FIELDS) == ("POST", "/a", status, 250.0)
    assert record.getMessage() == f"POST /a {status} in 250.0 ms"
    assert (client.status, client.body) == (status, b"answer")


async def test_a_stream_has_one_line_at_its_end(logged: pytest.LogCaptureFixture) -> None:
    record, client, _ = await access(logged, start(200), body(b"a", more=True), body(b"b", more=True), body())
    assert record.getMessage() == "POST /a 200 in 250.0 ms"
    assert client.pieces == [b"a", b"b", b""]


async def test_a_stream_that_was_broken_off_says_so(logged: pytest.LogCaptureFixture) -> None:
    record, _, _ = await access(logged, start(200), body(b"a", more=True))
    assert record.getMessage() == "POST /a 200, not finished, in 250.0 ms"


async def test_a_client_that_got_no_answer_has_left(logged: pytest.LogCaptureFixture) -> None:
    record, _, _ = await access(logged)
    assert told(record, "status") == (499,)


async def test_an_error_of_the_app_is_500_and_goes_on(logged: pytest.LogCaptureFixture) -> None:
    record, client, _ = await access(logged, ValueError("broken"))
    assert told(record, "status") == (500,)
    with pytest.raises(ValueError, match="broken"):
        client.call.result()


async def test_the_line_has_the_id_that_the_app_sees(logged: pytest.LogCaptureFixture) -> None:
    record, _, app = await access(logged, start(200), body(), x_request_id="order 66")
    assert told(record, "request_id") == ("order 66",)
    assert dict(app.headers)[b"x-request-id"] == b"order 66"


@pytest.mark.parametrize("headers", [{}, {"x_request_id": "x" * 1000}])
async def test_a_request_without_a_good_id_gets_one(logged: pytest.LogCaptureFixture, headers: Any) -> None:
    record, _, app = await access(logged, start(200), body(), **headers)
    [request_id] = told(record, "request_id")
    assert len(str(request_id)) == 32
    assert dict(app.headers)[b"x-request-id"] == str(request_id).encode()


async def test_a_path_cannot_write_lines_of_its_own(logged: pytest.LogCaptureFixture) -> None:
    record, _, _ = await access(logged, start(404), body(), path="/a\n{}\x1b[31m/é")
    assert told(record, "path") == ("/a%0A%7B%7D%1B%5B31m/%C3%A9",)
    assert "secret" not in record.getMessage()
