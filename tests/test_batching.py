"""Batches by cost, key, priority and tenant, from client to worker: over HTTP, by `infer`, and between stages."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from batching_workers import Before, Bodies, Costs
from common import PATIENCE, until

from mosec_asgi import Server, Worker
from mosec_asgi.errors import CallError, DefinitionError, MosecError

BOTH = pytest.mark.parametrize("executor", ["process", "thread"])
# Long enough for all that a test sends at one time to come.
WAIT = 300


@contextlib.asynccontextmanager
async def serving(*stages: type[Worker], executor: str = "thread", **options: Any) -> AsyncIterator[Server]:
    """Serve a pipeline whose last stage batches."""
    server = Server(timeout=20_000, load_shedding=False)
    for stage in stages[:-1]:
        server.append_worker(stage, executor=executor)
    options = {"max_batch_size": 8, "max_wait_time": WAIT, **options}
    server.append_worker(stages[-1], executor=executor, **options)
    async with server:
        yield server


def item(name: str, cost: Any = 1, key: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "cost": cost, "key": key, **more}


async def ask(server: Server, *items: dict[str, Any], **headers: str) -> list[httpx.Response]:
    """Send requests at one time."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test") as client:
        return await asyncio.gather(
            *(client.post("/inference", content=orjson.dumps(each), headers=named) for each in items)
        )


def batches(results: list[Any]) -> list[list[str]]:
    """Return the names in each batch, in the order of the first."""
    found = [sorted(name for name, _, _ in batch) for batch in results]
    return sorted(map(list, set(map(tuple, found))))


@BOTH
def test_batches_are_of_one_key_and_within_the_budget(executor: str) -> None:
    async def scenario() -> None:
        async with serving(Costs, executor=executor, max_batch_cost=10) as server:
            items = [item(f"{key}{cost}", cost, key) for key in "xy" for cost in (3, 4, 5, 20)]
            results = await asyncio.gather(*(server.infer(each) for each in items))
            assert batches(results) == [["x20"], ["x3", "x4"], ["x5"], ["y20"], ["y3", "y4"], ["y5"]]

    asyncio.run(scenario())


@BOTH
def test_the_stage_before_says_what_an_item_costs(executor: str) -> None:
    async def scenario() -> None:
        async with serving(Before, Costs, executor=executor, max_batch_cost=10) as server:
            items = [item(f"{key}{cost}", cost, key, large=cost == 4) for key in "xy" for cost in (3, 4, 8)]
            responses = await ask(server, *items)
            results = [response.json() for response in responses]
            assert batches(results) == [["x3", "x4"], ["x8"], ["y3", "y4"], ["y8"]]

    asyncio.run(scenario())


@BOTH
def test_an_item_whose_cost_or_key_is_wrong_fails_alone(executor: str) -> None:
    async def scenario() -> None:
        async with serving(Before, Costs, executor=executor, max_batch_cost=10) as server:
            wrong, unknown, good = await ask(server, item("a", "wrong"), item("b", key="unknown"), item("c"))
            assert (wrong.status_code, wrong.text) == (500, "internal error: Costs.cost raised ValueError")
            assert (unknown.status_code, unknown.text) == (400, "bad request: there is no adapter of that name")
            assert good.json() == [["c", 1, ""]]
        async with serving(Costs, executor="thread", max_batch_cost=10) as server:
            with pytest.raises(MosecError, match=r"Costs\.cost raised ValueError"):
                await server.infer(item("a", "wrong"))

    asyncio.run(scenario())


def test_over_http_a_body_costs_its_length_and_the_header_is_its_key() -> None:
    async def scenario() -> None:
        size = len(orjson.dumps(item("a", 1)))
        async with serving(Costs, max_batch_cost=2 * size) as server:
            results = [response.json() for response in await ask(server, *map(item, "abc"))]
            assert batches(results) == [["a", "b"], ["c"]]
        async with serving(Costs) as server:
            french, german = await asyncio.gather(
                ask(server, item("a"), item("b"), x_batch_key="fr"), ask(server, item("c"), x_batch_key="de")
            )
            assert batches([response.json() for response in french + german]) == [["a", "b"], ["c"]]
            [refused] = await ask(server, item("a"), x_batch_key="k" * 129)
            assert refused.status_code == 400
            assert "the header x-batch-key is a key of 129 bytes, and a key has at most 128" in refused.text

    asyncio.run(scenario())


def test_a_class_reads_cost_and_key_from_the_body() -> None:
    async def scenario() -> None:
        async with serving(Bodies, max_batch_cost=10, refuse_over_cost=True) as server:
            items = [item(f"{key}{cost}", cost, key) for key in "xy" for cost in (6, 4)] + [item("big", 11)]
            *responses, big = await ask(server, *items, x_batch_key="not asked")
            assert batches([response.json() for response in responses]) == [["x4", "x6"], ["y4", "y6"]]
            assert big.status_code == 413
            assert "a cost of 11, and Bodies takes at most 10 (its max_batch_cost)" in big.text
            with pytest.raises(MosecError) as caught:
                await server.infer(item("big", 11))
            assert caught.value.code == 413

    asyncio.run(scenario())


def test_infer_takes_a_key_a_priority_and_a_tenant_within_bounds() -> None:
    async def scenario() -> None:
        async with serving(Costs) as server:
            both = await asyncio.gather(
                server.infer(item("a", key="x"), key="mine"), server.infer(item("b", key="y"), key="mine", priority=3)
            )
            assert batches(both) == [["a", "b"]]
            for wrong in ({"priority": 11}, {"priority": 1.5}, {"key": "k" * 129}, {"tenant": 5}):
                with pytest.raises(CallError):
                    await server.infer(item("a"), **wrong)

    asyncio.run(scenario())


