"""`--dry-run`: each pipeline once, with its first worker's example, on one worker a stage."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence

from mosec_asgi import log
from mosec_asgi.config import Settings
from mosec_asgi.definition import openapi_document
from mosec_asgi.errors import Failure, StartupError
from mosec_asgi.front import Shown
from mosec_asgi.host.stage_use import stage_metrics, use_of
from mosec_asgi.runtime import Runtime
from mosec_asgi.service import Service
from mosec_asgi.worker import several_examples

# Milliseconds for a first run, which may compile or load what later ones find ready.
TIMEOUT = 600_000

logger = log.internal_logger(__name__)


def run(routes: Mapping[str, Sequence[Runtime]], settings: Settings, *, import_main: bool) -> int:
    """Run each pipeline once and log what became of it.

    Args:
        routes: the stages by route.
        settings: of the service.
        import_main: the workers import the program's main module.

    Returns:
        the exit code: 0 if all workers started and no pipeline failed.
    """
    once = dataclasses.replace(settings, timeout=TIMEOUT)
    return asyncio.run(_run(_one_worker_each(routes), once, import_main=import_main))


def _one_worker_each(routes: Mapping[str, Sequence[Runtime]]) -> dict[str, list[Runtime]]:
    single: dict[Runtime, Runtime] = {}
    for runtime in [runtime for pipeline in routes.values() for runtime in pipeline]:
        one = single.setdefault(runtime, copy.copy(runtime))
        one.num = one.most_workers = 1
        if isinstance(one.devices, tuple):
            one.devices = one.devices[:1]
        one.env = runtime.env[:1] if runtime.env else None
    return {path: [single[runtime] for runtime in pipeline] for path, pipeline in routes.items()}


async def _run(routes: Mapping[str, Sequence[Runtime]], settings: Settings, *, import_main: bool) -> int:
    shown = Shown(routes, lambda: openapi_document(routes, settings))
    service = Service(shown, settings, import_main=import_main)
    try:
        await service.start()
    except StartupError as error:
        logger.error("dry run failed: %s", error)
        return 1
    try:
        results = [
            await _run_route(service, place, path, pipeline) for place, (path, pipeline) in enumerate(routes.items())
        ]
    finally:
        await service.stop()
    logger.info("dry run finished: %d of %d routes passed", sum(results), len(results))
    return 0 if all(results) else 1


async def _run_route(service: Service, place: int, path: str, pipeline: Sequence[Runtime]) -> bool:
    """Send a pipeline its example; True if it came through, or there is none."""
    worker = pipeline[0].worker
    several = several_examples(worker)
    if worker.example is None and not several:
        logger.info("%s: %s has no example; its workers start, and that is all this run shows", path, worker.__name__)
        return True
    example = several[0] if several else worker.example
    began = time.perf_counter()
    pids = service.worker_processes(place)
    before = [use_of(pid) for pid in pids]
    outcome = await service.run_example(place, f"dry-run{path}")
    if isinstance(outcome, Failure):
        logger.error("%s: the example was answered %d: %s", path, outcome.code, outcome.text)
        return False
    stages = [runtime.worker.__name__ for runtime in pipeline]
    report: dict[str, object] = {
        "route": path,
        "stages": stages,
        "request": example,
        "result_size": outcome,
        "warmup_duration": time.perf_counter() - began,
    }
    if measured := stage_metrics(stages, before, [use_of(pid) for pid in pids]):
        report["stage_metrics"] = measured
    logger.info("dry run result: %s", json.dumps(report, default=str))
    return True
