"""What was defined, as data: the stages, the routes and the limits of a service, which serving and the dry run read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mosec_asgi.batching.coordinator import Limits, RoutePlan
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.config import Settings, listed
from mosec_asgi.errors import DefinitionError
from mosec_asgi.host.placement import Placement
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.pool.recycling import Recycling
from mosec_asgi.runtime import Runtime, stage_names
from mosec_asgi.streaming import ContinuousWorker, is_async, response_type, streams
from mosec_asgi.worker import Worker

if TYPE_CHECKING:
    from mosec_asgi.web.protocols.seam import Protocol

# What a step of priority is worth: so many seconds of waiting, or a quarter of the service's timeout.
AGEING_SECONDS = 1.0
LEAST_WEIGHT = 0.001


def plan_service(
    routes: Mapping[str, Sequence[Runtime]],
    settings: Settings,
    *,
    traces: bool = False,
    place: Callable[[Mapping[Runtime, str]], Mapping[Runtime, Placement]] | None = None,
) -> tuple[list[StagePlan], list[RoutePlan], Limits]:
    """Return a service as it is to be run: its stages, its routes, and what it allows.

    Args:
        routes: the stages by route.
        settings: of the service.
        traces: calls may be traced.
        place: says where the workers of the stages run, given the stages' names; None for anywhere.
    """
    names = stage_names([runtime for pipeline in routes.values() for runtime in pipeline])
    placements = place(names) if place is not None else {}
    # Each stage once, even where several routes share it, in the order of the numbers in the stages' names.
    runtimes = list(names)
    stages = []
    for runtime in runtimes:
        followers = _followers(runtime, routes.values())
        after = tuple(dict.fromkeys(names[follower] for follower in followers))
        event_type = _event_type(runtime, routes.values())
        placed = placements.get(runtime)
        stages.append(
            plan_stage(runtime, names[runtime], settings, followers, after, event_type, traces=traces, placement=placed)
        )
    pipelines = [RoutePlan(path, tuple(map(runtimes.index, pipeline))) for path, pipeline in routes.items()]
    return stages, pipelines, _limits(settings)


def _followers(runtime: Runtime, pipelines: Iterable[Sequence[Runtime]]) -> list[Runtime]:
    """Return the stages that read what a stage passes on, on any route."""
    return [after for pipeline in pipelines for stage, after in itertools.pairwise(pipeline) if stage is runtime]


def _event_type(runtime: Runtime, pipelines: Iterable[Sequence[Runtime]]) -> str:
    """Return the content type of the streams that the routes of a stage end with; empty for none, or for several."""
    lasts = [pipeline[-1].worker for pipeline in pipelines if runtime in pipeline[:-1]]
    types = {response_type(last) for last in lasts if streams(last)}
    return types.pop() if len(types) == 1 else ""


def plan_stage(
    runtime: Runtime,
    name: str,
    settings: Settings,
    followers: Sequence[Runtime] = (),
    next_stages: tuple[str, ...] = (),
    event_type: str = "",
    *,
    traces: bool = False,
    placement: Placement | None = None,
) -> StagePlan:
    """Return a stage as it is to be run: the user's values, and the service's settings where the user has given none.

    Args:
        runtime: what the user has written.
        name: of the stage.
        settings: of the service.
        followers: the stages that read what it passes on.
        next_stages: the names of their stages.
        event_type: of the events that it may send before the last stage; see `WorkerSpec`.
        traces: calls may be traced.
        placement: where its workers run; None for anywhere.
    """
    if placement is None:
        placement = Placement(runtime.num, runtime.env, {})
    # Only the last stage of a route streams; a stage before it passes its results on whole.
    streaming = streams(runtime.worker) and not next_stages
    specs = [
        WorkerSpec(
            worker=runtime.worker,
            stage=name,
            worker_id=worker_id,
            max_batch_size=runtime.max_batch_size,
            timeout=runtime.timeout or settings.timeout_seconds,
            isolation_calls=runtime.isolation_calls,
            concurrency=runtime.concurrency,
            args=runtime.args,
            kwargs=runtime.kwargs,
            next_stages=next_stages,
            event_type=event_type,
            strict_json=settings.strict_json,
            stream_buffer=settings.stream_buffer,
            buffers_apart=_buffers_apart(runtime, followers),
            log_level=settings.effective_log_level,
            log_text=settings.debug,
            traces=traces,
            labels=followers[0].labels if followers else None,
        )
        for worker_id in range(1, placement.num + 1)
    ]
    # A continuous worker forms its batch itself: a request joins the batch as soon as a slot is free.
    continuous = issubclass(runtime.worker, ContinuousWorker)
    return StagePlan(
        specs,
        placement.env,
        batch_size=1 if continuous else runtime.max_batch_size,
        concurrency=runtime.max_batch_size if continuous else runtime.concurrency,
        ordered=not (is_async(runtime.worker) or streaming),
        streams=streaming,
        sends=streams(runtime.worker) and not streaming,
        max_wait=(runtime.max_wait_time or settings.wait) / 1000,
        adaptive=not runtime.max_wait_time,
        max_attempts=runtime.max_attempts,
        start_timeout=settings.start_timeout / 1000,
        start_method=runtime.start_method,
        preload=runtime.preload,
        executor=runtime.executor,
        ray=runtime.ray,
        latency_target=runtime.latency_target / 1000,
        recycling=Recycling(runtime.max_calls, runtime.max_memory),
        takes_request=runtime.worker.takes_request,
        defaults=placement.defaults,
        times=settings.server_timing,
        rules=_rules(runtime, settings),
        labels=runtime.labels,
        coalesce=runtime.coalesce,
    )


def _buffers_apart(runtime: Runtime, followers: Sequence[Runtime]) -> bool:
    """Whether large buffers of a stage's results may be sent apart from them: all that read them find them there."""
    # Processes in shared memory, and actors in the store of Ray; all others get all payloads as bytes.
    if runtime.executor == "ray" and runtime.coalesce:
        # The server gives each of equal tasks a copy, and what lies in Ray's store it does not read.
        return False
    where = "ray" if runtime.executor == "ray" else "process"
    return all(each.executor == where and each.worker.deserialize_ipc is Worker.deserialize_ipc for each in followers)


