"""The open loop keeps to its times whatever the server does, and the picture says what it shows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import benchmark

generator = benchmark("overload.generator")
picture = benchmark("overload.picture")
command = benchmark("overload.__main__")


async def served(answer: Any, rate: float, seconds: float) -> tuple[list[Any], int]:
    """Put a load on a server that answers each request by `answer`; return the requests and the connections."""
    connections = 0
    tasks = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        tasks.append(asyncio.current_task())
        try:
            while True:
                await reader.readexactly(len(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n1"))
                writer.write(await answer())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = generator.Generator(port, "/x", b"1")
    requests = await clients.run(rate, seconds, 1)
    clients.close()
    server.close()
    await asyncio.gather(*tasks)
    return requests, connections


async def test_requests_keep_coming_while_the_server_answers_none() -> None:
    release = asyncio.Event()

    async def hold() -> bytes:
        await release.wait()
        return b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1"

    loop = asyncio.get_running_loop()
    loop.call_later(0.3, release.set)
    requests, connections = await served(hold, 200.0, 0.25)
    assert connections == len(requests) > 20
    assert all(request.status == 200 for request in requests)
    assert max(request.latency for request in requests) > 0.25


async def test_connections_are_kept_and_statuses_told() -> None:
    async def refuse() -> bytes:
        return b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"

    requests, connections = await served(refuse, 200.0, 0.25)
    assert connections < len(requests)
    assert {request.status for request in requests} == {429}


def test_the_picture_has_titled_axes_and_is_readable_on_dark_pages() -> None:
    points = [(0.5, 0.5), (1.0, 0.98), (10.0, 0.0)]
    text = picture.draw("Title", {("ours", "50 ms"): points, ("theirs", "50 ms"): points})
    assert text.count("<polyline") == 2
    for shown in (
        "Title",
        "offered load",
        "answered in time",
        "prefers-color-scheme: dark",
        "ours, 50 ms",
        ">10&#215;<",
    ):
        assert shown in text


def test_the_simulation_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--simulate", "--model", "constant", "--load", "3", "--seconds", "8"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:4] == ["constant", "3", "goodput", "1.000"]
