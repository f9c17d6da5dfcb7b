"""The spans of requests, stages and `forward`, as an exporter sees them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import tracing_workers as workers
from common import until
from direct_side import post, serving
from fake_engine import FakeEngine
from fakes import new_task
from harness import skip_module_without

from mosec_asgi import Server, Worker, log, testing
from mosec_asgi.log import JSONFormatter, TextFormatter
from mosec_asgi.messages import ForwardTime, Results
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.web.exchange import RequestIds, Shared
from mosec_asgi.web.protocols import plain

skip_module_without("opentelemetry.sdk")

from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from mosec_asgi.observing.provider import Opened  # noqa: E402
from mosec_asgi.observing.tracing import MOST_REMEMBERED, Tracing  # noqa: E402

EXPORTER = InMemorySpanExporter()
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
LEFT_OUT = f"00-{TRACE}-b7ad6b7169203331-00"
STAGES = (workers.First, workers.Batched)


@pytest.fixture(scope="module", autouse=True)
def _program() -> None:
    """The provider of this program; the API takes one once, so it stays."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)
    assert trace.get_tracer_provider() is provider, "another test has set one"


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    EXPORTER.clear()
    yield
    EXPORTER.clear()


def a_server(*stages: type[Worker], batch: int = 4, route: str = "/inference", **settings: Any) -> Server:
    server = Server(**{"timeout": 60_000, "tracing": True, **settings})
    for stage in stages:
        batches = stage is workers.Batched or stage is workers.Slots
        server.append_worker(stage, max_batch_size=batch if batches else 1, route=route)
    return server


def run(check: Coroutine[Any, Any, None]) -> None:
    testing.run(check)


def spans(name: str | None = None) -> list[ReadableSpan]:
    """Return the spans that have ended, in the order of their beginning."""
    ended = [span for span in EXPORTER.get_finished_spans() if name in (None, span.name)]
    return sorted(ended, key=lambda span: span.start_time or 0)


