"""OpenTelemetry's tracer, as the program or the `OTEL_*` variables have set it up.

A program that has set a tracer provider of its own (`opentelemetry.trace.set_tracer_provider`, an instrumentation's
start command, `OTEL_PYTHON_TRACER_PROVIDER`) is served by that: its exporters, its sampler, its resource. For any other
a provider is made here, which the SDK reads the variables for: the sampler, the resource, the limits of spans, and how
spans are gathered. It is not set as the program's own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from mosec_asgi import log
from mosec_asgi.errors import DefinitionError
from mosec_asgi.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from opentelemetry.trace import TracerProvider as AnyProvider

SCOPE = "mosec_asgi"
# Seconds that the spans which are left get to go out when the service stops.
FLUSH_SECONDS = 5.0
MISSING = "the setting tracing needs OpenTelemetry: pip install 'mosec-asgi[otel]'"
# What the SDK calls a service that has no name.
_NAMELESS = "unknown_service"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# Packages of the exporters that the extra does not install.
_PACKAGES = {"otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
             "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc"}  # fmt: skip

logger = log.internal_logger(__name__)


@dataclass(frozen=True)
class Opened:
    """A tracer.

    Attributes:
        tracer: makes spans.
        provider: it was made here, and is to be closed; None where it is the program's own.
    """

    tracer: Tracer
    provider: TracerProvider | None

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, for so many seconds at most: a collector may not answer."""
        if self.provider is not None:
            closing = threading.Thread(target=self.provider.shutdown, name="tracing-shutdown", daemon=True)
            closing.start()
            closing.join(seconds)
            if closing.is_alive():
                logger.warning("spans were lost: their exporter did not take them within %g s", seconds)


def opened(variables: Mapping[str, str], name: str, provider: AnyProvider | None = None) -> Opened | None:
    """Return the tracer to use; None where nobody is told of its spans.

    Args:
        variables: the process's own.
        name: of the service, where the variables do not say it.
        provider: the program's; None for whichever it has set.

    Raises:
        DefinitionError: OpenTelemetry is not installed, or a variable names an exporter that is not.
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise DefinitionError(MISSING) from error
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        logger.info("no requests are traced: OTEL_SDK_DISABLED is set")
        return None
    if provider is None:
        provider = trace.get_tracer_provider()
    if isinstance(provider, trace.NoOpTracerProvider):
        return None
    if not isinstance(provider, trace.ProxyTracerProvider):
        return Opened(provider.get_tracer(SCOPE, __version__), None)
    exporters = _exporters(variables)
    if not exporters:
        logger.info("no requests are traced: OTEL_TRACES_EXPORTER names no exporter")
        return None
    return _own(exporters, name)


def _own(exporters: Sequence[SpanExporter], name: str) -> Opened:
    """Return a tracer whose spans go to these exporters."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, _NAMELESS)).startswith(_NAMELESS):
        resource = resource.merge(Resource({SERVICE_NAME: name}))
    own = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        own.add_span_processor(BatchSpanProcessor(exporter))
    return Opened(own.get_tracer(SCOPE, __version__), own)


def _exporters(variables: Mapping[str, str]) -> list[SpanExporter]:
    """Return the exporters that `OTEL_TRACES_EXPORTER` names; that of OTLP where it is not set."""
    names = [name.strip() for name in variables.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()] or ["otlp"]
    return [_exporter(name, variables) for name in dict.fromkeys(names) if name != "none"]


def _exporter(name: str, variables: Mapping[str, str]) -> SpanExporter:
    if name == "otlp":
        variable = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
        if not variables.get(variable):
            variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
        protocol = variables.get(variable) or "http/protobuf"
        if protocol not in _PROTOCOLS:
            raise DefinitionError(f"{variable} must be one of {', '.join(_PROTOCOLS)}, not {protocol!r}")
        name = _PROTOCOLS[protocol]
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        package = _PACKAGES.get(name)
        remedy = f"pip install {package}" if package else "install its package, or choose otlp, console or none"
        raise DefinitionError(f"OTEL_TRACES_EXPORTER asks for the exporter {name!r}, which is not installed; {remedy}")
    try:
        made: SpanExporter = found[0].load()()
    except ImportError as error:
        raise DefinitionError(MISSING) from error
    return made
