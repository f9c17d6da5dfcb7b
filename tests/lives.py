"""What is heard of a worker that really runs, through its link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import until

from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import EGRESS, INGRESS, Chunks, Results, Tasks
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.pool.process.launcher import ProcessLauncher
from mosec_asgi.pool.process.link import ProcessLink


class Heard:
    """Writes down all that a link reports, in order: an event and what it carries each."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def ready(self) -> None:
        self.said.append(("ready",))

    def failed(self, traceback: str) -> None:
        self.said.append(("failed", traceback))

    def results(self, results: Results) -> None:
        self.said.append(("results", results))

    def chunks(self, chunks: Chunks) -> None:
        self.said.append(("chunks", chunks))

    def closed(self, reason: str = "") -> None:
        self.said.append(("closed", reason))

    def exited(self) -> None:
        self.said.append(("exited",))

    def all(self, event: str) -> list[Any]:
        """Return what came with each event of a kind."""
        return [what for name, *what in self.said if name == event]


_: WorkerEvents = Heard()


class Life(Heard):
    """One life of a worker process: what was heard of it."""

    def __init__(self, launcher: ProcessLauncher, spec: WorkerSpec, variables: Mapping[str, str] | None = None) -> None:
        super().__init__()
        # How it ended, and how far it had come, as could be told each time that its end was noticed.
        self.ends: list[str] = []
        self.progress: list[int] = []
        self.link: ProcessLink = launcher.launch(spec, variables or {}, self)
        assert self.said == [], "nothing is reported before `launch` has returned"

    def exited(self) -> None:
        # Its end may be noticed before its last words are read.
        self.link.drain()
        super().exited()
        self.ends.append(self.link.describe_exit())
        self.progress.append(self.link.progress().begun)

    async def wait_ready(self) -> Life:
        await until(lambda: self.said, "it says that it is ready")
        assert self.said == [("ready",)]
        return self

    async def ended(self) -> str:
        """Wait until its end is noticed, and return how that was."""
        await until(lambda: self.ends, "its end is noticed")
        return self.ends[0]

    def send(self, body: bytes) -> None:
        self.link.send(Tasks([1], [INGRESS | EGRESS], ["request"], [body]))

    async def ask(self, body: bytes) -> bytes:
        """Return the answer to a task."""
        before = len(self.said)
        self.send(body)
        await until(lambda: len(self.said) > before, "it answers")
        event, results = self.said[-1]
        assert event == "results"
        assert list(results.codes) == [200]
        payload = results.payloads[0]
        assert isinstance(payload, bytes)
        return payload