def the(name: str) -> ReadableSpan:
    (span,) = spans(name)
    return span


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def own_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def parent_id(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def traceparent(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{trace_id(span)}-{own_id(span)}-{span.context.trace_flags:02x}"


def linked(span: ReadableSpan) -> set[str]:
    return {f"{link.context.span_id:016x}" for link in span.links}


# -- one request -------------------------------------------------------------------------------------------------------


def test_the_spans_of_a_request_lie_in_each_other_and_add_up_to_its_time() -> None:
    async def check() -> None:
        async with testing.serving(a_server(*STAGES)) as service:
            service.worker(workers.First).slow(2.0)
            service.worker(workers.Batched).slow(3.0)
            ahead = asyncio.ensure_future(service.client.post("/inference", json=1))
            await asyncio.sleep(0.5)
            EXPORTER.clear()
            answer = await service.client.post("/inference", json=2, headers={"x-request-id": "mine"})
            assert answer.status_code == (await ahead).status_code == 200

    run(check())
    [request] = [span for span in spans("POST /inference") if attribute(span, "mosec.request_id") == "mine"]
    family = [span for span in spans() if trace_id(span) == trace_id(request)]
    assert [span.name for span in family] == ["POST /inference", "First_1", "forward", "Batched_2", "forward"]
    _, first, first_forward, second, second_forward = family
    assert [parent_id(span) for span in family] == [
        "",
        *[own_id(request), own_id(first)],
        *[own_id(request), own_id(second)],
    ]
    assert seconds(request) == pytest.approx(1.5 + 2.0 + 1.0 + 3.0, rel=0.03)
    assert seconds(first) + seconds(second) == pytest.approx(seconds(request), rel=0.05)
    for stage, forward, took in [(first, first_forward, 2.0), (second, second_forward, 3.0)]:
        assert seconds(forward) == pytest.approx(took, rel=0.01)
        queued = attribute(stage, "mosec.queue_seconds")
        assert queued + seconds(forward) == pytest.approx(seconds(stage), rel=0.05)
        assert stage.start_time <= forward.start_time <= forward.end_time <= stage.end_time  # type: ignore[operator]
    assert attribute(first, "mosec.queue_seconds") == pytest.approx(1.5, abs=0.01)


def test_a_request_says_what_the_conventions_ask_for() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First)) as service:
            await service.client.post("/inference?secret=1", content=b"[1]", headers={"host": "models.test:81"})

    run(check())
    request = the("POST /inference")
    said = dict(request.attributes or {})
    assert said.pop("mosec.request_id")
    assert said.pop("user_agent.original").startswith("python-httpx")  # type: ignore[union-attr]
    assert said == {
        "http.request.method": "POST",
        "http.route": "/inference",
        "url.path": "/inference",
        "url.scheme": "http",
        "http.request.body.size": 3,
        "client.address": "127.0.0.1",
        "server.address": "models.test",
        "server.port": 81,
        "http.response.status_code": 200,
    }
    assert (request.kind, request.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert {span.kind for span in spans() if span is not request} == {SpanKind.INTERNAL}


@pytest.mark.parametrize("stage", [workers.Async, workers.Spell, workers.SpellAsync, workers.Slots])
def test_each_kind_of_worker_measures_its_forward(stage: type[Worker]) -> None:
    async def check() -> None:
        async with testing.serving(a_server(stage)) as service:
            service.worker(stage).slow(5.0)
            assert (await service.client.post("/inference", json="hey")).status_code == 200

    run(check())
    request, visit, forward = the("POST /inference"), the(f"{stage.__name__}_1"), the("forward")
    assert parent_id(forward) == own_id(visit)
    assert parent_id(visit) == own_id(request)
    assert seconds(forward) >= 5.0
    assert seconds(forward) == pytest.approx(seconds(request), rel=0.05)


def test_a_stream_is_a_span_to_its_end_with_the_number_of_its_events() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Spell)) as service:
            async with service.client.stream("POST", "/inference", json="hey") as answer:
                async for line in answer.aiter_lines():
                    assert line or not spans("POST /inference")
            await until(lambda: spans("POST /inference"))

    run(check())
    for name in ("POST /inference", "Spell_1"):
        assert attribute(the(name), "mosec.stream.events") == 3
    assert [event.name for event in the("Spell_1").events] == ["first event"]
    assert attribute(the("POST /inference"), "http.response.status_code") == 200


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_linked_to_the_spans_of_its_requests_and_each_of_them_to_the_batch() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Batched)) as service:
            service.worker(workers.Batched).slow(1.0)
            first = asyncio.ensure_future(service.client.post("/inference", json=0))
            await asyncio.sleep(0.1)
            await asyncio.gather(*(service.client.post("/inference", json=n) for n in range(1, 4)))
            await first

    run(check())
    alone, *together = spans("forward")
    assert linked(alone) == set()
    assert len(together) == 3
    assert len({trace_id(span) for span in together}) == 3
    stages = {own_id(span) for span in spans("Batched_1") if attribute(span, "mosec.batch.size") == 3}
    assert {parent_id(span) for span in together} == stages
    (batch,) = [span for span in together if len(span.links) == 3]
    assert linked(batch) == stages
    assert [linked(span) for span in together if span is not batch] == [{own_id(batch)}] * 2
    assert len({(span.start_time, span.end_time) for span in together}) == 1


def test_tasks_that_are_only_sent_together_are_no_batch() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First)) as service:
            await asyncio.gather(*(service.client.post("/inference", json=n) for n in range(8)))

    run(check())
    assert [attribute(span, "mosec.batch.size") for span in spans("First_1")] == [1] * 8
    assert not any(span.links for span in spans())


def test_a_search_for_the_bad_item_is_one_span_with_the_number_of_its_calls() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Batched)) as service:
            service.worker(workers.Batched).slow(1.0)
            first = asyncio.ensure_future(service.client.post("/inference", json=0))
            await asyncio.sleep(0.1)
            answers = await asyncio.gather(*(service.client.post("/inference", json=item) for item in (1, "bad")))
            assert [answer.status_code for answer in answers] == [200, 500]
            await first

    run(check())
    assert [attribute(span, "mosec.forward.calls") for span in spans("forward")] == [None, 2, 2]


# -- where a trace comes from ------------------------------------------------------------------------------------------


def test_a_trace_goes_on_from_the_client_to_the_worker() -> None:
    told: list[str] = []

    async def check() -> None:
        async with testing.serving(a_server(workers.First, workers.Tells)) as service:
            headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
            told.append((await service.client.post("/inference", json=1, headers=headers)).json())

    run(check())
    request = the("POST /inference")
    assert (trace_id(request), parent_id(request)) == (TRACE, PARENT.split("-")[2])
    assert told == [traceparent(the("Tells_2"))]
    for span in spans():
        assert span.context is not None
        assert span.context.trace_state.to_header() == "vendor=1"