class Plain(Worker):
    def forward(self, data: Any) -> Any:
        return data


class OnlyBodies(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data

    @staticmethod
    def cost_of_body(body: bytes) -> int:
        return len(body)


def test_what_does_not_fit_is_said_where_it_is_written() -> None:
    server = Server()
    with pytest.raises(DefinitionError, match=r"define `@staticmethod def cost\(item\) -> int` in Plain"):
        server.append_worker(Plain, max_batch_size=4, max_batch_cost=10)
    with pytest.raises(
        DefinitionError, match=r"max_batch_cost of Costs is about batches, .* set max_batch_size above 1"
    ):
        server.append_worker(Costs, max_batch_cost=10)
    with pytest.raises(DefinitionError, match="set that, too"):
        server.append_worker(Costs, max_batch_size=4, refuse_over_cost=True)
    server.append_worker(Plain)
    with pytest.raises(DefinitionError, match=r"OnlyBodies is not the first stage of /inference.*def cost\(item\)"):
        server.append_worker(OnlyBodies, max_batch_size=4, max_batch_cost=10)


def test_a_stage_cannot_tell_two_others_different_things() -> None:
    from mosec_asgi import Runtime

    first = Runtime(Plain)
    with pytest.raises(DefinitionError, match="make two Runtime objects of Plain, one for each"):
        Server().register_runtime({"/a": [first, Runtime(Costs, max_batch_size=4)], "/b": [first, Runtime(Plain)]})


def test_what_batches_cost_is_measured_where_it_counts() -> None:
    async def scenario() -> None:
        for options, shown in (({"max_batch_cost": 1000}, True), ({}, False)):
            async with serving(Costs, **options) as server:
                await asyncio.gather(*(server.infer(item(name, 5)) for name in "abc"))
                async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test") as client:
                    text = (await client.get("/metrics")).text
            line = 'mosec_service_batch_cost_sum{stage="Costs_1"} 15'
            assert (line in text) == shown

    asyncio.run(scenario())


# -- what clients may say ----------------------------------------------------------------------------------------------


class Places(Worker):
    """Answers with how many it has answered before; the first waits for the others to come."""

    # Lets the first item end. The worker is a thread, and so has the test's own class.
    gate = threading.Event()

    def __init__(self) -> None:
        self.answered = 0

    def forward(self, data: Any) -> int:
        if not self.answered:
            self.gate.wait(PATIENCE)
        self.answered += 1
        return self.answered


async def places(server: Server, *headers: dict[str, str]) -> list[int]:
    """Send requests, in order, while a first one runs; return in which order they are run."""

    def there() -> int:
        stage = server.statistics().stages[0]
        return stage.queued + stage.in_flight

    Places.gate.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test") as client:
        first = asyncio.ensure_future(client.post("/inference", content=b"0"))
        await until(lambda: server.statistics().stages[0].in_flight == 1)
        others = asyncio.gather(*(client.post("/inference", content=b"0", headers=each) for each in headers))
        await until(lambda: there() == 1 + len(headers))
        Places.gate.set()
        answers = await others
        await first
    return [answer.json() - 2 for answer in answers]


@pytest.mark.parametrize("reads", [True, False])
def test_priorities_and_tenants_of_clients_are_read_where_the_service_says_so(reads: bool) -> None:
    async def scenario() -> None:
        settings = {"priority_header": True, "tenant_header": "X-Fairness-Key"} if reads else {}
        server = Server(timeout=20_000, load_shedding=False, **settings)
        server.append_worker(Places, executor="thread")
        async with server:
            sent = [{"x-fairness-key": "a"}] * 3 + [{"x-fairness-key": "b"}, {"x-priority": "2"}]
            assert await places(server, *sent) == ([1, 3, 4, 2, 0] if reads else [0, 1, 2, 3, 4])

    asyncio.run(scenario())


@pytest.mark.parametrize("value", ["11", "-11", "1.5", "", "9" * 30])
def test_a_priority_that_is_none_is_refused(value: str) -> None:
    async def scenario() -> None:
        server = Server(timeout=20_000, priority_header=True)
        server.append_worker(Plain, executor="thread")
        async with server:
            [refused] = await ask(server, item("a"), x_priority=value)
            assert refused.status_code == 400
            assert refused.text == "bad request: the header x-priority must be a whole number from -10 to 10"

    asyncio.run(scenario())


def test_weights_are_written_as_a_list() -> None:
    from mosec_asgi.definition import weights_of

    assert weights_of(" gold=3, free = 0.5,") == {"gold": 3.0, "free": 0.5}
    for wrong in ("gold", "gold=much", "gold=0", "=1", "gold=nan"):
        with pytest.raises(DefinitionError, match=r"tenant_weights is a list of names and numbers from 0.001 to 1000"):
            weights_of(wrong)


def test_the_tenant_header_is_the_name_of_a_header() -> None:
    from mosec_asgi.config import resolve
    from mosec_asgi.web.protocols.ordering import Ordering, ordering_of

    assert ordering_of(resolve({"tenant_header": " X-Tenant "}, {})) == Ordering(tenant=b"x-tenant")
    with pytest.raises(DefinitionError, match=r"the name of a header, such as x-fairness-key, not 'x fairness'"):
        ordering_of(resolve({"tenant_header": "x fairness"}, {}))
