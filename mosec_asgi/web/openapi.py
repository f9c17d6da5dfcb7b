"""The contract: the OpenAPI 3.1 document of a service, made from what its workers say about themselves.

A route takes the input of its first worker and returns the result of its last one. The annotations of `forward`
describe those only if the bytes on the wire are the value itself in another notation, like JSON or msgpack; an image or
a text is a string of bytes or characters, whatever `deserialize` makes of it. A worker can override
`get_forward_json_schema`, which has precedence.
"""

from __future__ import annotations

import inspect
import json
import threading
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from mosec_asgi import log
from mosec_asgi.annotations import forward_input_type, forward_return_type
from mosec_asgi.mixin.multipart_worker import Form, MultipartMixin
from mosec_asgi.paths import KINDS, parameters, without_kinds
from mosec_asgi.runtime import BODYLESS, Runtime
from mosec_asgi.schema import JSON, MOSEC_REF_TEMPLATE, MissingLibraryError, ParseTarget
from mosec_asgi.streaming import is_event_stream, response_type, streams
from mosec_asgi.version import __version__
from mosec_asgi.web import contract
from mosec_asgi.web.components import Components
from mosec_asgi.web.examples import request_examples
from mosec_asgi.web.keys import Keys
from mosec_asgi.web.protocols.seam import Protocol
from mosec_asgi.worker import Worker

# Notations of a value, by the last part of their media types: application/json, application/problem+json, x-msgpack.
NOTATIONS = {"json", "msgpack", "x-msgpack", "vnd.msgpack", "cbor", "yaml", "x-yaml"}

# The most bytes of a proxy's prefix.
_MOST_PREFIX = 1024

logger = log.internal_logger(__name__)


class OpenAPI:
    """The endpoint that shows the document, which is made at the first request, in a thread, and kept."""

    def __init__(self, build: Callable[[], JSON]) -> None:
        """Store how the document is made; see `build_document`."""
        self._build = build
        self._lock = threading.Lock()
        self._document: JSON | None = None

    # Not a coroutine, so Starlette runs it in a thread, and no request waits while pydantic loads.
    def metadata(self, request: Request) -> Response:
        """Show the document, with the service's address as this request gives it."""
        with self._lock:
            if self._document is None:
                self._document = self._build()
        root_path: str = request.scope.get("root_path", "")
        prefix = _forwarded_prefix(dict(request.scope.get("headers", ())).get(b"x-forwarded-prefix", b""), root_path)
        # A proxy may have removed a prefix from the path without a header that says so. So the service's address is
        # given relative to the document's own, which ends in `openapi/metadata.json`.
        url = server_url(prefix + root_path) if prefix or root_path else ".."
        document = with_server(self._document, url)
        # Not by orjson, which refuses integers of more than 64 bits; a bound in a user's model may be that large.
        return Response(json.dumps(document), media_type="application/json")


def with_server(document: JSON, url: str) -> JSON:
    """Return `document` for a service that is reached at `url`, without the path of a route."""
    return {**document, "servers": [{"url": url}]}


def server_url(root_path: str) -> str:
    """Return the address, without a host, of a service that is mounted or proxied below `root_path`."""
    return quote(root_path.rstrip("/")) or "/"


def _forwarded_prefix(header: bytes, root_path: str) -> str:
    """Return the prefix that a proxy has removed from the path, by its header `X-Forwarded-Prefix`; else empty."""
    prefix = "/" + header.decode("latin-1").partition(",")[0].strip().strip("/")
    if prefix == "/" or len(prefix) > _MOST_PREFIX or not prefix.isascii() or not prefix.isprintable():
        return ""
    # An ASGI server that reads the header itself has put the prefix into the root path.
    return "" if f"{root_path}/".startswith(f"{prefix}/") else prefix


def build_document(
    routes: Mapping[str, Sequence[Runtime]],
    *,
    max_request_size: int,
    encodings: Sequence[str] = (),
    title: str = "mosec-asgi service",
    version: str = "",
    protocols: Sequence[Protocol] = (),
    keys: Keys | None = None,
) -> JSON:
    """Make the document.

    Args:
        routes: the stages by route.
        max_request_size: bytes of a request's body.
        encodings: content encodings in which a body is accepted.
        title: of the document.
        version: of the service; empty for that of this package.
        protocols: in which clients speak to the models as well.
        keys: say which paths need a key; None where none does.
    """
    info = {"title": title, "version": version or __version__, "description": contract.DESCRIPTION}
    document = _Builder(routes, max_request_size, encodings).build(info)
    if protocols:
        document = _with_protocols(document, protocols)
    return document if keys is None else _with_keys(document, keys)


