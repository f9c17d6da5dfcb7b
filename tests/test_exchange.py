"""Another protocol than mosec's, written in this file alone: several calls a request, JSON errors, streams or not."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from common import until
from direct_side import post, serving

from mosec_asgi.errors import Failure, ValidationError
from mosec_asgi.messages import OK, Call, Chunk, Outcome
from mosec_asgi.web.exchange import Request, StreamForm
from mosec_asgi.web.responses import Response

JSON = ((b"content-type", b"application/json"),)


class ListForm:
    """Pieces named by the place of their call."""

    headers = ((b"content-type", b"application/x-ndjson"),)
    comment = None

    def __init__(self, places: dict[int, int]) -> None:
        self._places = places

    def chunk(self, chunk: Chunk) -> bytes:
        return b"%d:%b\n" % (self._places[chunk.call_id], chunk.payload)

    def end(self) -> bytes:
        return b"done\n"

    def failure(self, failure: Failure, *, begun: bool) -> bytes | None:
        return b"failed: %b\n" % failure.text.encode() if begun else None


class ListRoute:
    """Takes a JSON list, asks for each item, and answers with the list of what became of them."""

    methods: Sequence[str] = ("POST",)
    takes_request = False
    admits = False

    def __init__(self, path: str, new_id: Any, *, streams: bool) -> None:
        self.path = path
        self.streams = streams
        self._new_id = new_id

    def calls(self, request: Request) -> Sequence[Call] | Failure:
        try:
            items = json.loads(request.body)
        except ValueError as error:
            raise ValidationError("no JSON") from error
        calls = [Call(self._new_id(), 0, json.dumps(item).encode(), request.request_id) for item in items]
        request.state = {call.id: place for place, call in enumerate(calls)}
        return calls or Failure(422, "an empty list")

    def respond(self, request: Request, outcomes: Sequence[Outcome]) -> Response:
        for outcome in outcomes:
            if outcome.failure is not None:
                return self.refuse(request, outcome.failure)
        return Response(OK, JSON, b"[%b]" % b",".join(outcome.payload for outcome in outcomes))

    def refuse(self, request: Request, failure: Failure) -> Response:
        return Response(int(failure.code), JSON, json.dumps({"error": failure.text}).encode())

    def stream(self, request: Request) -> StreamForm | None:
        return ListForm(request.state) if b"x-stream" in request.headers else None


def lists(*, streams: bool) -> dict[str, Any]:
    return {"routes": lambda new_id: [ListRoute("/list", new_id, streams=streams)]}


WAYS = pytest.mark.parametrize("streams", [False, True], ids=["direct", "asgi"])


@WAYS
async def test_the_outcomes_of_several_calls_are_answered_together_in_their_order(streams: bool) -> None:
    async with serving(app=lists(streams=streams)) as side, side.client() as client:
        client.send(post(b"[1, 2, 3]", "/list"))
        await side.task(3)
        for task in reversed(side.service.tasks):
            task.answer(b"<%b>" % task.body)
        response = await client.response()
        assert (response.status, response.body) == (200, b"[<1>,<2>,<3>]")
        assert response.header("content-type") == "application/json"
        assert side.asked == streams
        assert side.metrics.throughput == {("/list", 200): 1}


@WAYS
@pytest.mark.parametrize(
    ("body", "status", "error"),
    [(b"[]", 422, "an empty list"), (b"{", 422, "request validation error: no JSON")],
)
async def test_each_failure_has_the_protocols_form(streams: bool, body: bytes, status: int, error: str) -> None:
    async with serving(app=lists(streams=streams)) as side, side.client() as client:
        client.send(post(body, "/list"))
        response = await client.response()
        assert (response.status, json.loads(response.body)) == (status, {"error": error})
        client.send(post(b"[1, 2]", "/list"))
        await side.task(2)
        side.service.tasks[0].fail(429, "busy")
        side.service.tasks[1].answer(b"1")
        response = await client.response()
        assert (response.status, json.loads(response.body)) == (429, {"error": "busy"})


@WAYS
async def test_a_client_that_leaves_frees_all_calls_of_its_request(streams: bool) -> None:
    async with serving(app=lists(streams=streams)) as side, side.client() as client:
        client.send(post(b"[1, 2, 3]", "/list"))
        await side.task(3)
        side.service.tasks[1].answer(b"2")
        client.leave()
        await until(lambda: sorted(side.service.cancelled) == [1, 3])


async def test_the_streams_of_several_calls_go_out_as_one_and_each_has_its_credit() -> None:
    async with serving(app=lists(streams=True)) as side, side.client() as client:
        client.send(post(b"[1, 2]", "/list", X_Stream="1"))
        await side.task(2)
        first, second = side.service.tasks
        second.chunk(b"b")
        first.chunk(b"aa")
        second.answer()
        first.answer()
        answer = await client.until(b"0\r\n\r\n")
        assert b"1:b\n0:aa\ndone\n" in answer
        assert (sum(first.taken), sum(second.taken)) == (2, 1)


async def test_a_stream_that_fails_before_it_has_begun_is_an_ordinary_answer_where_its_form_says_so() -> None:
    async with serving(app=lists(streams=True)) as side, side.client() as client:
        client.send(post(b"[1]", "/list", X_Stream="1"))
        (await side.task(1)).fail(500, "broken")
        response = await client.response()
        assert (response.status, json.loads(response.body)) == (500, {"error": "broken"})


async def test_the_access_log_has_a_line_for_each_request_on_the_direct_way(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mosec_asgi.web.access")
    async with serving(app={"access_log": True}) as side, side.client() as client:
        client.send(post(X_Request_Id="mine"))
        (await side.task(1)).answer(b"1")
        await client.response()
        client.send(post(X_Request_Id="gone"))
        await side.task(2)
        client.leave()
        await until(lambda: len(caplog.records) == 2)
        assert side.asked == 0
    lines = [(record.__dict__["request_id"], record.__dict__["status"]) for record in caplog.records]
    assert lines == [("mine", 200), ("gone", 499)]


@pytest.mark.parametrize(("size", "packed"), [(100, False), (5000, True), (1_000_000, True)])
async def test_results_are_packed_on_the_direct_way(size: int, packed: bool) -> None:
    async with serving(app={"compressed": True}) as side, side.client() as client:
        client.send(post(Accept_Encoding="gzip"))
        (await side.task()).answer(b"x" * size)
        response = await client.response()
        assert side.asked == 0
        assert response.header("vary") == "accept-encoding"
        assert (response.header("content-encoding") == "gzip") == packed
        assert (gzip.decompress(response.body) if packed else response.body) == b"x" * size