@pytest.mark.parametrize("header", ["", "00-nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01"])
def test_what_is_no_parent_begins_a_trace(header: str) -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First)) as service:
            await service.client.post("/inference", json=1, headers={"traceparent": header})

    run(check())
    assert the("POST /inference").parent is None


def test_a_request_whose_parent_is_not_sampled_is_not_traced_and_its_header_reaches_the_worker() -> None:
    told: list[str] = []

    async def check() -> None:
        async with testing.serving(a_server(workers.Tells)) as service:
            told.append((await service.client.post("/inference", json=1, headers={"traceparent": LEFT_OUT})).json())

    run(check())
    assert spans() == []
    assert told == [LEFT_OUT]


def test_an_instrumentation_around_the_service_has_the_span_of_the_request_as_its_child() -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.asgi")

    async def check() -> None:
        server = a_server(workers.First)
        around = instrumentation.OpenTelemetryMiddleware(server, exclude_spans=["send", "receive"])
        async with testing.serving(server, around) as service:
            await service.client.post("/inference", json=1, headers={"traceparent": PARENT})

    run(check())
    ours = [span for span in spans() if attribute(span, "mosec.request_id") and attribute(span, "http.route")]
    (request,) = ours
    (outer,) = [span for span in spans() if own_id(span) == parent_id(request)]
    assert outer.kind is SpanKind.SERVER
    assert request.kind is SpanKind.INTERNAL, "the request came to the server once"
    assert parent_id(outer) == PARENT.split("-")[2]


def test_a_call_from_the_program_is_a_child_of_its_span() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First)) as service:
            service.worker(workers.First).slow(0.5)
            with trace.get_tracer("test").start_as_current_span("mine"):
                assert await service.infer(1) == 1

    run(check())
    mine, call = the("mine"), the("infer /inference")
    assert parent_id(call) == own_id(mine)
    assert parent_id(the("First_1")) == own_id(call)
    assert seconds(call) == pytest.approx(0.5, rel=0.05)
    assert (call.kind, attribute(call, "mosec.code")) == (SpanKind.INTERNAL, 200)


def test_a_stream_that_the_program_reads_is_a_child_of_its_span() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Spell)) as service:
            with trace.get_tracer("test").start_as_current_span("mine"):
                assert [event async for event in service.stream("hey")] == ["h", "e", "y"]

    run(check())
    call = the("stream /inference")
    assert parent_id(call) == own_id(the("mine"))
    assert attribute(call, "mosec.stream.events") == 3


def test_a_call_from_a_thread_that_blocks_is_a_child_of_its_span_too() -> None:
    server = Server(timeout=20_000, tracing=True)
    server.append_worker(workers.First, executor="thread")
    with server.engine() as engine, trace.get_tracer("test").start_as_current_span("mine"):
        assert engine.infer(1) == 1
    assert parent_id(the("infer /inference")) == own_id(the("mine"))


def test_the_items_of_one_request_are_stages_below_its_span() -> None:
    from mosec_asgi.protocols import OpenAI

    class Embed(Worker):
        def forward(self, data: list[Any]) -> list[list[float]]:
            return [[1.0, 2.0] for _ in data]

    async def check() -> None:
        server = Server(tracing=True, server_timing=True, timeout=60_000)
        server.append_worker(Embed, max_batch_size=8, route="/embed")
        server.add_protocol(OpenAI(embeddings={"e": "/embed"}))
        async with testing.serving(server) as service:
            body = {"model": "e", "input": ["a", "b", "c"]}
            answer = await service.client.post("/v1/embeddings", json=body)
            assert len(answer.json()["data"]) == 3
            said.append(answer.headers["server-timing"])

    said: list[str] = []
    run(check())
    request = the("POST /v1/embeddings")
    assert [parent_id(span) for span in spans("Embed_1")] == [own_id(request)] * 3
    assert said[0].endswith(f'traceparent;desc="{traceparent(request)}"')


# -- failures ----------------------------------------------------------------------------------------------------------


def statuses(name: str) -> tuple[StatusCode, Any, Any]:
    span = the(name)
    return span.status.status_code, attribute(span, "http.response.status_code"), attribute(span, "error.type")


def test_an_exception_of_a_worker_is_an_error_of_both_spans() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Batched)) as service:
            assert (await service.client.post("/inference", json="bad")).status_code == 500

    run(check())
    assert statuses("POST /inference") == (StatusCode.ERROR, 500, "500")
    assert statuses("Batched_1") == (StatusCode.ERROR, None, "500")
    assert the("Batched_1").status.description == "inference internal error"