def _with_keys(document: JSON, keys: Keys) -> JSON:
    """Return a document that says which paths need a key, and how it is sent."""
    paths = {
        path: {
            name: _with_key(part, needed=not keys.is_open(path)) if name in contract.METHODS else part
            for name, part in item.items()
        }
        for path, item in document["paths"].items()
    }
    components = {**document["components"], "securitySchemes": contract.SECURITY_SCHEMES}
    security: list[JSON] = [{name: []} for name in contract.SECURITY_SCHEMES]
    return {**document, "paths": paths, "components": components, "security": security}


def _with_protocols(document: JSON, protocols: Sequence[Protocol]) -> JSON:
    """Return a document with the endpoints of protocols, before those of the service itself."""
    service = contract.SERVICE_PATHS.keys()
    paths = {path: item for path, item in document["paths"].items() if path not in service}
    schemas = dict(document["components"].get("schemas", {}))
    for protocol in protocols:
        for endpoint in protocol.endpoints():
            if item := endpoint.describe():
                paths[_quoted(endpoint.path)] = item
        schemas.update(protocol.schemas())
    components = {**({"schemas": {}} if schemas else {}), **document["components"]}
    if schemas:
        components["schemas"] = schemas
    return {**document, "paths": {**paths, **contract.SERVICE_PATHS}, "components": components}


def _with_key(operation: JSON, *, needed: bool) -> JSON:
    if not needed:
        return {**operation, "security": []}
    return {**operation, "responses": {**contract.KEY_RESPONSES, **operation["responses"]}}


def _quoted(path: str) -> str:
    """Return a route's path as it stands in a document."""
    return quote(without_kinds(path), safe="/:@!$&'()*+,;=~{}")


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    pipeline: Sequence[Runtime]
    operation_id: str


