"""The tracer: the program's own, or one that the OTEL_* variables describe, with a real collector's protocol."""

from __future__ import annotations

import contextlib
import http.server
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import python, running, skip_module_without, wait_until, written

from mosec_asgi.errors import DefinitionError
from mosec_asgi.observing import provider

skip_module_without("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

from opentelemetry import trace  # noqa: E402
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: E402
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402

SERVICE = """
import {imports}

from mosec_asgi import Server
from tracing_workers import {stages}

{before}
if __name__ == "__main__":
    server = Server(tracing=True, timeout=20_000)
    {appended}
    server.run()
"""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def service(folder: Path, *stages: str, before: str = "", imports: str = "time") -> list[str]:
    appended = "\n    ".join(
        f"server.append_worker({stage}, max_batch_size={4 if 'Batch' in stage else 1})" for stage in stages
    )
    text = SERVICE.format(stages=", ".join(stages), appended=appended, before=before, imports=imports)
    return python(written(folder, text))


# -- a collector -------------------------------------------------------------------------------------------------------


class Collector:
    """Takes OTLP over HTTP, as protobuf.

    Attributes:
        url: where it listens.
        requests: what it was sent.
    """

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        taken = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                taken.append(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def services(self) -> set[str]:
        return {
            attribute.value.string_value
            for request in self.requests
            for resource in request.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()


def variables(collector: Collector, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", **more}


def seconds(span: Any) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_collector_sees_the_spans_of_a_request_whose_times_add_up(tmp_path: Path, collector: Collector) -> None:
    parents = [PARENT.replace("0af7", f"{number}af7") for number in (1, 2, 3, 4)]
    command = service(tmp_path, "Naps", "NapsBatch")
    with running(command, tmp_path / "log", environment=variables(collector, OTEL_SERVICE_NAME="my-models")) as program:
        program.wait_ready()
        before = time.time_ns()
        for parent in parents:
            answer = program.client.post("/inference", json=1, headers={"traceparent": parent})
            assert answer.status_code == 200
        after = time.time_ns()
        assert program.stop() == 0
        for parent in parents:
            assert f'"trace_id": "{parent.split("-")[1]}"' in program.output, "the worker's line names the trace"
    assert collector.services == {"my-models"}
    missing = [unaccounted(collector, parent, before, after) for parent in parents]
    # A processor that does something else adds to a request what is no model's time, but not to each of them.
    assert min(missing) <= 0.05, missing


def unaccounted(collector: Collector, parent: str, before: int, after: int) -> float:
    """Check a request's spans; return the share of its time that its stages, or their waiting and `forward`, lack."""
    _, trace_id, parent_id, _ = parent.split("-")
    spans = {span.span_id: span for span in collector.spans if span.trace_id.hex() == trace_id}
    named = {span.name: span for span in spans.values()}
    request, first, second = named["POST /inference"], named["Naps_1"], named["NapsBatch_2"]
    forwards = {span.parent_span_id: span for span in spans.values() if span.name == "forward"}
    assert len(spans) == 5
    assert request.parent_span_id.hex() == parent_id
    assert [first.parent_span_id, second.parent_span_id] == [request.span_id] * 2
    # The clocks of two processes may differ a little.
    assert before - 50e6 <= request.start_time_unix_nano <= request.end_time_unix_nano <= after + 50e6
    assert seconds(request) >= 0.8
    added = 0.0
    for stage in (first, second):
        forward = forwards[stage.span_id]
        queued = next(a.value.double_value for a in stage.attributes if a.key == "mosec.queue_seconds")
        assert seconds(forward) >= 0.4
        added += queued + seconds(forward)
        assert stage.start_time_unix_nano <= forward.start_time_unix_nano
        assert forward.end_time_unix_nano <= stage.end_time_unix_nano
    stages = seconds(first) + seconds(second)
    assert added <= stages * 1.05
    assert stages <= seconds(request) * 1.05
    return 1.0 - min(stages, added) / seconds(request)


def test_a_batch_in_a_process_is_linked_to_its_requests(tmp_path: Path, collector: Collector) -> None:
    command = service(tmp_path, "NapsBatch")
    with running(command, tmp_path / "log", environment=variables(collector)) as program:
        program.wait_ready()
        threads = [
            threading.Thread(target=program.client.post, args=("/inference",), kwargs={"json": number})
            for number in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stages = {span.span_id for span in collector.spans if span.name == "NapsBatch_1"}
    batches = [span for span in collector.spans if span.name == "forward" and len(span.links) > 1]
    assert len(stages) == 5
    assert batches
    assert {link.span_id for batch in batches for link in batch.links} <= stages


def test_the_sampler_is_that_of_the_variables(tmp_path: Path, collector: Collector) -> None:
    environment = variables(collector, OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
    with running(service(tmp_path, "First"), tmp_path / "log", environment=environment) as program:
        program.wait_ready()
        program.client.post("/inference", json=0)
        program.client.post("/inference", json=0, headers={"traceparent": PARENT})
    assert {span.trace_id.hex() for span in collector.spans} == {PARENT[3:35]}
    assert collector.services == {"mosec_service"}


OWN = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"own {span.name}\\n")))
trace.set_tracer_provider(provider)
"""


def test_the_programs_own_provider_gets_the_spans_and_nobody_else(tmp_path: Path, collector: Collector) -> None:
    command = service(tmp_path, "First", before=OWN)
    with running(command, tmp_path / "log", environment=variables(collector)) as program:
        program.wait_ready()
        program.client.post("/inference", json=0)
        wait_until(lambda: "own POST /inference" in program.output, "no span has come")
    assert collector.requests == []


@pytest.mark.parametrize("setting", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_where_nobody_is_told_no_spans_are_made(tmp_path: Path, collector: Collector, setting: dict[str, str]) -> None:
    command = service(tmp_path, "First")
    with running(command, tmp_path / "log", environment=variables(collector, **setting)) as program:
        program.wait_ready()
        assert program.client.post("/inference", json=0).status_code == 200
        assert next(iter(setting)) in program.output
    assert collector.requests == []


def test_without_the_extra_the_service_does_not_start_and_says_what_to_install(tmp_path: Path) -> None:
    command = service(tmp_path, "First", before="sys.modules['opentelemetry'] = None", imports="sys")
    with running(command, tmp_path / "log", stops=False) as program:
        wait_until(lambda: program.process.poll() is not None, "it runs on")
        assert program.process.returncode not in (0, None)
        assert "pip install 'mosec-asgi[otel]'" in program.output
        assert "Traceback" not in program.output


# -- the parts ---------------------------------------------------------------------------------------------------------

NONE_SET = trace.ProxyTracerProvider()


def closing(opened: provider.Opened | None) -> contextlib.closing[Any]:
    assert opened is not None
    return contextlib.closing(opened)


def exporter(opened: provider.Opened | None) -> Any:
    assert opened is not None
    assert opened.provider is not None
    (processor,) = opened.provider._active_span_processor._span_processors
    return processor.span_exporter  # type: ignore[attr-defined]


def test_the_exporter_is_that_of_otlp_over_http_where_none_is_named() -> None:
    opened = provider.opened({}, "mine", NONE_SET)
    with closing(opened):
        assert isinstance(exporter(opened), OTLPSpanExporter)


def test_other_exporters_are_found_by_their_names() -> None:
    opened = provider.opened({"OTEL_TRACES_EXPORTER": "console, none"}, "mine", NONE_SET)
    with closing(opened):
        assert type(exporter(opened)).__name__ == "ConsoleSpanExporter"


def test_grpc_is_a_protocol_where_its_package_is_installed() -> None:
    grpc = pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    for variable in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        opened = provider.opened({variable: "grpc"}, "mine", NONE_SET)
        with closing(opened):
            assert isinstance(exporter(opened), grpc.OTLPSpanExporter)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "other"},
            "OTEL_TRACES_EXPORTER asks for the exporter 'other', which is not ",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be one of http/protobuf,",
        ),
    ],
)
def test_an_exporter_that_there_is_not_is_an_error_that_names_the_variable(
    setting: dict[str, str], message: str
) -> None:
    with pytest.raises(DefinitionError, match=re.escape(message)):
        provider.opened(setting, "mine", NONE_SET)


def test_without_opentelemetry_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(DefinitionError, match=re.escape("pip install 'mosec-asgi[otel]'")):
        provider.opened({}, "mine")


def test_a_provider_that_makes_no_spans_is_not_asked_for_any() -> None:
    assert provider.opened({}, "mine", trace.NoOpTracerProvider()) is None


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(logged: pytest.LogCaptureFixture) -> None:
    answered = threading.Event()

    class Holds(TracerProvider):
        def shutdown(self) -> None:
            answered.wait(30)

    made = Holds(shutdown_on_exit=False)
    try:
        provider.Opened(made.get_tracer("test"), made).close(0.05)
    finally:
        answered.set()
    assert "spans were lost" in logged.text
