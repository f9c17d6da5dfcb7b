"""What can be meant as it is in a service, and probably is not: beyond what is logged at every start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mosec_asgi.config import Settings
from mosec_asgi.runtime import Runtime
from mosec_asgi.worker import several_examples


def advice(routes: Mapping[str, Sequence[Runtime]], settings: Settings, cpus: int) -> Iterator[str]:
    """Yield what is to be looked at, each with what to do.

    Args:
        routes: the stages by route.
        settings: of the service.
        cpus: that the service may use.
    """
    runtimes = list(dict.fromkeys(runtime for pipeline in routes.values() for runtime in pipeline))
    yield from _of_settings(settings)
    yield from _of_cpus(runtimes, cpus)
    for runtime in runtimes:
        yield from _of_stage(runtime, settings)
    for path, pipeline in routes.items():
        first = pipeline[0].worker
        if first.example is None and not several_examples(first):
            yield (
                f"{path}: {first.__name__} has no example, so the first request pays for what a model does at its "
                f"first, and a dry run does not try the route; set `example` in {first.__name__}"
            )


def _of_settings(settings: Settings) -> Iterator[str]:
    if not settings.timeout:
        yield (
            "timeout=0: requests wait without a limit, and so do those of clients that have hung; set as many "
            "milliseconds as a client waits, with --timeout or MOSEC_TIMEOUT"
        )


def _of_cpus(runtimes: Sequence[Runtime], cpus: int) -> Iterator[str]:
    processes = sum(runtime.num for runtime in runtimes if runtime.executor == "process")
    if processes > cpus:
        yield (
            f"{processes} worker processes share {cpus} CPU{'s' if cpus > 1 else ''}: models that run on the CPU only "
            "wait for each other; lower `num`, unless they run on other devices"
        )


def _of_stage(runtime: Runtime, settings: Settings) -> Iterator[str]:
    if runtime.max_batch_size == 1 and runtime.max_wait_time:
        yield (
            f"{runtime.name}: max_wait_time={runtime.max_wait_time:g} has no effect, because batches are of one task; "
            "set max_batch_size, or leave max_wait_time out"
        )
    if runtime.max_batch_size > settings.capacity:
        yield (
            f"{runtime.name}: no batch is ever full, because max_batch_size={runtime.max_batch_size} is more than the "
            f"requests that are admitted, capacity={settings.capacity}; raise that with --capacity or MOSEC_CAPACITY"
        )
    elif runtime.num * runtime.max_batch_size > settings.capacity:
        yield (
            f"{runtime.name}: its {runtime.num} workers are never all busy, because with batches of "
            f"{runtime.max_batch_size} they take more than capacity={settings.capacity} requests; raise that with "
            "--capacity or MOSEC_CAPACITY"
        )
    if runtime.max_wait_time and settings.timeout and runtime.max_wait_time >= settings.timeout:
        yield (
            f"{runtime.name}: max_wait_time={runtime.max_wait_time:g} milliseconds is as long as the requests' whole "
            f"timeout of {settings.timeout}; a batch that is not full is sent just in time to be answered: lower it"
        )