class _Builder:
    """Makes one document."""

    def __init__(
        self, routes: Mapping[str, Sequence[Runtime]], max_request_size: int, encodings: Sequence[str]
    ) -> None:
        self._routes = [_Route(path, pipeline, name) for path, pipeline, name in _named(routes)]
        self._max_request_size = max_request_size
        self._encodings = encodings
        self._components = Components()
        self._library_is_missing = False

    def build(self, info: JSON) -> JSON:
        """Return the document, with `info` about the service."""
        paths = {_quoted(route.path): self._operations(route) for route in self._routes}
        if self._library_is_missing:
            logger.warning(
                "the OpenAPI document is without schemas: install pydantic (pip install 'mosec-asgi[pydantic]') "
                "or msgspec to have them made from the annotations of `forward`"
            )
        return {
            "openapi": "3.1.0",
            "info": info,
            "servers": [{"url": "/"}],
            "tags": contract.TAGS,
            "paths": {**paths, **contract.SERVICE_PATHS},
            "components": {
                **({"schemas": self._components.schemas} if self._components.schemas else {}),
                **contract.components(self._max_request_size, compressed=bool(self._encodings)),
            },
        }

    def _operations(self, route: _Route) -> JSON:
        """Return what a route does, by method."""
        operation = self._operation(route)
        methods = route.pipeline[0].methods or ("POST",)
        operations = {}
        for method in methods:
            own = dict(operation)
            if method != methods[0]:
                own["operationId"] = f"{route.operation_id}_{method.lower()}"
            if method in BODYLESS:
                own.pop("requestBody", None)
            operations[method.lower()] = own
        return operations

    def _operation(self, route: _Route) -> JSON:
        first, last = route.pipeline[0], route.pipeline[-1]
        summary, description = _explain([runtime.worker for runtime in route.pipeline])
        body = "The input of the model; it must not be empty."
        if self._encodings:
            body += f" It may be compressed: `content-encoding: {'` or `'.join(self._encodings)}`."
        request, response = self._request(route, first), self._response(route, last)
        return {
            "tags": [contract.MODEL_TAG],
            "summary": summary,
            **({"description": description} if description else {}),
            "operationId": route.operation_id,
            "parameters": [*_path_parameters(route.path), *contract.PARAMETERS],
            **({"requestBody": {"description": body, "required": True, "content": request}} if request else {}),
            "responses": {
                "200": {
                    "description": _result_of(last.worker),
                    "headers": contract.REQUEST_ID_HEADER,
                    **({"content": response} if response else {}),
                },
                **(contract.REFUSALS if _gives_events(last.worker) else contract.ERROR_RESPONSES),
            },
        }

    def _request(self, route: _Route, runtime: Runtime) -> JSON:
        """Return the content of a request; empty where nothing is known about it, as in mosec."""
        if issubclass(runtime.worker, MultipartMixin):
            return self._form(route, runtime, runtime.worker)
        mime, batched = runtime.worker.req_mime_type, runtime.max_batch_size > 1
        own = not _is_ours(_owner(runtime.worker, "deserialize"))
        if own and mime == Worker.req_mime_type and _is_bytes(runtime, ParseTarget.INPUT):
            # The worker takes the raw body and does not name its format, so that is not JSON.
            mime = "application/octet-stream"
        schema = self._schema(route, runtime, ParseTarget.INPUT, mime)
        is_text = not _is_notation(mime)
        examples = request_examples(runtime.worker, batched=batched, is_text=is_text)
        if schema or not _says_nothing(runtime, ParseTarget.INPUT):
            return {mime: {"schema": schema, **examples}}
        return {mime: examples} if examples else {}

    def _form(self, route: _Route, runtime: Runtime, worker: type[MultipartMixin]) -> JSON:
        if _annotation(runtime, ParseTarget.INPUT) in (Any, Form):
            return worker.form_content()
        schema, described = self._described(route, runtime, ParseTarget.INPUT)
        return worker.form_content(schema, files='"format": "binary"' in json.dumps(described))

    def _response(self, route: _Route, runtime: Runtime) -> JSON:
        """Return the content of a result; empty where nothing is known about it, as in mosec."""
        mime = response_type(runtime.worker)
        schema = self._schema(route, runtime, ParseTarget.RETURN, mime)
        return {mime: {"schema": schema}} if schema or not _says_nothing(runtime, ParseTarget.RETURN) else {}

    def _schema(self, route: _Route, runtime: Runtime, target: ParseTarget, mime: str) -> JSON:
        if not _is_overridden(runtime.worker):
            if target is ParseTarget.RETURN and _gives_events(runtime.worker):
                return contract.EVENT
            if not _is_notation(mime):
                return _plain_body(mime, target)
            if target is ParseTarget.RETURN and streams(runtime.worker):
                # The annotation of `forward` describes one piece; the body consists of all pieces.
                return {}
            codec = _owner(runtime.worker, "deserialize" if target is ParseTarget.INPUT else "serialize")
            if _is_bytes(runtime, target) and (codec is Worker or not _is_ours(codec)):
                # The value is text or bytes that already is in that notation.
                return {}
        return self._described(route, runtime, target)[0]

    def _described(self, route: _Route, runtime: Runtime, target: ParseTarget) -> tuple[JSON, list[JSON]]:
        """Return the schema of a worker's input or output, and the same as the worker says it, with all that it names.

        It is empty where there is none.
        """
        side = "request" if target is ParseTarget.INPUT else "response"
        try:
            schema, components = _of_stage(runtime).get_forward_json_schema(target, MOSEC_REF_TEMPLATE)
            added = self._components.add(schema, components, f"{route.operation_id}_{side}")
            return added, [schema, *components.values()]
        except MissingLibraryError:
            self._library_is_missing = True
        # This runs code of the user or a library: no exception of it may harm the service.
        except Exception as error:
            logger.warning(
                "the %s of %s has no schema in the OpenAPI document: %s of %s.forward: %s",
                side,
                route.path,
                _annotation(runtime, target),
                runtime.worker.__name__,
                error,
            )
        return {}, []


def _path_parameters(path: str) -> list[JSON]:
    return [
        {"name": name, "in": "path", "required": True, "schema": KINDS[kind]} for name, kind in parameters(path).items()
    ]


