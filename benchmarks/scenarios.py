"""What is compared: one row of the table each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from call_load import calls
from load import ECHOES, LARGE_ECHOES, Load, arrays
from stream_load import EQUAL, LONG_TAILED

Rival = Literal["mosec", "litserve", "bare", "uvicorn", "static"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A service, a load, and what counts.

    Attributes:
        name: what `--only` calls it.
        title: what it is, for a reader of the table.
        service: the file under `services/` that both packages run.
        connections: clients that each send their next request when the last one is answered.
        measure: what the ratio is formed of: what the load counts in a second, the median latency, or the one of the
            two that is worse for us.
        bar: the least ratio that the project accepts; None where the number is for information.
        rival: whom ours is compared with: mosec on the same service, LitServe on one of the same kind, an ASGI app that
            only echoes (under uvicorn as `run()` sets it up, or as it comes), or the same model behind our own static
            batches.
        load: what its clients do.
        stretch: how many times as long as others it is measured.
    """

    name: str
    title: str
    service: str
    connections: int
    measure: Literal["throughput", "latency", "both"] = "throughput"
    bar: float | None = None
    rival: Rival = "mosec"
    load: Load = ECHOES
    stretch: int = 1

    @property
    def optional(self) -> bool:
        """Whether a whole run may do without it: its rival is a large install."""
        return self.rival == "litserve"


SCENARIOS = (
    Scenario("echo", "JSON echo, no batching, 64 connections", "echo", 64, bar=4.0),
    Scenario("batched-echo", "JSON echo, batches of up to 64 wait 1 ms, 128 connections", "batched_echo", 128, bar=1.0),
    Scenario("latency", "JSON echo, no batching, 1 connection", "echo", 1, "latency", bar=1.0),
    # Until 256 connections are made and the first batch is done, nothing is answered: of 3 s that would be a hundredth.
    Scenario(
        "model", "model of 5 ms + 0.1 ms/item, batches of up to 64, 256 connections", "model", 256, bar=1.25, stretch=3
    ),
    Scenario("model-few", "the same with max_wait_time unset, 8 connections", "model_default_wait", 8, bar=2.5),
    Scenario("two-stages", "JSON echo through two stages, 64 connections", "two_stages", 64, bar=3.0),
    Scenario(
        "bytes-100kb", "bodies of 100 kB echoed as bytes, 16 connections", "bytes_echo", 16, bar=1.2, load=LARGE_ECHOES
    ),
    Scenario(
        "array-1mb",
        "float32 array of 1 MB from stage to stage, 4 connections",
        "arrays",
        4,
        bar=5.0,
        load=arrays(1_000_000),
    ),
    Scenario(
        "array-10mb",
        "float32 array of 10 MB from stage to stage, 4 connections",
        "arrays",
        4,
        bar=15.0,
        load=arrays(10_000_000),
    ),
    Scenario("pushed", "events pushed into one stream at a time, 500 each, 1 connection", "pushed", 1, load=EQUAL),
    # The longest texts take 4 s: in 3 s nobody would see the end of one.
    Scenario(
        "continuous",
        "texts of long-tailed lengths, 16 at a time, a step of 5 ms + 0.1 ms/text, 32 connections",
        "continuous",
        32,
        "both",
        bar=1.0,
        rival="static",
        load=LONG_TAILED,
        stretch=3,
    ),
    Scenario("asgi-echo", "JSON echo through ASGI, under uvicorn as it comes, 64 connections", "asgi_echo", 64),
    Scenario("ceiling", "JSON echo beside a bare ASGI echo, 64 connections", "echo", 64, bar=0.75, rival="bare"),
    Scenario(
        "uvicorn",
        "JSON echo beside a bare ASGI echo under uvicorn as it comes, 64 connections",
        "echo",
        64,
        bar=0.75,
        rival="uvicorn",
    ),
    Scenario("litserve-echo", "JSON echo beside LitServe, no batching, 64 connections", "echo", 64, rival="litserve"),
    Scenario("litserve-model", "the model beside LitServe, 256 connections", "model", 256, rival="litserve"),
)

# What has no rival, and only a profile.
PROFILED = (
    *SCENARIOS,
    Scenario("infer", "the echo called by the server's own program, 64 callers", "called", 64, load=calls()),
)
