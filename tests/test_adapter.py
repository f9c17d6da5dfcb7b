"""Endpoints of protocols as routes of the web: what becomes of their items, whatever they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import pytest

from mosec_asgi import Reply, Server, ServerError, SSEWorker, ValidationError, Worker, testing
from mosec_asgi.protocols import Ask, Endpoint, EventForm, Problem, Protocol, Response, json_response
from mosec_asgi.web.protocols import adapter


class Double(Worker):
    """Twice the number; text is refused, and some have a status of their own."""

    def forward(self, data: Any) -> Any:
        if data == "array":
            import numpy as np

            return np.arange(100_000, dtype=np.float64)
        if isinstance(data, str):
            return Reply(data, status=418 if data == "teapot" else 201)
        return [ValidationError("no number") if item is None else item * 2 for item in data]


class Told(Worker):
    """What is known of the request."""

    takes_request = True

    def forward(self, data: Any) -> Any:
        request = self.request()
        return [data, request.path_params, request.query, request.method, request.route]


class Count(SSEWorker):
    """Numbers up to one, as objects."""

    def forward(self, data: int) -> Iterator[Any]:
        for number in range(data):
            yield {"number": number}
        if data == 13:
            raise ValidationError("unlucky")
        if data == 14:
            yield Unreadable()
        if data < 0:
            yield {"number": data}


class Unreadable:
    """What cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class Panic(BaseException):
    """As libraries in Rust raise it."""


class Numbers(EventForm):
    """A line for each event."""

    content_type = "application/x-ndjson"
    comment = None

    def piece(self, event: Any, place: int) -> bytes:
        if event["number"] == 7:
            raise RuntimeError("the endpoint's own fault")
        if event["number"] == -1:
            raise SystemExit("the endpoint's own fault")
        if event["number"] == -2:
            raise ServerError("not to be told")
        return b"%d:%d\n" % (place, event["number"])

    def end(self) -> bytes:
        return b"end\n"

    def failure(self, problem: Problem) -> bytes | None:
        if "not to be told" in problem.text:
            raise SystemExit("the endpoint's own fault")
        return f"! {problem.code} {problem.text}\n".encode()


class Any_(Endpoint):
    """Has a list run, as the query says, and tells all of it."""

    methods = ("GET", "POST")
    max_calls = 300

    def __init__(self, path: str, route: str) -> None:
        self.path = path
        self.routes = [route]

    def ask(self, request: Any) -> Ask | Response:
        if request.query == b"now":
            return json_response({"method": request.method, "params": dict(request.path_params)})
        if request.query == b"standing":
            assert self.standing is not None
            return json_response([self.standing.ready(), self.standing.ready(self.routes[0])])
        if request.query == b"hasty":
            return Ask(self.routes[0], [0], timeout=1e-9)
        if request.query == b"elsewhere":
            return Ask("/nowhere", [1])
        items = json.loads(request.body) if request.body else [0]
        return Ask(self.routes[0], items, context=b"stream" in request.query)

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        return json_response([getattr(result, "size", result) for result in results])

    def error(self, problem: Problem) -> Response:
        return json_response({"problem": problem.text, "place": problem.place}, problem.code)

    def stream(self, ask: Ask) -> EventForm | None:
        return Numbers() if ask.context else None


FAULTS = {error.__name__: error for error in (ValueError, SystemExit, GeneratorExit, asyncio.CancelledError, Panic)}
UNSENDABLE: dict[str, Any] = {
    "nothing": None,
    "text": Response(200, (), "text"),  # type: ignore[arg-type]
    "no status": Response(99, (), b""),
    "headers of text": Response(200, [("a", "b")], b""),  # type: ignore[list-item]
    "no headers": Response(200, [b"a"], b""),  # type: ignore[list-item]
    "two headers in one": Response(200, [(b"a", b"b\r\nc: d")], b""),
    "a name of two words": Response(200, [(b"a b", b"c")], b""),
}


class Unruly(Any_):
    """Raises, or answers with what cannot be sent: the header says in which method, and what."""

    def admit(self, request: Any) -> Response | None:
        return _done("admit", request.headers[b"x-does"].decode(), None)

    def ask(self, request: Any) -> Ask | Response:
        does = request.headers[b"x-does"].decode()
        item = "teapot" if does.startswith("error") else "fine"
        asked: Ask | Response = _done("ask", does, Ask(self.routes[0], [item], context=does))
        return asked

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        response: Response = _done("answer", ask.context, json_response(results))
        return response

    def error(self, problem: Problem) -> Response:
        response: Response = _done("error", problem.ask.context if problem.ask else "", super().error(problem))
        return response


