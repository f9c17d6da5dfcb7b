"""The server object as an ASGI app in this process: on its own, mounted into others, over several event loops."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from harness import DEADLINE, POLL, child_processes, until
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from workers import Broken, BusyLoading, Echo, Gate, Raw

from mosec_asgi import Server, __version__
from mosec_asgi.errors import DefinitionError, StartupError

with warnings.catch_warnings():
    # Starlette 1.10 asks for httpx's successor here, and works with httpx.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

LIMIT = 1000
BODY = b'{"a": 1}'


def client_of(app: ASGIApp, root_path: str = "") -> httpx.AsyncClient:
    """Return a client that calls an app in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, root_path=root_path), base_url="http://test")


def echo_server(**settings: Any) -> Server:
    server = Server(**settings)
    server.append_worker(Echo)
    return server


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail a test that leaves a worker behind, unless it is that of the server that the module's tests share."""
    before = set(child_processes(os.getpid()))
    yield
    left = set(child_processes(os.getpid())) - before
    assert not left - tracker_processes()


def tracker_processes() -> set[int]:
    """Return the process that `multiprocessing` starts beside the first spawned one, and keeps."""
    from multiprocessing.resource_tracker import _resource_tracker

    return {_resource_tracker._pid}  # type: ignore[attr-defined]


# -- one server for all tests that do not change it --------------------------------------------------------------------

shared = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    server = Server(max_request_size=LIMIT, namespace="shared")
    server.append_worker(Echo)
    server.append_worker(Raw, route="/raw")
    async with server.lifespan():
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server) as client:
        yield client


async def runs(client: httpx.AsyncClient, stage: str) -> int:
    """Return how many items the workers of a stage have answered."""
    text = (await client.get("/metrics")).text
    found = re.search(rf'process_duration_second_count\{{connection="1",stage="{stage}"\}} (\d+)', text)
    return int(found[1]) if found else 0


@shared
async def test_root_says_that_the_service_is_there(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, "mosec-asgi service")
    assert (await client.head("/")).status_code == 200


@shared
async def test_livez_and_readyz_answer_200_while_all_is_well(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).status_code == 200
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "stages": {}})


@shared
async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    await client.post("/inference", content=BODY)
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert re.search(r'^shared_throughput_total\{code="200",endpoint="/inference"\} \d', answer.text, re.MULTILINE)


@shared
async def test_metrics_are_open_metrics_where_the_accept_header_asks_for_it(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


@shared
async def test_a_result_has_its_content_type_and_length(client: httpx.AsyncClient) -> None:
    answer = await client.post("/inference", content=BODY)
    assert (answer.status_code, answer.json()["echo"]) == (200, {"a": 1})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))


@shared
async def test_each_route_has_the_content_type_of_its_last_worker(client: httpx.AsyncClient) -> None:
    answer = await client.post("/raw", content=bytes(range(256)))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == bytes(range(256))


@shared
async def test_an_error_is_text(client: httpx.AsyncClient) -> None:
    answer = await client.post("/inference", content=b'"invalid"')
    assert (answer.status_code, answer.text) == (422, "request validation error: not this")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-length"] == str(len(answer.content))


@shared
async def test_404_lists_the_routes_and_405_names_the_methods(client: httpx.AsyncClient) -> None:
    missing = await client.post("/v1/inference", content=BODY)
    assert missing.text.startswith("Not Found: no such path; there are POST /inference")
    assert "/openapi/metadata.json" in missing.text
    wrong = await client.get("/inference")
    assert wrong.text == "Method Not Allowed: this path does not take GET; it takes POST"
    assert wrong.headers["allow"] == "POST"
    wrong = await client.post("/livez")
    assert "does not take POST; it takes" in wrong.text
    assert "GET" in wrong.text
    assert "server" in wrong.headers


@shared
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_answered_404(client: httpx.AsyncClient, method: str) -> None:
    assert (await client.request(method, "/unknown", content=BODY)).status_code == 404


