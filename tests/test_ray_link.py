"""The server's end of an actor's connection, without Ray: what it reports, and what it asks of the cluster."""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from common import PATIENCE, settled_loop, until

from mosec_asgi import Worker
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc import frames
from mosec_asgi.messages import Chunks, LinkError, Results, Tasks
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.pool.ray.link import RayLink, StoredPayload
from mosec_asgi.pool.ray.orders import Ended
from mosec_asgi.pool.ray.store import HEAD


class Nothing(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Heard:
    """Hears a link."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def ready(self) -> None:
        self.said.append("ready")

    def failed(self, traceback: str) -> None:
        self.said.append(("failed", traceback))

    def results(self, results: Results) -> None:
        self.said.append(results)

    def chunks(self, chunks: Chunks) -> None:
        self.said.append(chunks)

    def closed(self, reason: str = "") -> None:
        self.said.append(("closed", reason))

    def exited(self) -> None:
        self.said.append("exited")


class Cluster:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def kill(self, number: int, *, why: bool) -> None:
        self.asked.append(("kill", number, why))

    def ask(self, number: int) -> None:
        self.asked.append(("ask", number))

    def forget(self, number: int) -> None:
        self.asked.append(("forget", number))

    def reap(self, timeout: float) -> None:
        self.asked.append("reap")


class Ends:
    def __init__(self, counts: CustomMetrics | None = None, **times: float) -> None:
        self.heard, self.cluster = Heard(), Cluster()
        spec = WorkerSpec(Nothing, "Nothing_1", 1, 1, 1.0)
        self.link = RayLink(spec, self.heard, running(), self.cluster, counts, **times)
        self.link.begin(7)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.actor = socket.create_connection(server.getsockname())
            self.ours, _ = server.accept()
        self.actor.setblocking(False)

    def close(self) -> None:
        self.link.ended(Ended(7, "has ended"))
        self.actor.close()
        self.ours.close()

    def connect(self) -> None:
        self.link.connected(self.ours, "10.0.0.9")

    async def said_by_server(self) -> frames.Frame:
        decoder = frames.Decoder()
        decoder.receive_data(await asyncio.wait_for(running().sock_recv(self.actor, 1 << 16), PATIENCE))
        frame = decoder.next_frame()
        assert frame is not None
        return frame


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def stored(number: int, size: int) -> bytes:
    return HEAD.pack(number, size) + pickle.dumps("where it is")


async def test_each_frame_is_a_step_and_a_note_says_what_is_begun(ends: Ends) -> None:
    ends.connect()
    assert ends.link.progress() == (0, 0)
    ends.actor.sendall(frames.encode_noted(frames.Noted(3, 4096)) + frames.encode_ready())
    await until(lambda: ends.heard.said == ["ready"])
    assert ends.link.progress() == (3, 2)
    assert ends.link.memory() == 4096
    assert ends.link.name == "Ray actor 7 on 10.0.0.9"


async def test_what_lies_in_the_store_is_passed_on_as_it_is_and_freed_when_it_is_dropped(ends: Ends) -> None:
    ends.connect()
    sent = Results((1, 2), (frames.IN_MEMORY, 200), (stored(5, 10**7), b"small"), 0.0)
    ends.actor.sendall(frames.encode_results(sent))
    await until(lambda: ends.heard.said)
    (results,) = ends.heard.said
    assert results.codes == [200, 200]
    held, small = results.payloads
    assert isinstance(held, StoredPayload)
    assert (len(held), small) == (10**7, b"small")
    with pytest.raises(LinkError, match="in Ray's store"):
        held.read()
    ends.link.send(Tasks((9, 10), (0, 0), ("a", "b"), (held, b"small")))
    tasks = await ends.said_by_server()
    assert isinstance(tasks, Tasks)
    assert list(tasks.flags) == [frames.SHARED, 0]
    assert list(tasks.payloads) == [stored(5, 10**7), b"small"]
    held.drop()
    assert await ends.said_by_server() == frames.Freed((5,))


async def test_a_reference_that_is_none_ends_the_link(ends: Ends) -> None:
    ends.connect()
    ends.actor.sendall(frames.encode_results(Results((1,), (frames.IN_MEMORY,), (b"x",), 0.0)))
    await until(lambda: ends.heard.said)
    ((what, why),) = ends.heard.said
    assert what == "closed"
    assert "no reference" in why


async def test_it_is_asked_to_stop_by_a_frame_and_not_by_the_connections_end(ends: Ends) -> None:
    ends.connect()
    ends.link.finish()
    assert await ends.said_by_server() == frames.Finish()
    ends.actor.sendall(frames.encode_results(Results((1,), (200,), (b"last",), 0.0)))
    await until(lambda: ends.heard.said)


async def test_one_that_has_not_connected_is_killed_with_the_question_why(ends: Ends) -> None:
    ends.link.finish()
    await settled_loop()
    assert ends.cluster.asked == [("kill", 7, True)]
    ends.link.ended(Ended(7, "had not begun: no GPU"))
    assert ends.heard.said == ["exited"]
    assert ends.link.describe_exit() == "had not begun: no GPU"


async def test_what_kept_it_from_beginning_is_its_failed_start(ends: Ends) -> None:
    ends.link.ended(Ended(7, "could not begin", "no module named app"))
    assert ends.heard.said == [("failed", "no module named app"), "exited"]


async def test_an_end_that_ray_does_not_confirm_is_taken_for_one() -> None:
    ends = Ends(confirm_seconds=0.01)
    ends.connect()
    ends.link.kill()
    await until(lambda: ends.heard.said == ["exited"])
    assert ("forget", 7) in ends.cluster.asked
    # Ray's word, when it comes after all.
    ends.close()
    assert ends.heard.said == ["exited"]


async def test_a_connection_that_comes_after_the_end_is_closed(ends: Ends) -> None:
    ends.link.ended(Ended(7, "died"))
    ends.connect()
    assert await running().sock_recv(ends.actor, 10) == b""


async def test_what_it_counts_is_kept_by_its_number_and_is_no_step(tmp_path: Path) -> None:
    counts = CustomMetrics(None, (str(tmp_path),))
    counts.open()
    ends = Ends(counts)
    ends.connect()
    # A file without any series.
    values = (8).to_bytes(4, sys.byteorder) + bytes(4)
    ends.actor.sendall(frames.encode_counted(frames.Counted("gauge_livesum", values)) + frames.encode_ready())
    await until(lambda: ends.heard.said == ["ready"])
    assert ends.link.progress() == (0, 1)
    (file,) = Path(counts.private).iterdir()
    assert file.name.startswith("gauge_livesum_")
    assert file.read_bytes() == values
    ends.close()
    # With it its live gauges go.
    assert list(Path(counts.private).iterdir()) == []
    counts.close()
