"""`run()`, as far as it needs no program of its own; see test_serving.py for the rest."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mosec_asgi.config import Settings
from mosec_asgi.errors import StartupError
from mosec_asgi.host import run


class Idle:
    """A server that serves nothing."""

    on_daemon_exit: Callable[[str, int], None] | None = None
    on_answering: Callable[[], None] | None = None
    asked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked = True

    def announce_end(self) -> None:
        pass

    def close(self) -> None:
        pass

    def direct_routes(self) -> None:
        return None

    def why_not_direct(self) -> str | None:
        return None


def test_a_signal_that_comes_before_uvicorn_listens_for_signals_ends_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = uvicorn.Server.run

    def interrupted(self: uvicorn.Server, *args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        serve(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    idle = Idle()
    assert run.run(idle, Settings(port=0)) == 0
    assert not idle.asked, "nothing is loaded any more"


@pytest.mark.parametrize("address", ["nowhere.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_told_first(address: str) -> None:
    with pytest.raises(StartupError, match=r"cannot listen on .*\. Choose an address of this machine"):
        run.run(Idle(), Settings(address=address, port=0))


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match="Choose another port with --port"):
            run.run(Idle(), Settings(address="127.0.0.1", port=port))
