"""What a worker in an actor counts, on its way to the server's /metrics, without Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_until
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from mosec_asgi.ipc import frames
from mosec_asgi.observing.custom import MOST_COUNTED, VARIABLE, CustomMetrics
from mosec_asgi.pool.ray.counts import Counts

NUMBER = 7


class Actor:
    """The counts of an actor, and what its server shows of them."""

    def __init__(self, folder: Path) -> None:
        for name in ("actor", "server"):
            (folder / name).mkdir()
        self.server = CustomMetrics(None, (str(folder / "server"),))
        self.server.open()
        self.counts = Counts(CustomMetrics(None, (str(folder / "actor"),)), seconds=0.01)
        self.directory = self.counts.open()[VARIABLE]
        self.decoder = frames.Decoder()
        self.sent = 0

    def send(self, data: bytes) -> None:
        self.decoder.receive_data(data)
        frame = self.decoder.next_frame()
        assert isinstance(frame, frames.Counted)
        self.sent += 1
        self.server.counted(NUMBER, frame.kind, frame.values)

    def count(self, kind: str, value: float, name: str = "n") -> None:
        file = MmapedDict(os.path.join(self.directory, f"{kind}_{os.getpid()}.db"))
        file.write_value(mmap_key(name, name, [], [], "help"), value, 0.0)
        file.close()

    def shown(self) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(self.server)
        return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[Actor]:
    actor = Actor(tmp_path)
    yield actor
    actor.counts.close()
    actor.server.close()


def test_what_changes_is_sent_and_shown(actor: Actor) -> None:
    actor.counts.begin(actor.send)
    for value in (1.0, 5.0):
        actor.count("counter", value)
        wait_until(lambda value=value: actor.shown() == {"n": value}, "the server shows the count")
    # It has been looked at again by then, and has not changed.
    actor.count("gauge_max", 7.0, name="other")
    wait_until(lambda: actor.shown().get("other") == 7.0, "the server shows the gauge")
    assert actor.sent == 3


def test_at_the_end_all_has_been_sent(actor: Actor) -> None:
    actor.counts.begin(actor.send)
    actor.count("counter", 3.0)
    actor.counts.close()
    assert actor.shown() == {"n": 3.0}
    assert not Path(actor.directory).exists()


def test_more_than_is_taken_is_not_sent_and_told_once(actor: Actor, caplog: pytest.LogCaptureFixture) -> None:
    file = Path(actor.directory, f"counter_{os.getpid()}.db")
    file.write_bytes((MOST_COUNTED + 1).to_bytes(8, sys.byteorder))
    actor.counts.begin(actor.send)
    actor.count("gauge_max", 2.0)
    wait_until(lambda: actor.shown() == {"n": 2.0}, "the server shows the other kind")
    actor.counts.close()
    assert caplog.text.count("fewer labels") == 1
