"""What a caller must know of a route."""

from __future__ import annotations

import dataclasses

import pytest
from fakes import stage

from mosec_asgi.batching.coordinator import Limits, RoutePlan
from mosec_asgi.calls.routes import LEAST_IN_FLIGHT, call_routes, found
from mosec_asgi.errors import CallError

LIMITS = Limits(1000, 3.0, 3.0, 30.0, 1000)
STAGES = [
    dataclasses.replace(stage("A_1", max_batch_size=64), executor="thread"),
    stage("B_2"),
    dataclasses.replace(stage("C_3"), streams=True, concurrency=100),
]
PIPELINES = [RoutePlan("/a", (0, 1)), RoutePlan("/b", (1,)), RoutePlan("/c", (1, 2))]
ROUTES = call_routes(STAGES, PIPELINES, LIMITS)


def test_a_route_knows_its_place_its_ends_and_whether_it_streams() -> None:
    told = {path: (route.place, route.streams, route.apart, route.egress) for path, route in ROUTES.items()}
    assert told == {
        "/a": (0, False, False, "B_2"),
        "/b": (1, False, True, "B_2"),
        "/c": (2, True, True, "C_3"),
    }


def test_a_route_knows_the_names_of_its_stages() -> None:
    assert ROUTES["/a"].stages[-1] == ROUTES["/a"].egress
    assert len(ROUTES["/a"].stages) == len(PIPELINES[0].stages)


def test_a_full_batch_runs_in_each_worker_and_another_waits() -> None:
    told = {path: (route.at_once, route.in_flight) for path, route in ROUTES.items()}
    assert told == {"/a": (65, 130), "/b": (1, LEAST_IN_FLIGHT), "/c": (101, 202)}


def test_no_more_are_in_flight_than_the_service_admits() -> None:
    routes = call_routes(STAGES, PIPELINES, dataclasses.replace(LIMITS, capacity=10))
    assert {route.in_flight for route in routes.values()} == {10}


def test_a_route_is_found_where_it_is_asked_in_its_own_way() -> None:
    assert found(ROUTES, "/a", streams=False) is ROUTES["/a"]
    assert found(ROUTES, "/c", streams=True) is ROUTES["/c"]


@pytest.mark.parametrize(
    ("path", "streams", "code", "text"),
    [
        ("/d", False, 404, "there is no route '/d'; there are /a, /b, /c"),
        ("/c", False, 405, "the route /c streams: use `async for"),
        ("/a", True, 405, "the route /a does not stream: use `await server.infer"),
    ],
)
def test_what_cannot_be_called_so_says_what_can(path: str, streams: bool, code: int, text: str) -> None:
    with pytest.raises(CallError) as caught:
        found(ROUTES, path, streams=streams)
    assert (caught.value.code, str(caught.value).startswith(text)) == (code, True)
