"""`mosec-asgi check`: what a service would be, and what may be wrong with it; nothing is started."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from mosec_asgi import config, log
from mosec_asgi.cli import settings as service_settings
from mosec_asgi.cli.advice import advice
from mosec_asgi.cli.faults import CommandError
from mosec_asgi.cli.loading import load_server, server_arguments
from mosec_asgi.cli.output import GOOD, WARN, output
from mosec_asgi.config import FIELDS, SECRETS, Settings
from mosec_asgi.definition import weights_of
from mosec_asgi.errors import DefinitionError, StartupError
from mosec_asgi.host import tls
from mosec_asgi.observing import provider
from mosec_asgi.pool.process.launcher import check_sendable, usable_cores
from mosec_asgi.route_checks import check_importable, check_timeouts
from mosec_asgi.runtime import Runtime, stage_names
from mosec_asgi.web.key_file import key_ring

_METHODS = ("get", "put", "post", "delete", "patch", "query")
# Schemas within each other that are shown.
_DEEPEST = 3


@click.command("check")
@server_arguments
@click.option("--strict", is_flag=True, help="Exit with 1 where there are warnings, too.")
@service_settings.settings_options()
def command(server: str, app_dir: str, strict: bool, **options: Any) -> int:
    """Show a service's stages, routes, formats, schemas and settings, and warn of what may be wrong.

    The service is imported, and nothing is started. Exits with 1 where the service could not be started as it is.
    """
    heard = _Heard()
    logging.getLogger("mosec_asgi").addHandler(heard)
    # Its only handler from here on: nothing is said twice.
    log.configure("warning")
    served = load_server(server, app_dir)
    try:
        settings = served.settings_with(service_settings.given(options))
        document = served.openapi()
        routes = served._defined.routes
        _check_start(routes, settings)
    except (DefinitionError, StartupError) as error:
        raise CommandError(f"{server} cannot be started: {error}") from error
    config.advise(settings)
    check_timeouts(routes, settings.timeout_seconds)
    found = [*heard.texts, *advice(routes, settings, usable_cores())]
    _show(server, routes, settings, document, found)
    return 1 if strict and found else 0


def _check_start(routes: Mapping[str, Sequence[Runtime]], settings: Settings) -> None:
    """Refuse what a start of the service refuses before a worker runs.

    Raises:
        DefinitionError, StartupError: the service could not be started; the text says what to change.
    """
    check_importable(routes)
    for runtime, name in stage_names([runtime for pipeline in routes.values() for runtime in pipeline]).items():
        if (runtime.executor, runtime.start_method) == ("process", "spawn"):
            check_sendable(runtime.worker, name)
    weights_of(settings.tenant_weights)
    key_ring(settings)
    tls.check(settings)
    if settings.tracing:
        tracer = provider.opened(config.telemetry_variables(), settings.namespace)
        if tracer is not None:
            tracer.close()


class _Heard(logging.Handler):
    """Keeps what is logged: of the definitions as they are imported, and of the settings.

    Attributes:
        texts: the lines, each once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if (text := record.getMessage()) not in self.texts:
            self.texts.append(text)


def _show(
    name: str,
    routes: Mapping[str, Sequence[Runtime]],
    settings: Settings,
    document: Mapping[str, Any],
    found: Sequence[str],
) -> None:
    out = output()
    columns = ("stage", "worker", "workers", "batch", "wait ms", "timeout s", "runs on")
    out.table(columns, _stages(routes, settings), "Stages")
    out.table(("route", "stages"), _pipelines(routes), "Routes")
    out.table(("path", "method", "request", "response"), _operations(document), "HTTP")
    if changed := list(_changed(settings)):
        out.table(("setting", "value", "default"), changed, "Settings that are not the default")
    for warning in found:
        out.line(f"warning: {warning}", WARN)
    count = f"{len(found)} warning{'s' if len(found) != 1 else ''}" if found else "no warnings"
    out.line(f"{name} can be served: {count}", WARN if found else GOOD)


def _stages(routes: Mapping[str, Sequence[Runtime]], settings: Settings) -> Iterator[tuple[str, ...]]:
    for runtime, name in stage_names([runtime for pipeline in routes.values() for runtime in pipeline]).items():
        executor = runtime.executor if isinstance(runtime.executor, str) else getattr(runtime.executor, "__name__", "?")
        yield (
            name,
            f"{runtime.worker.__module__}.{runtime.worker.__qualname__}",
            str(runtime.num),
            str(runtime.max_batch_size),
            f"{runtime.max_wait_time or settings.wait:g}",
            f"{runtime.timeout or settings.timeout / 1000:g}" if runtime.timeout or settings.timeout else "none",
            f"{executor}, {runtime.start_method}" if executor == "process" else executor,
        )


def _pipelines(routes: Mapping[str, Sequence[Runtime]]) -> Iterator[tuple[str, str]]:
    names = stage_names([runtime for pipeline in routes.values() for runtime in pipeline])
    for path, pipeline in routes.items():
        yield path, " → ".join(names[runtime] for runtime in pipeline)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    from mosec_asgi.web.contract import SERVICE_PATHS

    for path, item in document["paths"].items():
        if path in SERVICE_PATHS:
            continue
        for method in _METHODS:
            if method in item:
                operation = item[method]
                request = operation.get("requestBody", {}).get("content", {})
                response = operation.get("responses", {}).get("200", {}).get("content", {})
                yield path, method.upper(), _formats(request, document), _formats(response, document)


def _changed(settings: Settings) -> Iterator[tuple[str, str, str]]:
    for name, field in FIELDS.items():
        value = getattr(settings, name)
        if value != field.default:
            yield name, _shown(name, value), repr(field.default)


def _shown(name: str, value: object) -> str:
    return "(not shown)" if name in SECRETS else repr(value)


def _formats(content: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return the media types, each with its schema in short."""
    return ", ".join(f"{kind}: {_short(media.get('schema', {}), document, 0)}" for kind, media in content.items())


def _short(schema: Any, document: Mapping[str, Any], depth: int) -> str:
    """Return a schema in a few words: `{text: string, size: integer?}`."""
    if not isinstance(schema, Mapping) or not schema:
        return "any"
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        found = document.get("components", {}).get("schemas", {}).get(name)
        return name if found is None or depth >= _DEEPEST else _short(found, document, depth + 1)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " | ".join(_short(option, document, depth + 1) for option in schema[choice])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_short(schema.get('items', {}), document, depth + 1)}]"
    if kind == "object" and schema.get("properties") and depth < _DEEPEST:
        required = schema.get("required", ())
        parts = [
            f"{name}{'' if name in required else '?'}: {_short(each, document, depth + 1)}"
            for name, each in schema["properties"].items()
        ]
        return "{" + ", ".join(parts) + "}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"{{...: {_short(schema['additionalProperties'], document, depth + 1)}}}"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)