def test_a_fault_of_the_client_is_none_of_the_server() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Batched)) as service:
            assert (await service.client.post("/inference", json="wrong")).status_code == 422

    run(check())
    assert statuses("POST /inference") == (StatusCode.UNSET, 422, None)
    assert statuses("Batched_1") == (StatusCode.ERROR, None, "422")


def test_a_request_that_is_refused_before_any_stage_has_its_span() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First, max_request_size=10)) as service:
            assert (await service.client.post("/inference", content=b"")).status_code == 400
            assert (await service.client.post("/inference", content=b"x" * 11)).status_code == 413

    run(check())
    assert {attribute(span, "http.response.status_code") for span in spans()} == {400, 413}


def test_a_request_that_is_not_done_in_time_says_where() -> None:
    async def check() -> None:
        async with testing.serving(a_server(*STAGES, timeout=4000, load_shedding=False)) as service:
            service.worker(workers.Batched).hang(after=0)
            assert (await service.client.post("/inference", json=1)).status_code == 408

    run(check())
    assert statuses("POST /inference") == (StatusCode.UNSET, 408, None)
    assert statuses("First_1") == (StatusCode.UNSET, None, None)
    assert statuses("Batched_2") == (StatusCode.ERROR, None, "408")
    assert seconds(the("First_1")) + seconds(the("Batched_2")) == pytest.approx(4.0, rel=0.05)


def test_a_client_that_leaves_ends_all_spans() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First)) as service:
            service.worker(workers.First).slow(5.0)
            asked = asyncio.ensure_future(service.client.post("/inference", json=1))
            await asyncio.sleep(1.0)
            asked.cancel()
            await until(lambda: spans("POST /inference"))

    run(check())
    assert statuses("POST /inference") == (StatusCode.ERROR, None, "client_left")
    assert statuses("First_1") == (StatusCode.ERROR, None, "client_left")
    assert seconds(the("First_1")) == pytest.approx(1.0, rel=0.05)


def test_a_cancelled_call_from_the_program_ends_its_span() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.First)) as service:
            service.worker(workers.First).slow(5.0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(service.infer(1), 1.0)

    run(check())
    assert attribute(the("infer /inference"), "error.type") == "client_left"


def test_a_call_that_shares_the_work_of_another_names_it_and_has_no_forward() -> None:
    async def check() -> None:
        server = Server(timeout=60_000, tracing=True)
        server.append_worker(workers.First, coalesce=True)
        async with testing.serving(server) as service:
            service.worker(workers.First).slow(1.0)
            asked = []
            for name in ("one", "two"):
                headers = {"x-request-id": name}
                asked.append(asyncio.ensure_future(service.client.post("/inference", json=1, headers=headers)))
                await asyncio.sleep(0.1)
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]

    run(check())
    first, second = spans("First_1")
    assert [attribute(span, "mosec.coalesced_with") for span in (first, second)] == [None, "one"]
    assert parent_id(the("forward")) == own_id(first)
    assert second.status.status_code is StatusCode.UNSET


def test_a_batch_whose_worker_died_is_tried_again_within_the_same_span() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Batched)) as service:
            service.worker(workers.Batched).crash(after=0)
            assert (await service.client.post("/inference", json=1)).status_code == 200

    run(check())
    stage = the("Batched_1")
    assert attribute(stage, "mosec.attempts") == 2
    assert [event.name for event in stage.events] == ["worker ended"]
    assert stage.status.status_code is StatusCode.UNSET


def test_a_request_that_is_deadly_is_an_error_after_its_last_attempt() -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Batched)) as service:
            service.worker(workers.Batched).crash(after=0, times=2)
            assert (await service.client.post("/inference", json=1)).status_code == 500

    run(check())
    assert statuses("Batched_1") == (StatusCode.ERROR, None, "500")
    assert attribute(the("Batched_1"), "mosec.attempts") == 2