def _done(where: str, does: str, usual: Any) -> Any:
    method, _, what = does.partition(" ")
    if method == where and what in FAULTS:
        raise FAULTS[what]("a secret")
    return UNSENDABLE[what] if method == where and what in UNSENDABLE else usual


class All(Protocol):
    """An endpoint for each route."""

    def learn(self, pipelines: Any) -> None:
        self.known = {route: [worker.__name__ for worker in workers] for route, workers in pipelines.items()}

    def endpoints(self) -> Sequence[Endpoint]:
        return [
            Any_("/p/double", "/double"),
            Any_("/p/single", "/single"),
            Any_("/p/told/{name}", "/told"),
            Any_("/p/count", "/count"),
            Unruly("/p/unruly", "/single"),
        ]


class Single(Double):
    """One at a time."""


@contextlib.asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    server = Server(**settings)
    server.append_worker(Double, max_batch_size=16, route="/double")
    server.append_worker(Single, route="/single")
    server.append_worker(Told, route="/told")
    server.append_worker(Count, route="/count")
    server.add_protocol(All())
    async with testing.serving(server) as service:
        yield service, service.client


async def test_items_are_objects_and_their_results_come_back_in_order() -> None:
    async with served() as (_, client):
        assert (await client.post("/p/double", json=[1])).json() == [2]
        assert (await client.post("/p/double", json=list(range(300)))).json() == [2 * n for n in range(300)]
        assert (await client.post("/p/single", json=["array"])).json() == [100_000]


async def test_the_place_of_the_item_that_failed_is_known() -> None:
    async with served() as (service, client):
        answer = await client.post("/p/double", json=[*range(50), None, *range(50)])
        assert (answer.status_code, answer.json()) == (
            422,
            {"problem": "request validation error: no number", "place": 50},
        )
        assert service.statistics.admitted == 0


@pytest.mark.parametrize("items", [[], list(range(301))])
async def test_a_request_has_a_bounded_number_of_items(items: list[int]) -> None:
    async with served() as (_, client):
        answer = await client.post("/p/double", json=items)
    assert (answer.status_code, "1 to 300 items" in answer.json()["problem"]) == (400, True)


async def test_an_endpoint_may_answer_without_a_call_and_by_get() -> None:
    async with served() as (_, client):
        answer = await client.get("/p/told/x?now")
        assert answer.json() == {"method": "GET", "params": {"name": "x"}}
        answer = await client.get("/p/told/x?a=b")
        assert answer.json() == [[0, {"name": "x"}, {"a": "b"}, "GET", "/p/told/{name}"]]
        assert (await client.options("/p/told/x")).headers["allow"] == "GET, HEAD, OPTIONS, POST"
        assert (await client.put("/p/told/x")).status_code == 405


async def test_an_endpoint_knows_whether_routes_can_answer_and_its_protocol_which_workers_there_are() -> None:
    server = Server()
    server.append_worker(Double, route="/double")
    server.append_worker(Single, route="/single")
    for path, worker in (("/told", Told), ("/count", Count)):
        server.append_worker(worker, route=path)
    protocol = All()
    server.add_protocol(protocol)
    async with testing.serving(server) as service:
        assert (await service.client.get("/p/double?standing")).json() == [True, True]
    assert protocol.known == {"/double": ["Double"], "/single": ["Single"], "/told": ["Told"], "/count": ["Count"]}


async def test_a_request_has_no_more_time_than_its_endpoint_says() -> None:
    async with served() as (_, client):
        for headers in ({}, {"x-request-timeout": "1000"}):
            answer = await client.get("/p/single?hasty", headers=headers)
            assert answer.status_code == 408


async def test_a_reply_of_a_worker_is_its_value_or_its_error() -> None:
    async with served() as (_, client):
        assert (await client.post("/p/single", json=["fine"])).json() == ["fine"]
        answer = await client.post("/p/single", json=["fine", "teapot"])
        assert (answer.status_code, answer.json()) == (418, {"problem": "teapot", "place": 1})


