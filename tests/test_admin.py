"""The admin socket: who may use it, what it takes, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from common import settled_loop

from mosec_asgi import Server, Worker, admin
from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import private_socket


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


def server_at(path: Path) -> Server:
    server = Server(admin_socket=str(path), timeout=20_000)
    server.append_worker(Echo, executor="thread")
    return server


async def said(path: Path, request: bytes) -> bytes:
    """Return all that comes back for some bytes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request)
        return await reader.read()
    except OSError:
        # Closed before it was read.
        return b""
    finally:
        writer.close()


async def asked(path: Path, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    answer = await said(path, head.encode() + data)
    status, _, content = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), json.loads(content)


async def test_a_service_is_seen_and_changed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with server_at(path) as server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        status, told = await asked(path, "GET", "/status")
        assert (status, told["state"], told["pid"]) == (200, "serving", os.getpid())
        assert told["values"] == {
            "Echo_1": {"max_batch_size": 1, "max_wait_time": 0, "timeout": 0, "latency_target": 0}
        }
        status, told = await asked(path, "POST", "/scale", {"stage": "Echo_1", "num": 2})
        assert (status, told["stages"][0]["ready"]) == (200, 2)
        assert (await asked(path, "POST", "/configure", {"stage": 1, "latency_target": 7}))[0] == 200
        assert (await asked(path, "POST", "/restart"))[0] == 200
        assert server.statistics().stages[0].ready == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "message"),
    [
        ("POST", "/scale", {"stage": "Echo_1", "num": 0}, 400, "at least 1"),
        ("POST", "/scale", {"stage": "Echo_1"}, 400, "num is missing; the fields are stage, num"),
        ("POST", "/scale", {"stage": "Echo_1", "num": 2, "now": True}, 400, "'now' is not known here"),
        ("POST", "/scale", {"stage": "Other_1", "num": 2}, 400, "there is no stage"),
        ("POST", "/configure", {"stage": 1, "num": 2}, 400, "'num' is not known here"),
        ("POST", "/configure", {"stage": 1}, 400, "nothing to change"),
        ("POST", "/restart", {"stage": [1]}, 400, "there is no stage"),
        ("POST", "/restart", [1], 400, "an object of JSON"),
        ("POST", "/restart", b"{", 400, "no JSON"),
        ("GET", "/restart", None, 405, "asked by POST"),
        ("POST", "/status", {}, 405, "read by GET"),
        ("GET", "/metrics", None, 404, "there is no '/metrics'"),
    ],
)
async def test_what_does_not_fit_is_refused(
    tmp_path: Path, method: str, target: str, body: Any, status: int, message: str
) -> None:
    path = tmp_path / "admin.sock"
    async with server_at(path) as server:
        code, told = await asked(path, method, target, body)
        assert code == status
        assert message in told["error"]
        assert server.statistics().stages[0].wanted == 1


async def test_what_is_read_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SECONDS", 0.2)
    path = tmp_path / "admin.sock"
    async with server_at(path):
        assert (await asked(path, "POST", "/scale", b" " * (admin.MOST_BODY + 1)))[0] == 413
        assert (await said(path, b"GET / HTTP/1.1\r\nx: " + b"x" * admin.MOST_HEAD)).startswith(b"HTTP/1.1 400 ")
        assert (await said(path, b"no request\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        # One that never comes to its end.
        assert (await said(path, b"GET / HTTP/1.1\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_connections_have_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with server_at(path):
        held = [await asyncio.open_unix_connection(str(path)) for _ in range(admin.MOST_CONNECTIONS)]
        await settled_loop()
        assert await said(path, b"GET / HTTP/1.1\r\n\r\n") == b""
        for _, writer in held:
            writer.close()


async def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "admin.sock"
    async with server_at(path):
        monkeypatch.setattr(private_socket, "stranger", lambda connection: os.geteuid() + 12345)
        assert await said(path, b"GET / HTTP/1.1\r\n\r\n") == b""
        monkeypatch.setattr(private_socket, "stranger", lambda connection: None)
        assert (await asked(path, "GET", "/"))[0] == 200


async def test_a_socket_that_a_killed_service_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with server_at(path):
        assert (await asked(path, "GET", "/"))[0] == 200


async def test_a_socket_at_which_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with server_at(path):
        with pytest.raises(
            StartupError, match=r"another program listens there, process \d+. Choose another path.*admin_socket"
        ):
            await server_at(path).__aenter__()
        assert (await asked(path, "GET", "/"))[0] == 200


@pytest.mark.parametrize(
    ("name", "message"), [("file", "no socket"), ("nowhere/a.sock", "no such folder"), ("x" * 200, "too long")]
)
async def test_a_path_that_does_not_do_ends_the_start(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StartupError, match=message):
        await server_at(tmp_path / name).__aenter__()
    assert (tmp_path / "file").read_text() == "mine"


async def test_who_waits_for_a_change_is_told_that_the_service_stops(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    server = server_at(path)
    async with server:
        running = server._running
        assert running is not None
        await running._coordinator._stages[0].pool.changing.acquire()
        waiting = asyncio.ensure_future(asked(path, "POST", "/restart"))
        while not running._admin or not running._admin._serving:
            await asyncio.sleep(0.01)
        running._coordinator._stages[0].pool._stopping = True
        running._coordinator._stages[0].pool.changing.release()
        status, told = await waiting
        running._coordinator._stages[0].pool._stopping = False
        assert (status, "the service stops" in told["error"]) == (409, True)
