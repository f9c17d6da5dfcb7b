"""From a server and a sample to a recommendation."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mosec_asgi.config import Settings, resolve
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.labels import Label
from mosec_asgi.offline.faults import WrongUse
from mosec_asgi.pool.process.launcher import usable_cores
from mosec_asgi.runtime import Runtime, stage_names
from mosec_asgi.server import Server
from mosec_asgi.streaming import ContinuousWorker, is_async, streams
from mosec_asgi.tuning.fit import fitted
from mosec_asgi.tuning.measure import Bounds, Measured, measure
from mosec_asgi.tuning.model import Choice, Choices, StageModel, capacity
from mosec_asgi.tuning.room import Machine, slowed
from mosec_asgi.tuning.search import CALLS, LEAST_CALLS, Found, Search
from mosec_asgi.tuning.simulation import Played, Run, Workload

# Of the time: for the measurements, and for the search; the rest is for what is shown of it.
MEASURE_SHARE, SEARCH_SHARE = 0.4, 0.45
# Runs that a search should have time for; where it would not, they are shorter.
RUNS = 150
_TRIAL_CALLS = 500
# How much more the workers that are defined must do, where they take more processors than there are, to be kept.
CLEARLY = 1.1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        target: seconds that 99 calls in a hundred may take; infinite for throughput alone.
        seconds: that measurements and search may take together, beside the start of the workers.
        most_batch: the largest batch.
        most_workers: of a stage; None for the processors that there are.
    """

    target: float
    seconds: float
    most_batch: int
    most_workers: int | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What came out.

    Attributes:
        route: the path.
        runtimes: the stages, as they are defined.
        measured: each of them.
        models: what they were simulated as.
        machine: what was assumed to be there.
        factor: by which all was slowed, because the stages take more processors than there are.
        now: the settings as they are defined.
        now_rate: calls a second that they do at the target; 0 where they miss it.
        found: the best settings.
        curve: latency against throughput with the best settings.
        now_curve: the same with the settings as they are defined.
    """

    route: str
    runtimes: Sequence[Runtime]
    measured: Sequence[Measured]
    models: Sequence[StageModel]
    machine: Machine
    factor: float
    now: Choices
    now_rate: float
    found: Found
    curve: Sequence[Played]
    now_curve: Sequence[Played]


def pipeline_of(server: Server, route: str | None) -> tuple[str, list[Runtime]]:
    """Return the route that is tuned, and its stages.

    Raises:
        WrongUse: there is none of that name, several and none is named, or one that cannot be tuned.
    """
    routes = server._defined.routes
    if not routes:
        raise WrongUse("the server has no stages: append a worker")
    if route is None:
        if len(routes) > 1:
            raise WrongUse(f"the server has several routes; --route takes one of {', '.join(sorted(routes))}")
        route = next(iter(routes))
    if route not in routes:
        raise WrongUse(f"there is no route {route!r}; --route takes one of {', '.join(sorted(routes))}")
    pipeline = list(routes[route])
    names = stage_names([runtime for stages in routes.values() for runtime in stages])
    for runtime in pipeline:
        if why := _why_not(runtime):
            raise WrongUse(f"the stage {names[runtime]} of {route} {why}")
    return route, pipeline


def _why_not(runtime: Runtime) -> str:
    """Return why a stage cannot be tuned; empty where it can."""
    if streams(runtime.worker) or issubclass(runtime.worker, ContinuousWorker):
        return "streams: the time of a call is not that of a batch, and cannot be tuned in this way"
    if runtime.executor != "process":
        return (
            "does not run in processes of its own, and what its workers take of the machine cannot be told; for the "
            'time of this command define it with executor="process"'
        )
    if is_async(runtime.worker) and runtime.concurrency > 1:
        return "runs several batches at a time (concurrency), which the model of a batch's time does not know"
    return ""


def recommend(
    server: Server, route: str, pipeline: Sequence[Runtime], items: Sequence[Any], wanted: Wanted,
    say: Callable[[str], None],
) -> Recommendation:  # fmt: skip
    """Measure the stages, search, and return what came out.

    Args:
        server: that is tuned; its own workers are not started.
        route: the path.
        pipeline: its stages.
        items: the sample.
        wanted: the target.
        say: told what is being done.

    Raises:
        StartupError: a worker does not start.
        Halted: a stage takes none of the items.
    """
    settings = resolve(server._keywords, None, server._overrides)
    names = stage_names([runtime for stages in server._defined.routes.values() for runtime in stages])
    measured = asyncio.run(_measured(server, pipeline, items, wanted, lambda stage: say(f"measuring {names[stage]}")))
    most = wanted.most_workers or max(usable_cores(), *(runtime.num for runtime in pipeline))
    machine = Machine(usable_cores(), memory_limit(), most)
    fits = [
        _model(names[runtime], runtime, one, labels)
        for runtime, one, labels in zip(pipeline, measured, _labels(measured), strict=True)
    ]
    models, factor = slowed(fits, machine)
    say("searching")
    return _searched(route, pipeline, measured, fits, models, machine, factor, wanted, settings)


async def _measured(
    server: Server, pipeline: Sequence[Runtime], items: Sequence[Any], wanted: Wanted, say: Callable[[Runtime], None]
) -> list[Measured]:
    bounds = Bounds(MEASURE_SHARE * wanted.seconds / len(pipeline), wanted.most_batch, 2 * wanted.target)
    measured: list[Measured] = []
    for runtime in pipeline:
        say(runtime)
        measured.append(await measure(server, runtime, items, bounds))
        items = measured[-1].outputs
    return measured


def _labels(measured: Sequence[Measured]) -> list[list[Label]]:
    """Return for each stage the labels of the items that have come through all of them, in the same order."""
    places = list(range(len(measured[-1].labels)))
    found: list[list[Label]] = []
    for one in reversed(measured):
        found.insert(0, [one.labels[place] for place in places])
        places = [one.kept[place] for place in places]
    return found


def _model(name: str, runtime: Runtime, measured: Measured, labels: Sequence[Label]) -> StageModel:
    by_items = fitted(measured.by_items)
    by_cost = fitted(measured.by_cost) if measured.by_cost else None
    # Where a class says what items cost and the time does not go by it, the count of items may be the better line.
    costs = by_cost is not None and (by_cost.error <= by_items.error or runtime.max_batch_cost > 0)
    line = by_cost if by_cost is not None and costs else by_items
    batched = runtime.max_batch_size > 1
    return StageModel(
        name,
        line,
        labels,
        batched,
        max(measured.most, 2) if batched else 1,
        by_cost=costs,
        pads=runtime.sort_by_cost,
        keyed=runtime.labels is not None and runtime.labels.groups,
        budgeted=costs and batched,
        cpu=measured.cpu,
        memory=measured.memory,
        fixed_num=_fixed(runtime),
    )


def _fixed(runtime: Runtime) -> int:
    """Return how many workers a stage has, where that follows from its devices or environments."""
    environments = runtime.env or []
    if runtime.devices is not None or any(each != environments[0] for each in environments):
        return runtime.num
    return 0


def _searched(
    route: str, pipeline: Sequence[Runtime], measured: Sequence[Measured], fits: Sequence[StageModel],
    models: Sequence[StageModel], machine: Machine, factor: float, wanted: Wanted, settings: Settings,
) -> Recommendation:  # fmt: skip
    now = tuple(
        Choice(runtime.num, runtime.max_batch_size, runtime.max_wait_time, runtime.max_batch_cost)
        for runtime in pipeline
    )
    seconds = SEARCH_SHARE * wanted.seconds
    began = time.monotonic()
    trial = Workload.drawn(_TRIAL_CALLS, len(models[0].labels))
    Run(models, now, trial, capacity(models, now) / 2).play()
    fit = _TRIAL_CALLS * seconds / RUNS / max(time.monotonic() - began, 1e-6)
    # For throughput alone there are few runs, and a short one would count how the pipeline fills.
    calls = CALLS if math.isinf(wanted.target) else round(min(max(fit, LEAST_CALLS), CALLS))
    workload = Workload.drawn(calls, len(models[0].labels), wait=settings.wait / 1000)
    until = time.monotonic() + seconds
    # Workers that are defined and take more processors than there are slow each other.
    nums = [choice.num for choice in now]
    now_models, now_factor = slowed(fits, machine, nums)
    crowded = now_factor > factor
    half = until - seconds / 2 if crowded else until
    search = Search(models, machine, workload, wanted.target, lambda: time.monotonic() < half)
    as_now = [replace(model, fixed_num=num) for model, num in zip(now_models, nums, strict=True)]
    now_search = Search(as_now, machine, workload, wanted.target, lambda: time.monotonic() < until)
    now_rate = now_search.rate_of(now)
    found, curve = search.best(), search.curve
    # Of stages that are busy in part, more have room than `ways` says.
    if crowded and max(nums) <= machine.most and (other := now_search.best()).rate > CLEARLY * found.rate:
        models, factor, found, curve = now_models, now_factor, other, now_search.curve
    return Recommendation(
        route, pipeline, measured, models, machine, factor, now, now_rate, found,
        curve(found.choices), now_search.curve(now),
    )  # fmt: skip