def _named(routes: Mapping[str, Sequence[Runtime]]) -> list[tuple[str, Sequence[Runtime], str]]:
    """Return the routes, each with an operation id that depends on other routes only if two would have the same."""
    taken = {operation["get"]["operationId"] for operation in contract.SERVICE_PATHS.values()}
    named = []
    for path, pipeline in routes.items():
        words = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in path).split()
        name = "_".join(words) or "inference"
        if name in taken:
            name = f"{name}_{zlib.crc32(path.encode()):08x}"
        taken.add(name)
        named.append((path, pipeline, name))
    return named


def _explain(workers: Sequence[type[Worker]]) -> tuple[str, str]:
    """Return the summary and the description of a pipeline, from the docstrings of its workers."""
    texts = [_docstring(worker) for worker in workers]
    summary, description = texts[0]
    if len(workers) == 1:
        return summary or workers[0].__name__, description
    stages = [
        f"{place}. `{worker.__name__}`" + (f": {text}" if text else "")
        for place, (worker, (text, _)) in enumerate(zip(workers, texts, strict=True), 1)
    ]
    parts = [f"A pipeline of {len(workers)} stages:", "\n".join(stages), description]
    return " → ".join(worker.__name__ for worker in workers), "\n\n".join(filter(None, parts))


def _docstring(worker: type[Worker]) -> tuple[str, str]:
    """Return the first paragraph of a worker's docstring, as one line, and the rest."""
    for kind in worker.__mro__:
        text = kind.__dict__.get("__doc__") if issubclass(kind, Worker) and not _is_ours(kind) else None
        if text:
            first, _, rest = inspect.cleandoc(text).partition("\n\n")
            return " ".join(first.split()), rest.strip()
    return "", ""


def _result_of(worker: type[Worker]) -> str:
    if _gives_events(worker):
        return "The result, as server-sent events. An error is an event named `error`, and the last one."
    if streams(worker):
        return "The result, in chunks as they are made. Where the model fails half-way, the response breaks off."
    return "The result of the model."


def _gives_events(worker: type[Worker]) -> bool:
    return streams(worker) and is_event_stream(response_type(worker))


def _is_notation(mime: str) -> bool:
    """Whether a body of this type is a value in another notation."""
    kind = mime.partition(";")[0].strip().lower()
    return kind.rpartition("/")[2].rpartition("+")[2] in NOTATIONS


def _plain_body(mime: str, target: ParseTarget) -> JSON:
    """Return the schema of a body that is not a notation of a value."""
    text = mime.lower().startswith("text/")
    schema = {"type": "string"} if text else {"type": "string", "format": "binary"}
    # The body of a request is never empty.
    return {**schema, "minLength": 1} if target is ParseTarget.INPUT else schema


def _is_overridden(worker: type[Worker]) -> bool:
    """Whether the user has overridden the worker's description."""
    return not _is_ours(_owner(worker, "get_forward_json_schema"))


def _owner(worker: type[Worker], name: str) -> type:
    """Return the class that defines a worker's method."""
    return next(kind for kind in worker.__mro__ if name in vars(kind))


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _of_stage(runtime: Runtime) -> type[Worker]:
    """Return the worker as a class that knows its stage's batch size, as its instances in the processes do."""
    worker = runtime.worker
    names = {"_max_batch_size": runtime.max_batch_size, "__module__": worker.__module__, "__doc__": worker.__doc__}
    return types.new_class(worker.__name__, (worker,), exec_body=lambda namespace: namespace.update(names))


def _annotation(runtime: Runtime, target: ParseTarget) -> Any:
    read = forward_input_type if target is ParseTarget.INPUT else forward_return_type
    try:
        return read(runtime.worker, runtime.max_batch_size > 1)
    except Exception:
        return "the annotation"


def _says_nothing(runtime: Runtime, target: ParseTarget) -> bool:
    """Whether neither an annotation nor the user's own description describes the input or output of `forward`."""
    return not _is_overridden(runtime.worker) and _annotation(runtime, target) is Any


def _is_bytes(runtime: Runtime, target: ParseTarget) -> bool:
    return _annotation(runtime, target) in (bytes, bytearray, memoryview)
