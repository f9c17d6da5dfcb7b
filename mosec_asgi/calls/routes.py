"""What a caller must know of a route, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from mosec_asgi.batching.coordinator import RoutePlan
from mosec_asgi.batching.stage import StagePlan
from mosec_asgi.errors import CallError

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
        in_flight: calls in flight with which all its workers always have a full batch to run and another behind it.
    """

    path: str
    place: int
    streams: bool
    apart: bool
    egress: str
    in_flight: int


def call_routes(stages: Sequence[StagePlan], routes: Sequence[RoutePlan]) -> dict[str, CallRoute]:
    """Return the routes of a service by their paths."""
    return {
        route.path: CallRoute(
            route.path,
            place,
            streams=stages[route.stages[-1]].streams,
            apart=stages[route.stages[0]].executor == "process",
            egress=stages[route.stages[-1]].name,
            in_flight=max(LEAST_IN_FLIGHT, sum(2 * _room(stages[stage]) for stage in route.stages)),
        )
        for place, route in enumerate(routes)
    }


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


def _room(plan: StagePlan) -> int:
    return len(plan.specs) * plan.concurrency * plan.batch_size
