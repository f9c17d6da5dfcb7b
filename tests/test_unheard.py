"""What a client writes into the headers of tracing does not come into the log."""

from __future__ import annotations

import pytest
from harness import skip_module_without

skip_module_without("opentelemetry.sdk")

from opentelemetry import propagate  # noqa: E402
from opentelemetry.context import Context  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402

from mosec_asgi.observing.provider import Opened  # noqa: E402
from mosec_asgi.observing.tracing import Tracing  # noqa: E402

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNREADABLE = [
    {"baggage": "a" * 9000},
    {"baggage": "a," * 100},
    {"baggage": "k=\x9b31m,=,;"},
    {"traceparent": "x" * 60_000},
    {"traceparent": PARENT, "tracestate": "A" * 60_000},
    {"traceparent": PARENT, "tracestate": "a=b,a=c"},
]


@pytest.mark.parametrize("headers", UNREADABLE)
def test_headers_that_cannot_be_read_are_not_repeated_in_the_log(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    tracing = Tracing(Opened(provider.get_tracer("test"), provider), lambda: 0.0)
    for _ in range(2):
        assert tracing.parent({name.encode(): value.encode("latin-1") for name, value in headers.items()}) is not None
    assert not caplog.records


def test_what_the_program_itself_reads_is_told_as_before(caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider()
    Tracing(Opened(provider.get_tracer("test"), provider), lambda: 0.0).parent({b"baggage": b"a"})
    propagate.extract({"baggage": "a"}, Context())
    assert "Baggage list-member" in caplog.text
