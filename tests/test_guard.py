"""A service with API keys: no way in without one, whichever way a request takes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from harness import DEADLINE, serving, wait_until
from openai_workers import Embed
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Scope
from workers import Echo

from mosec_asgi import Server, Worker, testing
from mosec_asgi.errors import KEY_IS_FOR_OTHERS, NO_KEY, WRONG_KEY
from mosec_asgi.protocols import OpenAI, OpenInference

KEY, EMBEDS = "key-for-everything-0123", "key-for-embeddings-0123"
GOOD = {"authorization": f"Bearer {KEY}"}
LIMITED = {"x-api-key": EMBEDS}


class Named(Worker):
    takes_request = True

    def forward(self, data: Any) -> str:
        return str(self.request().path_params["name"])


def keyed_server(**settings: Any) -> Server:
    server = Server(api_keys=[KEY, f"{EMBEDS} /v1/*"], **settings)
    server.append_worker(Echo)
    server.append_worker(Named, route="/models/{name}")
    server.append_worker(Embed, max_batch_size=4, route="/embed")
    server.add_protocol(OpenAI(embeddings={"minilm": "/embed"}))
    return server


@contextlib.asynccontextmanager
async def asked(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with testing.serving(server) as service:
        yield service.client


CLOSED = [
    ("GET", "/"), ("GET", "/metrics"), ("GET", "/openapi/metadata.json"), ("GET", "/openapi/swagger"),
    ("GET", "/openapi/swagger/"), ("GET", "/openapi/swagger/index.html"), ("POST", "/inference"), ("GET", "/inference"),
    ("OPTIONS", "/inference"), ("POST", "/models/a"), ("POST", "/v1/embeddings"), ("GET", "/v1/models"),
    ("GET", "/v1/models/minilm"), ("POST", "/unknown"), ("POST", "/v1/unknown"), ("GET", "/livez/../metrics"),
    ("POST", "//inference"), ("HEAD", "/metrics"),
]  # fmt: skip


async def test_no_path_but_health_answers_without_a_key() -> None:
    async with asked(keyed_server()) as client:
        for path in ("/livez", "/readyz"):
            assert (await client.get(path)).status_code == 200
        for method, path in CLOSED:
            without = await client.request(method, path)
            assert without.status_code == 401, (method, path)
            assert without.headers["www-authenticate"] == "Bearer"
            assert without.headers["x-request-id"]
            wrong = await client.request(method, path, headers={"x-api-key": KEY[:-1]})
            assert wrong.status_code == 401, (method, path)
            right = await client.request(method, path, headers=GOOD)
            assert right.status_code not in (401, 403), (method, path)


async def test_every_route_of_the_app_is_closed() -> None:
    """What is added later is closed, too: nothing of it is named here."""
    server = keyed_server()
    async with asked(server) as client:
        found = (await client.get("/openapi/metadata.json", headers=GOOD)).json()["paths"]
        for path in found.keys() - {"/livez", "/readyz"}:
            assert (await client.get(path)).status_code == 401, path


async def test_what_is_public_answers_without_a_key() -> None:
    async with asked(keyed_server(public=["root", "metrics", "docs"])) as client:
        for path in ("/", "/metrics", "/openapi/metadata.json", "/openapi/swagger/"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.post("/inference", json=1)).status_code == 401


async def test_a_key_for_some_paths_is_403_at_all_others() -> None:
    async with asked(keyed_server()) as client:
        answer = await client.post("/v1/embeddings", json={"model": "minilm", "input": "a"}, headers=LIMITED)
        assert answer.status_code == 200
        for path in ("/inference", "/metrics", "/unknown"):
            refused = await client.get(path, headers=LIMITED)
            assert (refused.status_code, refused.text) == (403, KEY_IS_FOR_OTHERS.text)


async def test_a_refusal_has_the_form_of_the_protocol() -> None:
    async with asked(keyed_server()) as client:
        plain = await client.post("/inference", json=1)
        assert (plain.text, plain.headers["content-type"]) == (NO_KEY.text, "text/plain; charset=utf-8")
        for path in ("/v1/embeddings", "/v1/models/minilm", "/v1/unknown"):
            error = (await client.get(path, headers={"x-api-key": "wrong"})).json()["error"]
            assert (error["message"], error["code"]) == (WRONG_KEY.text, "invalid_api_key"), path


async def test_a_refused_request_is_counted() -> None:
    async with asked(keyed_server()) as client:
        await client.post("/inference", json=1)
        metrics = (await client.get("/metrics", headers=GOOD)).text
        assert 'throughput_total{code="401",endpoint="/inference"} 1' in metrics


async def test_the_body_is_not_asked_for() -> None:
    server = keyed_server()
    async with testing.serving(server):
        sent: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("it was read")

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http", "http_version": "2", "method": "POST", "path": "/inference", "raw_path": b"/inference",
            "query_string": b"", "headers": [(b"content-length", b"9999999")],
        }  # fmt: skip
        await server(scope, receive, send)
        assert sent[0]["status"] == 401


async def test_a_mounted_service_is_closed_below_its_prefix() -> None:
    server = keyed_server()
    app = FastAPI()
    app.mount("/ml", server)
    async with testing.serving(server, app=app) as service:
        client = service.client
        assert (await client.get("/ml/readyz")).status_code == 200
        for path in ("/ml/inference", "/ml/metrics", "/ml/v1/models", "/ml"):
            assert (await client.get(path, follow_redirects=True)).status_code == 401, path
        assert (await client.post("/ml/inference", json=1, headers=GOOD)).status_code == 200
        assert (await client.get("/ml/v1/models", headers=LIMITED)).status_code == 200


async def test_a_browsers_question_before_a_request_is_answered_by_the_users_middleware() -> None:
    cors = Middleware(CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["POST"])
    server = Server(api_keys=[KEY], middleware=[cors])
    server.append_worker(Echo)
    async with asked(server) as client:
        origin = {"origin": "https://a.example"}
        before = await client.options("/inference", headers={**origin, "access-control-request-method": "POST"})
        assert before.status_code == 200
        refused = await client.post("/inference", json=1, headers=origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin["origin"])


async def test_the_document_says_where_a_key_is_needed() -> None:
    document = keyed_server(public="docs").openapi()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
    assert document["security"] == [{"bearer": []}, {"apiKey": []}]
    for path, operation in [(path, each) for path, item in document["paths"].items() for each in item.values()]:
        is_open = path in ("/livez", "/readyz")
        assert (operation.get("security") == []) == is_open, path
        assert ({"401", "403"} <= operation["responses"].keys()) == (not is_open), path
    server = Server()
    server.append_worker(Echo)
    assert "security" not in server.openapi()
    assert "securitySchemes" not in server.openapi()["components"]


async def test_with_openais_own_keys_a_request_needs_both() -> None:
    server = Server(api_keys=[KEY])
    server.append_worker(Embed, route="/embed")
    server.add_protocol(OpenAI(embeddings={"minilm": "/embed"}, keys=["of-openai"]))
    async with asked(server) as client:
        both = {"x-api-key": KEY, "authorization": "Bearer of-openai"}
        assert (await client.get("/v1/models", headers=both)).status_code == 200
        for name in both:
            assert (await client.get("/v1/models", headers={name: both[name]})).status_code == 401, name


async def test_the_health_of_a_protocol_is_open_and_the_rest_of_it_is_closed() -> None:
    server = Server(api_keys=[KEY])
    server.append_worker(Embed, max_batch_size=4, route="/embed")
    server.add_protocol(OpenInference({"embed": "/embed"}))
    async with asked(server) as client:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v2", "/v2/models/embed", "/v2/models/embed/ready", "/v2/models/embed/infer"):
            refused = await client.get(path)
            assert (refused.status_code, refused.json()) == (401, {"error": NO_KEY.text}), path


# -- real connections --------------------------------------------------------------------------------------------------

STAGES = "server.append_worker(Echo)"
WAYS = pytest.mark.parametrize("by", ["run", "uvicorn", "mounted"])


@WAYS
def test_a_request_without_a_key_is_answered_from_its_head(tmp_path: Path, by: str) -> None:
    with serving(tmp_path, STAGES, environment={"MOSEC_API_KEYS": KEY}, by=by) as program:
        path = "/ml/inference" if by == "mounted" else "/inference"
        head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n"
        with socket.create_connection(("127.0.0.1", program.port), DEADLINE) as client:
            client.sendall(f"{head}\r\n".encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 401")
        # Nor is a client told to go on that waits for it.
        with socket.create_connection(("127.0.0.1", program.port), DEADLINE) as client:
            client.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 401")
        assert program.client.post("/inference", json=1, headers=GOOD).status_code == 200


def test_keys_leave_the_direct_way_open_and_http2_closed(tmp_path: Path) -> None:
    with serving(tmp_path, STAGES, environment={"MOSEC_API_KEYS": KEY}) as program:
        assert not any("go through ASGI" in message for message in program.messages())
        command = ["curl", "-s", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code} %{http_version}"]
        asks = [*command, "-d", "1", f"{program.url}/inference"]
        assert subprocess.run(asks, capture_output=True, text=True, check=True).stdout == "401 2"
        asks += ["-H", f"x-api-key: {KEY}"]
        assert subprocess.run(asks, capture_output=True, text=True, check=True).stdout == "200 2"


async def test_the_direct_way_takes_requests_with_a_key_and_no_others() -> None:
    server = keyed_server()
    async with testing.serving(server):
        direct = (server.direct_routes() or {})[b"/inference"]
        headers = {b"content-length": b"1"}
        assert direct.takes({**headers, b"x-api-key": KEY.encode()})
        assert not direct.takes(headers)
        assert not direct.takes({**headers, b"x-api-key": EMBEDS.encode()})


def test_a_key_that_is_taken_out_of_the_file_is_refused_without_a_restart_on_open_connections_too(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    with serving(tmp_path, STAGES, environment={"MOSEC_API_KEY_FILE": str(file)}) as program:
        head = f"POST /inference HTTP/1.1\r\nhost: test\r\nx-api-key: {KEY}\r\ncontent-length: 1\r\n\r\n1".encode()
        with socket.create_connection(("127.0.0.1", program.port), DEADLINE) as client:

            def status() -> bytes:
                client.sendall(head)
                answer = client.recv(1000)
                return answer[9:12]

            # The second and the third are of a head that has come before.
            assert [status() for _ in range(3)] == [b"200"] * 3
            file.write_text("another-key-0123456789")
            wait_until(lambda: status() == b"401", "the old key still opens")
        new = {"x-api-key": "another-key-0123456789"}
        assert program.client.post("/inference", json=1, headers=new).status_code == 200
        assert KEY not in program.output
        assert "another-key" not in program.output