class Raises(SpanProcessor):
    """A fault of the program's own."""

    def __init__(self, method: str) -> None:
        self.method = method

    def on_start(self, *_: Any, **__: Any) -> None:
        if self.method == "on_start":
            raise ArithmeticError("a fault of on_start")

    def on_end(self, *_: Any) -> None:
        if self.method == "on_end":
            raise ArithmeticError("a fault of on_end")


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_no_request_fails_of_what_was_given_to_opentelemetry(
    logged: pytest.LogCaptureFixture, method: str
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Raises(method))
    tracing = Tracing(Opened(provider.get_tracer("test"), provider), time.monotonic)
    async with serving(app={"tracing": tracing}) as side, side.client() as client:
        for number in (1, 2):
            client.send(post(b"[1]"))
            (await side.task(number)).answer(b"[1]")
            assert (await client.response()).status == 200
    stage = tracing.stage("A_1", batched=False)
    task = new_task(7, 0.0)
    task.trace = PARENT
    stage.arrived(task, 0.0)
    stage.sent(1, [task], 0.0)
    stage.came(1, [task], Results([7], [200], [b""], 0.0, [ForwardTime(1.0, 1.0, 1)]), 1.0)
    assert tracing.visits == {}
    assert logged.text.count("what OpenTelemetry was given has raised (told once)") == 1


# -- what it costs -----------------------------------------------------------------------------------------------------


