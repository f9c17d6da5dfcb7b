"""What `serve` says once the service is ready."""

from __future__ import annotations

import io
import socket

from mosec_asgi import Server, Worker
from mosec_asgi.cli.banner import show
from mosec_asgi.cli.output import Output
from mosec_asgi.config import Settings
from mosec_asgi.host.listening import Listener


class Echo(Worker):
    example = 1

    def forward(self, data: int) -> int:
        return data


def test_with_keys_only_models_are_routes_too() -> None:
    server = Server(api_keys="a-key-0123456789abcdef")
    server.append_worker(Echo)
    shown = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, tls=False)
        show(Output(shown), listener, Settings(api_keys="a-key-0123456789abcdef"), server.openapi())
        lines = [line.split(None, 1) for line in shown.getvalue().splitlines()]
        assert [text for name, text in lines if name == "route"] == [f"POST {listener.url}/inference"]
        [command] = [text for name, text in lines if name == "try"]
    assert command.endswith('-H "authorization: Bearer $KEY"')
