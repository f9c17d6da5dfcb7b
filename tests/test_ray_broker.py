"""What the process that speaks with Ray tells the server, without a cluster."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from mosec_asgi.pool.ray.broker import NO_NODES, Broker, received
from mosec_asgi.pool.ray.orders import Ask, Refused, Report, Unpacker, Waits


class Ray:
    """A cluster with so many nodes, of which none has a GPU."""

    def __init__(self, alive: int) -> None:
        self._alive = alive

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": number < self._alive, "Resources": {"CPU": 2.0}} for number in range(2)]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0 * self._alive}


@pytest.mark.parametrize("alive", [0, 1])
def test_only_without_any_node_the_server_is_told_to_connect_anew(alive: int) -> None:
    server, sock = socket.socketpair()
    with server, sock:
        # Without what its construction does: to connect to Ray.
        broker = Broker.__new__(Broker)
        broker._ray, broker._sock, broker._lock, broker._wanted = Ray(alive), sock, threading.Lock(), {7: {"GPU": 1.0}}
        broker.do(Ask(7))
        told: list[Report] = list(Unpacker().receive(server.recv(4096)))
    if alive:
        assert isinstance(told[0], Waits)
        assert told[0].number == 7
    else:
        assert told == [Refused(NO_NODES)]


def test_a_server_that_has_not_read_all_has_ended_all_the_same() -> None:
    server, sock = socket.socketpair()
    with sock:
        sock.sendall(b"unread")
        server.close()
        assert received(sock) == b""
