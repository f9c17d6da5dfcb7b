"""What several web processes of a program share, and how many sockets they have."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from mosec_asgi import Server, Worker
from mosec_asgi.config import Settings
from mosec_asgi.errors import DefinitionError
from mosec_asgi.host import listening
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.host.web_processes import _divided


def test_they_divide_the_memory_for_bodies_and_answers() -> None:
    of_one = _divided(Settings(http_processes=4, body_memory=4000))
    assert of_one.body_memory == 1000
    assert of_one.answer_memory == memory_limit() // 16


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not divide connections")
def test_each_has_a_queue_on_one_port_that_nobody_else_gets() -> None:
    listeners = listening.listen_often(Settings(address="127.0.0.1", port=0, http_processes=3), 3)
    try:
        [port] = {each.sock.getsockname()[1] for each in listeners}
        assert len({each.sock.fileno() for each in listeners}) == 3
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    finally:
        for each in listeners:
            each.close()


def test_at_a_path_they_share_one_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first, second = listening.listen_often(Settings(uds=str(path)), 2)
    assert first is second
    first.close()
    assert not path.exists()


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


def test_they_cannot_have_the_engine_of_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(http_processes=2, engine="/run/engine.sock")
    server.append_worker(Echo)
    monkeypatch.setattr(sys, "argv", ["server.py"])
    with pytest.raises(DefinitionError, match="says that another program has it; leave one of them out"):
        server.run()
