"""From a worker's class to a worker that serves: make it, choose what runs it, warm it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.inside.codec import as_input
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.plain_runner import PlainRunner
from mosec_asgi.inside.port import Port
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.inside.timer import KernelTimer, NoTimer, Timer
from mosec_asgi.streaming import ContinuousWorker, is_async, streams
from mosec_asgi.worker import Worker, set_identity

logger = log.internal_logger(__name__)


class Runner(Protocol):
    """Runs the tasks of one worker, in the way that its class asks for."""

    def request_ids(self) -> Sequence[str]:
        """Return the ids of the requests for which the current code runs, for the logs."""

    def trace_ids(self) -> Sequence[str]:
        """Return the ids of the traces of those requests that are traced."""

    def rehearse(self, example: Any) -> None:
        """Run `forward` on an example and drop its result; raises what `forward` raises."""

    def serve(self) -> None:
        """Run what comes until the port ends."""

    def close(self) -> None:
        """Release what the worker took."""


def runner_for(
    worker: Worker, spec: WorkerSpec, port: Port, kernel: KernelTimer | None = None, *, interrupts: bool = True
) -> Runner:
    """Return what runs a worker of this class.

    Args:
        worker: what to run.
        spec: how.
        port: where tasks come from and results go.
        kernel: ends the process when `forward` hangs and nobody else can.
        interrupts: this is the main thread of a process of the worker's own, where a signal can interrupt `forward`.
    """
    timer = Timer(spec.timeout, kernel) if interrupts else NoTimer()
    port.labelled = spec.labels is not None
    if isinstance(worker, ContinuousWorker):
        from mosec_asgi.inside.continuous_runner import ContinuousRunner

        return ContinuousRunner(worker, spec, port, timer)
    if is_async(type(worker)):
        # Imported here: it loads asyncio, which other workers do not need.
        from mosec_asgi.inside.async_runner import AsyncRunner

        # The timer has no kernel's: the runner sets that itself.
        return AsyncRunner(worker, spec, port, kernel, timer=Timer(spec.timeout) if interrupts else None)
    if streams(type(worker)):
        from mosec_asgi.inside.stream_runner import MiddleRunner, StreamRunner

        # One before the last stage returns its results, as in mosec.
        return (MiddleRunner if spec.next_stages else StreamRunner)(worker, spec, port, timer)
    return PlainRunner(worker, spec, port, timer)


def speaker_for(runner: Runner, spec: WorkerSpec) -> log.Speaker:
    """Return a function that gives the fields of a worker's log lines."""

    def speaker() -> dict[str, object]:
        return {"stage": spec.stage, "worker": spec.worker_id, "request_id": " ".join(runner.request_ids())}

    def speaker_of_traces() -> dict[str, object]:
        # Each once: the requests of a batch may belong to one trace.
        return {**speaker(), "trace_id": " ".join(dict.fromkeys(runner.trace_ids()))}

    return speaker_of_traces if spec.traces else speaker


def load(spec: WorkerSpec) -> Worker:
    """Make the worker, with its number, stage and batch size known before its `__init__` runs."""
    worker = spec.worker.__new__(spec.worker, *spec.args, **spec.kwargs)
    set_identity(worker, spec.worker_id, spec.stage, spec.max_batch_size, made=False)
    worker._strict_json = spec.strict_json
    worker.__init__(*spec.args, **spec.kwargs)  # type: ignore[misc]  # __new__ and __init__ apart: it knows its numbers
    set_identity(worker, spec.worker_id, spec.stage, spec.max_batch_size, made=True)
    return worker


def warm_up(runner: Runner, examples: Sequence[Any], spec: WorkerSpec) -> None:
    """Run the worker's examples; a failure is logged and the worker serves all the same, as in mosec."""
    batches = spec.max_batch_size > 1 and not issubclass(spec.worker, ContinuousWorker)
    try:
        for place, example in enumerate(examples, 1):
            runner.rehearse(as_input(example, batched=batches))
            logger.debug("warmed up with example %d of %d", place, len(examples))
    except Ending:
        raise
    except BaseException:
        logger.exception(
            "warm-up failed: `example` and `multi_examples` must be what `forward` takes%s",
            ", a list of items" if batches else "",
            extra={"stage": spec.stage, "worker": spec.worker_id},
        )