class Looks(Sampler):
    """Asks another, and counts how often it is asked."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner
        self.asked = 0

    def should_sample(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        return self.inner.should_sample(*arguments, **options)

    def get_description(self) -> str:
        return self.inner.get_description()


def tracing_of(sampler: Sampler, exporter: InMemorySpanExporter = EXPORTER, **options: Any) -> Tracing:
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(Opened(provider.get_tracer("test"), provider), **{"clock": lambda: 0.0, **options})


def begun(tracing: Tracing, headers: dict[bytes, bytes] | None = None) -> bool:
    parent = tracing.parent(headers or {})
    if parent is None:
        return False
    return tracing.begin("a request", parent, {}, "id", serves=True) is not None


def test_nothing_is_asked_or_made_for_a_request_that_will_not_be_sampled() -> None:
    sampler = Looks(ParentBased(TraceIdRatioBased(0.25)))
    tracing = tracing_of(sampler)
    traced = sum(begun(tracing) for _ in range(2000))
    assert 350 < traced < 650
    assert sampler.asked == traced, "no request was asked for in vain, and what was foretold is what was said"
    assert not any(begun(tracing, {b"traceparent": LEFT_OUT.encode()}) for _ in range(10))
    assert sampler.asked == traced
    assert begun(tracing, {b"traceparent": PARENT.encode()})


def test_of_a_rate_of_none_and_of_all_the_same_holds() -> None:
    none = Looks(ParentBased(ALWAYS_OFF))
    assert not any(begun(tracing_of(none)) for _ in range(10))
    assert none.asked == 0
    every = tracing_of(ParentBased(TraceIdRatioBased(1.0)))
    assert all(begun(every) for _ in range(10))


def test_a_sampler_of_another_kind_decides_itself() -> None:
    sampler = Looks(TraceIdRatioBased(0.5))
    tracing = tracing_of(sampler)
    traced = sum(begun(tracing) for _ in range(1000))
    assert 350 < traced < 650
    assert sampler.asked == 1000


def test_without_the_setting_no_call_is_marked_and_no_worker_measures() -> None:
    async def check() -> None:
        async with testing.serving(a_server(*STAGES, tracing=False)) as service:
            await service.client.post("/inference", json=1, headers={"traceparent": PARENT})

    run(check())
    assert spans() == []


# -- the way past ASGI -------------------------------------------------------------------------------------------------


def with_spans() -> dict[str, Any]:
    return {"app": {"tracing": tracing_of(ParentBased(TraceIdRatioBased(1.0)), clock=time.monotonic)}}


async def test_a_request_past_asgi_has_the_same_span() -> None:
    async with serving(**with_spans()) as side, side.client() as client:
        client.send(post(b"[1]", traceparent=PARENT))
        task = await side.task()
        assert task.call.trace.split("-")[1] == TRACE
        task.answer(b"[1]")
        assert (await client.response()).status == 200
        client.send(post(b"[2]"))
        (await side.task(2)).fail(503, "not now")
        assert (await client.response()).status == 503
        await until(lambda: len(spans()) == 2)
        assert side.asked == 0
    first, second = spans()
    assert parent_id(first) == PARENT.split("-")[2]
    assert attribute(first, "client.address") == "127.0.0.1"
    assert [attribute(span, "http.response.status_code") for span in (first, second)] == [200, 503]
    assert second.parent is None
    assert second.status.status_code is StatusCode.ERROR


async def test_a_client_that_leaves_there_ends_the_span() -> None:
    async with serving(**with_spans()) as side, side.client() as client:
        client.send(post(b"[1]"))
        await side.task()
        client.leave()
        await until(lambda: spans("POST /json"))
    assert attribute(the("POST /json"), "error.type") == "client_left"


# -- log lines ---------------------------------------------------------------------------------------------------------


def test_log_lines_name_the_trace(logged: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with testing.serving(a_server(workers.Logs, workers.Batched, access_log=True)) as service:
            headers = {"traceparent": PARENT, "x-request-id": "mine"}
            await service.client.post("/inference", json="bad", headers=headers)
            await service.client.post("/inference", json=1, headers={"traceparent": LEFT_OUT})

    run(check())
    by_text = {record.getMessage(): record for record in logged.records}
    ours = [by_text["at work on bad"], *(r for t, r in by_text.items() if t.startswith("POST /inference 500"))]
    assert len(ours) == 2
    for record in ours:
        log.SpeakerFilter().filter(record)
    assert by_text["at work on bad"].trace_id == TRACE  # type: ignore[attr-defined]
    assert by_text["at work on 1"].trace_id == ""  # type: ignore[attr-defined]


def test_a_line_of_the_server_names_the_trace_of_its_request_and_of_the_current_span() -> None:
    tracing = tracing_of(ParentBased(TraceIdRatioBased(1.0)))
    context = tracing.parent({b"traceparent": PARENT.encode()})
    assert context is not None
    tracing.begin("a request", context, {}, "mine", serves=True)
    log.name_traces(tracing.trace_of)
    try:
        record = logging.LogRecord("mosec_asgi.user", logging.INFO, __file__, 1, "text", None, None)
        record.request_id = "mine other"
        log.SpeakerFilter().filter(record)
        assert json.loads(JSONFormatter().format(record))["fields"]["trace_id"] == TRACE
        assert f"trace_id={TRACE}" in TextFormatter(coloured=False).format(record)
        plain = logging.LogRecord("mosec_asgi.user", logging.INFO, __file__, 1, "text", None, None)
        with trace.get_tracer("test").start_as_current_span("mine") as span:
            log.SpeakerFilter().filter(plain)
            assert plain.trace_id == f"{span.get_span_context().trace_id:032x}"  # type: ignore[attr-defined]
    finally:
        log.forget_traces(tracing.trace_of)
    other = logging.LogRecord("mosec_asgi.user", logging.INFO, __file__, 1, "text", None, None)
    other.request_id = "mine"
    log.SpeakerFilter().filter(other)
    assert "trace_id" not in json.loads(JSONFormatter().format(other))["fields"]


def test_the_traces_of_old_requests_are_forgotten() -> None:
    tracing = tracing_of(ParentBased(TraceIdRatioBased(1.0)), InMemorySpanExporter())
    for number in range(MOST_REMEMBERED + 10):
        parent = tracing.parent({})
        assert parent is not None
        tracing.begin("a request", parent, {}, f"request {number}", serves=True)
    assert [bool(tracing.trace_of(f"request {number}")) for number in (0, 9, 10, MOST_REMEMBERED + 9)] == [
        False, False, True, True
    ]  # fmt: skip


def test_times_follow_the_clock_of_the_world_when_that_is_set() -> None:
    now, world = [100.0], [5_000_000_000]
    tracing = tracing_of(ALWAYS_OFF, clock=lambda: now[0], wall=lambda: world[0])
    assert tracing.nanoseconds(100.0) == 5_000_000_000
    world[0] = 90_000_000_000
    assert tracing.nanoseconds(101.0) == 6_000_000_000
    now[0] = 200.0
    assert tracing.nanoseconds(200.0) == 90_000_000_000


async def test_a_request_by_grpc_has_the_same_span() -> None:
    exchanges = pytest.importorskip("mosec_asgi.web.grpc.exchange")
    engine = FakeEngine()
    (route,) = plain.routes([("/json", "application/json", False)], engine.new_id)
    tracing = tracing_of(ParentBased(TraceIdRatioBased(1.0)), clock=time.monotonic)
    shared = Shared(engine, ServiceMetrics("test", []), RequestIds(), (b"server", b"test"), 1000, tracing=tracing)
    exchange = exchanges.GrpcExchange(route, shared, {b"traceparent": PARENT.encode()}, b"[1]")
    asked = asyncio.ensure_future(exchange.respond())
    await until(lambda: engine.tasks)
    engine.tasks[0].answer(b"[2]")
    assert (await asked).body == b"[2]"
    request = the("POST /json")
    assert parent_id(request) == PARENT.split("-")[2]
    assert attribute(request, "http.response.status_code") == 200