async def test_the_fault_of_an_endpoint_is_500_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_, client):
        answer = await client.post("/p/double", content=b"{")
        assert (answer.status_code, answer.json()["problem"]) == (500, "inference internal error")
        answer = await client.post("/p/double?elsewhere", content=b"1")
        assert (answer.status_code, "'/nowhere'" in answer.json()["problem"]) == (500, True)
    assert len([record for record in caplog.records if record.message == "a request was not answered"]) == 2


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("where", ["admit", "ask", "answer"])
async def test_whatever_an_endpoint_raises_is_the_fault_of_its_request(
    where: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as (service, client):
        answer = await client.post("/p/unruly", headers={"x-does": f"{where} {error}", "x-request-id": "mine"})
        assert (answer.status_code, answer.json()["problem"]) == (500, "inference internal error")
        assert (await client.post("/p/unruly", headers={"x-does": "nothing"})).json() == ["fine"]
        assert service.statistics.admitted == 0
    [record] = [record for record in caplog.records if record.message == "a request was not answered"]
    assert (record.exc_info is not None, record.__dict__["request_id"]) == (True, "mine")


@pytest.mark.parametrize("what", [*FAULTS, *UNSENDABLE])
async def test_a_failure_to_which_an_endpoint_cannot_give_a_form_is_told_as_text(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as (_, client):
        answer = await client.post("/p/unruly", headers={"x-does": f"error {what}"})
        assert (answer.status_code, answer.text) == (418, "teapot")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert (await client.post("/p/unruly", headers={"x-does": "nothing"})).json() == ["fine"]
    assert "the endpoint /p/unruly cannot give a failure its form: teapot" in caplog.text


@pytest.mark.parametrize("what", UNSENDABLE)
@pytest.mark.parametrize("where", ["ask", "answer"])
async def test_an_answer_that_cannot_be_sent_is_a_fault_of_the_endpoint(where: str, what: str) -> None:
    async with served() as (_, client):
        answer = await client.post("/p/unruly", headers={"x-does": f"{where} {what}"})
        assert answer.status_code == 500
        assert "problem" in answer.json()
        assert (await client.post("/p/unruly", headers={"x-does": "nothing"})).json() == ["fine"]


async def test_an_event_that_cannot_be_read_fails_an_answer_that_would_lack_it() -> None:
    async with served() as (_, client):
        answer = await client.post("/p/count", json=[14])
        assert (answer.status_code, "cannot be unpickled" in answer.json()["problem"]) == (500, True)
        assert len((await client.post("/p/count", json=[2])).json()[0]) == 2


async def test_a_stream_is_gathered_or_sent_as_it_is_made() -> None:
    async with served() as (_, client):
        assert (await client.post("/p/count", json=[2, 1])).json() == [[{"number": 0}, {"number": 1}], [{"number": 0}]]
        answer = await client.post("/p/count?stream", json=[2, 1])
        assert answer.headers["content-type"] == "application/x-ndjson"
        *lines, end = answer.text.splitlines()
        assert (sorted(lines), end) == (["0:0", "0:1", "1:0"], "end")


async def test_more_than_the_buffer_of_a_stream_is_gathered() -> None:
    async with served(stream_buffer=1024) as (_, client):
        [events] = (await client.post("/p/count", json=[5000])).json()
        assert len(events) == 5000


async def test_what_is_gathered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MOST_GATHERED", 1000)
    most = 0
    gather = adapter.ProtocolRoute.gather

    def counting(self: Any, request: Any, chunk: Any) -> None:
        nonlocal most
        gather(self, request, chunk)
        most = max(most, sum(map(len, request.state.events)))

    monkeypatch.setattr(adapter.ProtocolRoute, "gather", counting)
    async with served() as (_, client):
        answer = await client.post("/p/count", json=[5000])
        assert 0 < most < 100
        assert (answer.status_code, "larger than 1000 bytes" in answer.json()["problem"]) == (500, True)
        assert len((await client.post("/p/count", json=[2])).json()) == 1


async def test_a_stream_that_fails_ends_with_the_endpoints_word_and_so_does_a_fault_of_its_form() -> None:
    async with served() as (_, client):
        answer = await client.post("/p/count?stream", json=[13])
        assert answer.text.splitlines()[:7] == [f"0:{n}" for n in range(7)]
        assert "end" not in answer.text
        answer = await client.post("/p/count?stream", json=[5])
        assert answer.text.endswith("0:4\nend\n")
        # One that is an `Exception`, and one that is none.
        for number in (9, -1):
            answer = await client.post("/p/count?stream", json=[number])
            assert answer.text.splitlines()[-1] == "! 500 inference internal error"
        assert (await client.post("/p/count?stream", json=[-2])).text == ""
        assert (await client.post("/p/count?stream", json=[1])).text == "0:0\nend\n"


async def test_all_items_together_have_the_time_of_the_request() -> None:
    async def check() -> None:
        async with served(timeout=1000) as (service, client):
            # Eight at a time: no call is late, and all together are.
            service.worker(Single).slow(0.1)
            answer = await client.post("/p/single", json=[[1]] * 20)
            assert answer.status_code in (408, 429)
            answer = await client.post("/p/single", json=[[1]] * 3)
            assert answer.json() == [[2]] * 3
            assert service.statistics.admitted == 0

    await asyncio.to_thread(testing.run, check())