def _rules(runtime: Runtime, settings: Settings) -> Rules:
    """Return the rules by which a stage chooses its next task, and the tasks of a batch."""
    return Rules(
        max_cost=runtime.max_batch_cost,
        keyed=runtime.labels is not None and runtime.labels.groups,
        by_cost=runtime.sort_by_cost,
        ageing=min(AGEING_SECONDS, settings.timeout_seconds / 4),
        weights=weights_of(settings.tenant_weights),
    )


def weights_of(text: str) -> dict[str, float]:
    """Return the weights of tenants that the setting `tenant_weights` says.

    Raises:
        DefinitionError: it is none; the text says what to write.
    """
    weights = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, number = map(str.strip, part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not (equals and name and LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT):
            raise DefinitionError(
                f"the setting tenant_weights is a list of names and numbers from {LEAST_WEIGHT:g} to "
                f"{1 / LEAST_WEIGHT:g}, as `gold=3, free=0.5`; not {part!r}"
            )
        weights[name] = weight
    return weights


def _limits(settings: Settings) -> Limits:
    return Limits(
        capacity=settings.capacity,
        timeout=settings.timeout_seconds,
        event_timeout=settings.event_timeout_seconds,
        stall_timeout=settings.stall_timeout / 1000,
        stream_buffer=settings.stream_buffer,
        load_shedding=settings.load_shedding,
        drain_timeout=settings.drain_seconds,
    )


def openapi_document(
    routes: Mapping[str, Sequence[Runtime]], settings: Settings, protocols: Sequence[Protocol] = ()
) -> dict[str, Any]:
    """Return the OpenAPI document of a service, which need not run."""
    from mosec_asgi.web import compression
    from mosec_asgi.web.keys import Keys
    from mosec_asgi.web.openapi import build_document

    encodings = compression.supported() if settings.compression else ()
    return build_document(
        routes,
        max_request_size=settings.max_request_size,
        encodings=encodings,
        title=settings.title,
        version=settings.version,
        protocols=protocols,
        keys=Keys((), listed(settings.public)) if settings.keyed else None,
    )
