"""What a caller must know of a route, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from mosec_asgi.batching.coordinator import Limits, RoutePlan
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.errors import CallError
from mosec_asgi.labels import Labels
from mosec_asgi.remote.handshake import RouteShape

# Calls in flight with which `map` keeps a stage of one quick worker, which takes its tasks one by one, at work.
LEAST_IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class CallRoute:
    """A route, as it is called.

    Attributes:
        path: its name.
        place: in the service's list.
        streams: its results are streams.
        apart: its first stage's workers can read shared memory.
        egress: the name of its last stage.
        at_once: calls that its workers can run at once, a full batch each.
        in_flight: calls in flight with which each of them has another batch behind that.
        timeout: seconds that a call may take.
        takes_request: a stage of it wants to know of the request.
        stages: the names of its stages.
        labels: what its first stage wants to know of an item; None for nothing.
    """

    path: str
    place: int
    streams: bool
    apart: bool
    egress: str
    at_once: int
    in_flight: int
    timeout: float
    takes_request: bool = False
    stages: tuple[str, ...] = ()
    labels: Labels | None = None


def call_routes(stages: Sequence[StagePlan], routes: Sequence[RoutePlan], limits: Limits) -> dict[str, CallRoute]:
    """Return the routes of a service by their paths."""
    found = {}
    for place, route in enumerate(routes):
        plans = [stages[stage] for stage in route.stages]
        at_once = sum(len(plan.specs) * plan.concurrency * plan.batch_size for plan in plans)
        found[route.path] = CallRoute(
            route.path,
            place,
            streams=plans[-1].streams,
            apart=plans[0].executor == "process",
            egress=plans[-1].name,
            at_once=at_once,
            in_flight=min(max(LEAST_IN_FLIGHT, 2 * at_once), max(1, limits.capacity)),
            timeout=limits.timeout,
            takes_request=any(plan.takes_request for plan in plans),
            stages=tuple(plan.name for plan in plans),
            labels=plans[0].labels,
        )
    return found


def route_shapes(routes: Mapping[str, CallRoute]) -> list[RouteShape]:
    """Return what a web process and its engine must know alike of the routes."""
    return [RouteShape(route.path, route.stages, route.streams) for route in routes.values()]


def found(routes: Mapping[str, CallRoute], path: str, *, streams: bool) -> CallRoute:
    """Return a route that is to be called.

    Args:
        routes: all that there are.
        path: the one that is wanted.
        streams: as a stream.

    Raises:
        CallError: there is no such route, or it is called in the other way.
    """
    route = routes.get(path)
    if route is None:
        there = ", ".join(sorted(routes))
        raise CallError(f"there is no route {path!r}; there are {there}", HTTPStatus.NOT_FOUND)
    if route.streams != streams:
        raise CallError(
            f"the route {path} streams: use `async for event in server.stream(item, route={path!r})`, or gather its "
            f"events by `[event async for event in server.stream(...)]`"
            if route.streams
            else f"the route {path} does not stream: use `await server.infer(item, route={path!r})`",
            HTTPStatus.METHOD_NOT_ALLOWED,
        )
    return route