@shared
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/inference", {"POST"}),
        ("PUT", "/raw", {"POST"}),
        ("DELETE", "/inference", {"POST"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
        ("POST", "/readyz", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_answered_405_with_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


@shared
async def test_an_empty_body_is_answered_400_and_reaches_no_worker(client: httpx.AsyncClient) -> None:
    before = await runs(client, "Raw_2")
    answer = await client.post("/raw", content=b"")
    assert (answer.status_code, answer.text) == (400, "no data provided")
    assert await runs(client, "Raw_2") == before


@shared
async def test_a_body_of_the_greatest_size_is_accepted(client: httpx.AsyncClient) -> None:
    assert len((await client.post("/raw", content=b"x" * LIMIT)).content) == LIMIT


@shared
async def test_a_body_that_is_declared_too_large_is_answered_413_before_it_is_read(
    server: Server, client: httpx.AsyncClient
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        assert len(sent) == 2, "the body was read"
        return {"type": "http.disconnect"}

    before = await runs(client, "Raw_2")
    await call(server, receive, headers={"content-length": str(LIMIT + 1)}, sent=sent)
    assert sent[0]["status"] == 413
    assert str(LIMIT) in sent[1]["body"].decode()
    assert await runs(client, "Raw_2") == before


@shared
async def test_an_upload_in_chunks_is_answered_413_as_soon_as_it_is_too_large(
    server: Server, client: httpx.AsyncClient
) -> None:
    sent: list[Message] = []
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        taken += not sent
        return {"type": "http.request", "body": b"x" * 100, "more_body": len(sent) < 2}

    before = await runs(client, "Raw_2")
    await call(server, receive, headers={"transfer-encoding": "chunked"}, sent=sent)
    assert sent[0]["status"] == 413
    assert taken <= LIMIT / 100 + 2
    assert await runs(client, "Raw_2") == before


@shared
async def test_an_upload_in_chunks_arrives_whole(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"%d" % number * 90

    answer = await client.post("/raw", content=chunks())
    assert answer.content == b"".join(b"%d" % number * 90 for number in range(10))


@shared
@pytest.mark.parametrize("path", ["/inference", "/raw"])
async def test_a_request_id_is_echoed(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, content=BODY, headers={"x-request-id": "order 66/a"})
    assert answer.headers["x-request-id"] == "order 66/a"


@shared
async def test_a_request_without_an_id_gets_one_of_its_own(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/inference", content=body) for body in (BODY, BODY, b"", b'"invalid"')]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in ids)


@shared
@pytest.mark.parametrize("bad", [b"", b"  ", b"x" * 129, b"a\tb", b"a\x7fb", b"\xc3\xa4", b"\xff"])
async def test_a_bad_request_id_is_replaced(client: httpx.AsyncClient, bad: bytes) -> None:
    answer = await client.post("/inference", content=BODY, headers=[(b"x-request-id", bad)])
    assert answer.status_code == 200
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@shared
async def test_every_answer_names_the_server(client: httpx.AsyncClient) -> None:
    answers = [await client.get(path) for path in ("/", "/livez", "/readyz", "/metrics", "/inference", "/unknown")]
    answers += [await client.post("/inference", content=body) for body in (BODY, b"", b"{", b"x" * (LIMIT + 1))]
    assert {answer.headers["server"] for answer in answers} == {f"mosec-asgi/{__version__}"}
    assert {answer.status_code for answer in answers} == {200, 400, 404, 405, 413}


@shared
async def test_a_client_that_leaves_before_its_body_is_complete_gets_no_answer(server: Server) -> None:
    messages = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}],
    )

    async def receive() -> Message:
        return next(messages)

    assert await call(server, receive) == []


@shared
async def test_a_websocket_is_refused(server: Server) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await server({"type": "websocket", "path": "/inference", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@shared
@pytest.mark.parametrize("path", ["/inference", "/readyz"])
async def test_a_slash_that_a_framework_has_added_is_none_of_the_clients(server: Server, path: str) -> None:
    method = "POST" if path.endswith("inference") else "GET"

    def adding(sent: str) -> ASGIApp:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            # As Litestar hands on a request to what it has mounted below /ml.
            mounted = {**scope, "path": path + "/", "raw_path": sent.encode(), "root_path": "/ml"}
            await server(mounted, receive, send)

        return app

    async with client_of(adding("/ml" + path)) as client:
        assert (await client.request(method, "/", content=BODY)).status_code == 200
    async with client_of(adding("/ml" + path + "/")) as client:
        assert (await client.request(method, "/", content=BODY)).status_code == 404


async def test_without_a_timeout_a_request_takes_its_time_unless_it_says_less(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = Server(timeout=0)
    server.append_worker(Gate, num=2)
    async with server.lifespan(), client_of(server) as client:
        waiting = asyncio.create_task(client.post("/inference", json=str(gate)))
        hurried = await client.post("/inference", json=str(gate), headers={"x-request-timeout": "50"})
        assert hurried.status_code == 408
        assert not waiting.done()
        gate.touch()
        assert (await waiting).json() == "opened"


async def test_middleware_gets_a_coroutine_function_as_asgi_3_has_it() -> None:
    asked: list[bool] = []

    class Tracing:
        """As OpenTelemetry's and Sentry's, which look whether they are given an app of ASGI 2."""

        def __init__(self, app: ASGIApp) -> None:
            self._app = app
            asked.append(inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__))

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self._app(scope, receive, send)

    server = Server(middleware=[Middleware(Tracing), Middleware(Tracing)])
    server.append_worker(Echo)
    async with server.lifespan(), client_of(server) as client:
        assert (await client.post("/inference", content=BODY)).status_code == 200
    assert asked == [True, True]


@shared
@pytest.mark.parametrize("path", ["/proxy/inference", "/inference"])
async def test_a_root_path_may_or_may_not_be_part_of_the_path(server: Server, path: str) -> None:
    async with client_of(server, root_path="/proxy") as client:
        assert (await client.post(path, content=BODY)).status_code == 200


async def call(
    app: ASGIApp,
    receive: Any,
    *,
    path: str = "/raw",
    headers: Mapping[str, str] | None = None,
    sent: list[Message] | None = None,
) -> list[Message]:
    """Call an app as a server does, without a client in between, and return what it has sent, in `sent` if given."""
    sent = [] if sent is None else sent

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("test", 1),
        "server": ("test", 80),
    }
    await app(scope, receive, send)
    return sent


# -- servers of a test's own -------------------------------------------------------------------------------------------


def gate_server(**settings: Any) -> Server:
    server = Server(**settings)
    server.append_worker(Gate)
    return server


async def remaining(client: httpx.AsyncClient) -> int:
    """Return how many requests are admitted and not yet answered."""
    found = re.search(r"^mosec_service_remaining_task (\d+)", (await client.get("/metrics")).text, re.MULTILINE)
    assert found
    return int(found[1])


async def until_remaining(client: httpx.AsyncClient, count: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while await remaining(client) != count:
        assert time.monotonic() < deadline, f"there are never {count} requests that remain"
        await asyncio.sleep(POLL)


async def test_over_capacity_a_request_is_answered_429_with_retry_after(tmp_path: Path) -> None:
    server, gate = gate_server(capacity=2), tmp_path / "gate"
    async with server.lifespan(), client_of(server) as client:
        admitted = [asyncio.create_task(client.post("/inference", json=str(gate))) for _ in range(2)]
        await until_remaining(client, 2)
        refused = await client.post("/inference", json=str(gate))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["x-request-id"]
        gate.touch()
        assert {answer.status_code for answer in await asyncio.gather(*admitted)} == {200}
        assert (await client.post("/inference", json=str(gate))).status_code == 200


async def test_a_request_that_takes_too_long_is_answered_408(tmp_path: Path) -> None:
    server, gate = gate_server(timeout=100), tmp_path / "gate"
    async with server.lifespan(), client_of(server) as client:
        answer = await client.post("/inference", json=str(gate))
        assert answer.status_code == 408
        assert await remaining(client) == 0
        gate.touch()


async def test_a_client_may_shorten_the_timeout_of_its_request(tmp_path: Path) -> None:
    server, gate = gate_server(timeout=60_000), tmp_path / "gate"
    async with server.lifespan(), client_of(server) as client:
        answer = await client.post("/inference", json=str(gate), headers={"x-request-timeout": "50"})
        assert answer.status_code == 408
        refused = await client.post("/inference", json=str(gate), headers={"x-request-timeout": "soon"})
        assert refused.status_code == 400
        assert "x-request-timeout" in refused.text
        assert await remaining(client) == 0
        gate.touch()


async def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    server, gate = gate_server(capacity=1), tmp_path / "gate"
    gone = asyncio.Event()
    body: list[Message] = [{"type": "http.request", "body": b'"%s"' % bytes(gate)}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async with server.lifespan(), client_of(server) as client:
        request = asyncio.create_task(call(server, receive, path="/inference"))
        await until_remaining(client, 1)
        gone.set()
        assert await request == []
        assert await remaining(client) == 0
        gate.touch()
        assert (await client.post("/inference", json=str(gate))).status_code == 200


async def test_while_models_load_all_is_answered_and_the_models_routes_by_503(tmp_path: Path) -> None:
    server, gate, answering = Server(), tmp_path / "gate", asyncio.Event()
    server.append_worker(Echo)
    server.append_worker(BusyLoading, args=(str(gate),), route="/busy")
    server.on_answering = answering.set
    async with client_of(server) as client:
        starting = asyncio.create_task(server.__aenter__())
        await asyncio.wait_for(answering.wait(), DEADLINE)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        stage = ready.json()["stages"]["BusyLoading_2"]
        assert re.fullmatch(r"0 of 1 workers are ready; loading for \d+\.\d s", stage)
        for path in ("/", "/livez", "/metrics", "/openapi/metadata.json", "/openapi/swagger/"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/inference", "/busy"):
            refused = await client.post(path, json=1)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert "still being loaded" in refused.text
        assert b"/busy" in (server.direct_routes() or {}), "a connection may live for longer than the load"
        assert not starting.done()
        gate.touch()
        await starting
        assert (await client.get("/readyz")).json()["status"] == "ready"
        assert (await client.post("/busy", json=1)).json() == 1
        await server.__aexit__(None, None, None)


async def test_a_request_after_a_start_that_has_failed_starts_nothing_again_where_the_program_ends() -> None:
    server = Server()
    server.append_worker(Broken)
    server.on_answering = lambda: None
    async with client_of(server) as client:
        with pytest.raises(StartupError):
            await server.__aenter__()
        refused = await client.post("/inference", json=1)
        assert (refused.status_code, refused.text) == (503, "the service could not be started")


async def test_a_request_whose_task_is_cancelled_frees_its_place(tmp_path: Path) -> None:
    server, gate = gate_server(capacity=1), tmp_path / "gate"
    async with server.lifespan(), client_of(server) as client:
        request = asyncio.create_task(client.post("/inference", json=str(gate)))
        await until_remaining(client, 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert await remaining(client) == 0
        gate.touch()


async def test_a_server_that_closes_finishes_what_it_has_and_refuses_the_rest(tmp_path: Path) -> None:
    server, gate = gate_server(), tmp_path / "gate"
    async with server.lifespan(), client_of(server) as client:
        admitted = asyncio.create_task(client.post("/inference", json=str(gate)))
        await until_remaining(client, 1)
        server.close()
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "shutting down")
        assert (await client.get("/livez")).status_code == 200
        refused = await client.post("/inference", json=str(gate))
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        gate.touch()
        assert (await admitted).status_code == 200


async def test_the_end_of_the_lifespan_waits_for_what_was_admitted(tmp_path: Path) -> None:
    server, gate = gate_server(), tmp_path / "gate"
    async with client_of(server) as client:
        async with server.lifespan():
            admitted = asyncio.create_task(client.post("/inference", json=str(gate)))
            await until_remaining(client, 1)
            asyncio.get_running_loop().call_later(0.1, gate.touch)
        assert (await admitted).status_code == 200


async def test_a_stage_that_cannot_start_fails_the_lifespan_with_the_workers_traceback() -> None:
    server = Server()
    server.append_worker(Broken)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    await server({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "RuntimeError: the weights are missing" in sent[0]["message"]
    assert "Broken_1" in sent[0]["message"]


async def test_a_stage_that_cannot_start_is_answered_503_where_no_lifespan_is_run() -> None:
    server = Server()
    server.append_worker(Broken)
    async with client_of(server) as client:
        for request_id in ("order 66", "order 67"):
            answer = await client.post("/inference", content=BODY, headers={"x-request-id": request_id})
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            assert answer.headers["x-request-id"] == request_id
            assert answer.headers["server"] == f"mosec-asgi/{__version__}"
        assert re.fullmatch("[0-9a-f]{32}", (await client.get("/readyz")).headers["x-request-id"])


def test_starlettes_test_client_runs_the_lifespan() -> None:
    with TestClient(echo_server()) as client:
        assert client.get("/readyz").status_code == 200
        pids = {client.post("/inference", content=BODY).json()["pid"] for _ in range(3)}
        assert len(pids) == 1


def test_starlettes_test_client_without_its_lifespan_starts_the_workers_for_each_of_its_event_loops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = echo_server()
    client = TestClient(server)
    pids = {client.post("/inference", content=BODY).json()["pid"] for _ in range(2)}
    assert len(pids) == 2
    assert "starting the workers at the first request" in caplog.text
    with TestClient(server) as client:
        assert client.post("/inference", content=BODY).status_code == 200


def test_mounted_with_its_lifespan_the_workers_are_ready_before_the_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = echo_server()
    app = FastAPI(lifespan=server.lifespan)
    app.mount("/ml", server)

    @app.get("/own")
    def own() -> str:
        return "the app's own"

    with TestClient(app) as client:
        assert client.get("/ml/readyz").json()["status"] == "ready"
        assert client.post("/ml/inference", content=BODY).json()["echo"] == {"a": 1}
        assert client.get("/ml/").text == "mosec-asgi service"
        assert client.get("/ml/inference").status_code == 405
        assert client.post("/ml/unknown", content=BODY).status_code == 404
        assert client.post("/inference", content=BODY).status_code == 404
        assert client.get("/own").json() == "the app's own"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
async def test_a_lifespan_that_was_called_is_refused_with_what_to_write(framework: Any) -> None:
    app = framework(lifespan=echo_server().lifespan())
    text = rf"write {framework.__name__}\(lifespan=server\.lifespan\), without the parentheses"
    with pytest.raises(DefinitionError, match=text):
        async with app.router.lifespan_context(app):
            pytest.fail("it was entered")


async def test_mounted_without_its_lifespan_it_starts_once_at_the_first_requests_and_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = echo_server()
    app = FastAPI()
    app.mount("/ml", server)
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.post("/ml/inference", content=BODY) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["pid"] for answer in answers}) == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "lifespan=server.lifespan" in warnings[0]
    async with server.lifespan():
        pass


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
async def test_one_server_may_be_mounted_twice(framework: type[Starlette]) -> None:
    server = echo_server()
    app = framework(routes=[Mount("/a", server), Mount("/b/c", server)], lifespan=server.lifespan)
    async with app.router.lifespan_context(app), client_of(app) as client:
        answers = [await client.post(f"{path}/inference", content=BODY) for path in ("/a", "/b/c")]
        assert len({answer.json()["pid"] for answer in answers}) == 1


async def test_two_servers_live_in_one_process() -> None:
    one, other = echo_server(), Server()
    other.append_worker(Echo, route="/other")
    async with one.lifespan(), other.lifespan(), client_of(one) as client, client_of(other) as other_client:
        answers = [
            await client.post("/inference", content=BODY),
            await other_client.post("/other", content=BODY),
        ]
        assert len({answer.json()["pid"] for answer in answers}) == 2
        assert (await other_client.post("/inference", content=BODY)).status_code == 404
        for asked, path in ((client, "/inference"), (other_client, "/other")):
            text = (await asked.get("/metrics")).text
            assert re.findall(r'_throughput_total\{code="200",endpoint="(.+)"\} 1$', text, re.MULTILINE) == [path]


def test_one_server_lives_on_one_event_loop_after_another() -> None:
    server = echo_server()

    async def ask() -> int:
        async with server.lifespan(), client_of(server) as client:
            return int((await client.post("/inference", content=BODY)).json()["pid"])

    assert len({asyncio.run(ask()) for _ in range(3)}) == 3


def test_a_server_whose_event_loop_was_closed_under_it_starts_afresh_on_the_next() -> None:
    server = echo_server()
    before = set(child_processes(os.getpid()))

    async def ask() -> int:
        async with client_of(server) as client:
            return int((await client.post("/inference", content=BODY)).json()["pid"])

    pids = [asyncio.run(ask()) for _ in range(3)]
    assert len(set(pids)) == 3

    async def last() -> None:
        async with server.lifespan():
            await until(lambda: len(set(child_processes(os.getpid())) - before - tracker_processes()) == 1, "one left")

    asyncio.run(last())


# -- starts that nobody waits for any more -----------------------------------------------------------------------------


async def test_a_start_that_is_cancelled_leaves_no_worker_and_can_be_tried_again() -> None:
    server = echo_server()
    before = set(child_processes(os.getpid()))
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), server.lifespan():
                pytest.fail("the workers cannot be ready so soon")
        assert not set(child_processes(os.getpid())) - before - tracker_processes()
    async with server.lifespan(), client_of(server) as client:
        assert (await client.post("/inference", json=1)).status_code == 200


async def test_a_start_goes_on_while_another_waits_for_it() -> None:
    server = echo_server()
    first, second = (asyncio.ensure_future(server.__aenter__()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()
    async with client_of(server) as client:
        assert (await client.post("/inference", json=1)).status_code == 200
    await server.__aexit__(None, None, None)


async def test_a_start_by_a_request_goes_on_when_that_request_is_cancelled() -> None:
    server = echo_server()
    async with client_of(server) as client:
        request = asyncio.ensure_future(client.post("/inference", json=1))
        await until(lambda: server._lifetime.is_starting, "no start")
        request.cancel()
        assert (await client.post("/inference", json=1)).status_code == 200
    async with server:
        pass


async def test_any_fault_at_the_start_fails_the_lifespan() -> None:
    class Odd:
        def __init__(self, app: ASGIApp) -> None:
            raise LookupError("no such certificate")

    server = Server(middleware=[Middleware(Odd)])
    server.append_worker(Echo)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    await server({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "LookupError: no such certificate" in sent[0]["message"]
