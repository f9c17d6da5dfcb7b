"""The description of a worker, which is sent to its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mosec_asgi.labels import Labels
from mosec_asgi.worker import Worker


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is to run, and how.

    Attributes:
        worker: the class; crosses by name, so a spawned process must be able to import it.
        args, kwargs: what its `__init__` is called with.
        stage: the stage's name.
        worker_id: the worker's number in its stage, from 1.
        max_batch_size: the most items in a batch.
        timeout: seconds that one call of `forward` may take; of a stream, that its next event may take.
        isolation_calls: the most calls of `forward` to find the culprits of a failed batch; None for the default.
        concurrency: batches, or items without batching, that an asynchronous worker runs at a time.
        next_stages: the names of the stages that read what it passes on; empty for the last stage of a pipeline.
        event_type: the mime type of the stream that a later stage answers with, and for which this one may send
            events; empty where the worker's own counts.
        strict_json: a body must be strict JSON where the default `deserialize` reads it.
        stream_buffer: bytes of a stream that may be on their way to its client.
        buffers_apart: large buffers in its results, such as arrays, may be sent separately from their pickle, because
            all stages that read them use the default `deserialize_ipc`.
        log_level: the lowest level to log.
        log_text: log text instead of JSON lines even if standard error is not a terminal.
        traces: some of its tasks may be traced: say with their answers when `forward` had them, and name their traces
            in log lines.
        metrics_directory: the server's private directory of custom metrics; empty if there is none.
        labels: what the next stage wants to know of what it passes on; None where it asks for nothing.
    """

    worker: type[Worker]
    stage: str
    worker_id: int
    max_batch_size: int
    timeout: float
    isolation_calls: int | None = None
    concurrency: int = 1
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    next_stages: tuple[str, ...] = ()
    event_type: str = ""
    strict_json: bool = False
    stream_buffer: int = 256 * 1024
    buffers_apart: bool = False
    log_level: str = "info"
    log_text: bool = False
    traces: bool = False
    metrics_directory: str = ""
    labels: Labels | None = None
