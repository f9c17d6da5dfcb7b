"""Checks whether the installed uvicorn and parsers are those for which the shorter ways here are written.

`http1`, `http2`, `gathering` and `keep_alive` extend uvicorn's protocols, whose inner parts are not public: each
release may change them. So only versions that were tried are used, and each part that is used is checked before the
service starts. With any other version the service runs on uvicorn's own protocols, which are slower; `--http plain`
chooses them by hand. CONTRIBUTING.md has the table of all such parts.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Versions known to work: from the first up to, but not including, the second; pyproject.toml has the same bounds.
KNOWN: Mapping[str, tuple[str, str]] = {
    "uvicorn": ("0.54", "0.55"),
    "httptools": ("0.6.4", "0.10"),
    "uvloop": ("0.21", "0.24"),
    "zttp": ("0.0.35", "0.0.36"),
}

_HTTP1 = "uvicorn.protocols.http.httptools_impl"
_HTTP2 = "uvicorn.protocols.http.zttp_h2_impl"
_AUTO = "uvicorn.protocols.http.auto_zttp_impl"
_FLOW = "uvicorn.protocols.http.flow_control"
_CONNECTION = ("config", "server_state", "app_state", "_loop")

# Functions whose arguments we pass or take, by their names.
_FUNCTIONS: Mapping[str, Sequence[str]] = {
    f"{_HTTP1}:HttpToolsProtocol": _CONNECTION,
    f"{_HTTP1}:HttpToolsProtocol.connection_made": ("self", "transport"),
    f"{_HTTP1}:HttpToolsProtocol.connection_lost": ("self", "exc"),
    f"{_HTTP1}:HttpToolsProtocol.data_received": ("self", "data"),
    f"{_HTTP1}:HttpToolsProtocol.eof_received": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.pause_writing": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.resume_writing": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.send_400_response": ("self", "msg"),
    f"{_HTTP1}:HttpToolsProtocol.handle_websocket_upgrade": ("self",),
    f"{_HTTP1}:HttpToolsProtocol._should_upgrade": ("self",),
    f"{_HTTP1}:HttpToolsProtocol._start_asgi_task": ("self", "cycle", "app"),
    f"{_HTTP1}:HttpToolsProtocol.on_message_begin": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.on_url": ("self", "url"),
    f"{_HTTP1}:HttpToolsProtocol.on_header": ("self", "name", "value"),
    f"{_HTTP1}:HttpToolsProtocol.on_headers_complete": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.on_body": ("self", "body"),
    f"{_HTTP1}:HttpToolsProtocol.on_message_complete": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.on_response_complete": ("self",),
    f"{_HTTP1}:HttpToolsProtocol.shutdown": ("self",),
    f"{_FLOW}:FlowControl.drain": ("self",),
    f"{_FLOW}:FlowControl.pause_reading": ("self",),
    f"{_FLOW}:FlowControl.resume_reading": ("self",),
    f"{_FLOW}:FlowControl.pause_writing": ("self",),
    f"{_FLOW}:FlowControl.resume_writing": ("self",),
    "uvicorn.server:ServerState": (),
}
_HTTP2_FUNCTIONS: Mapping[str, Sequence[str]] = {
    f"{_HTTP2}:ZttpH2Protocol": _CONNECTION,
    f"{_HTTP2}:ZttpH2Protocol.connection_made": ("self", "transport"),
    f"{_HTTP2}:ZttpH2Protocol.connection_lost": ("self", "exc"),
    f"{_HTTP2}:ZttpH2Protocol.data_received": ("self", "data"),
    f"{_HTTP2}:ZttpH2Protocol.handle_events": ("self",),
    f"{_HTTP2}:ZttpH2Protocol.events": ("self",),
    f"{_HTTP2}:ZttpH2Protocol.flush": ("self",),
    f"{_HTTP2}:ZttpH2Protocol.handle_request": ("self", "event"),
    f"{_HTTP2}:ZttpH2Protocol.pause_writing": ("self",),
    f"{_HTTP2}:ZttpH2Protocol.resume_writing": ("self",),
    f"{_HTTP2}:ZttpH2Protocol.timeout_keep_alive_handler": ("self",),
    f"{_AUTO}:AutoZttpProtocol": _CONNECTION,
    f"{_AUTO}:AutoZttpProtocol._switch": ("self", "http2", "initial_data"),
}
# The attributes of a connection, and those of one of its requests.
_HTTP1_ATTRIBUTES = {
    "access_log", "app", "config", "connections", "cycle", "expect_100_continue", "flow", "headers",
    "limit_concurrency", "logger", "loop", "parser", "pipeline", "server_state", "timeout_keep_alive", "transport",
}  # fmt: skip
_HTTP2_ATTRIBUTES = {
    "config", "conn", "connections", "cycles", "flow", "logger", "loop", "server_state", "timeout_keep_alive",
    "timeout_keep_alive_task", "transport",
}  # fmt: skip
_CYCLE_ATTRIBUTES = {
    "body", "chunked_encoding", "disconnected", "expected_content_length", "keep_alive", "message_event", "more_body",
    "response_complete", "response_started", "scope",
}  # fmt: skip
_HTTP2_CYCLE_ATTRIBUTES = {
    "body",
    "disconnected",
    "flow",
    "message_event",
    "on_response",
    "response_complete",
    "stream",
}


def problems(
    known: Mapping[str, tuple[str, str]] = KNOWN,
    version_of: Callable[[str], str] = importlib.metadata.version,
) -> list[str]:
    """Return why the shorter ways cannot be used; nothing if all parts are as they were when the versions were tried.

    Args:
        known: the versions to use, by package. Tests pass other versions.
        version_of: returns the version of a package that is installed.
    """
    packages = [name for name in known if importlib.util.find_spec(name) is not None]
    found = list(_versions(known, packages, version_of))
    return found or list(_parts("zttp" in packages))


def _versions(
    known: Mapping[str, tuple[str, str]], packages: Sequence[str], version_of: Callable[[str], str]
) -> Iterator[str]:
    for name in packages:
        version = version_of(name)
        least, below = known[name]
        if not _number(least) <= _number(version) < _number(below):
            yield f"{name} {version} is installed, and {least} up to (not including) {below} are known to work"


def _number(version: str) -> tuple[int, ...]:
    """Return a version's numbers, up to the first part that is not a number, as in a release candidate."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _parts(http2: bool) -> Iterator[str]:
    functions = {**_FUNCTIONS, **(_HTTP2_FUNCTIONS if http2 else {})}
    for name, arguments in functions.items():
        try:
            there = tuple(inspect.signature(_found(name)).parameters)
        except (ImportError, AttributeError, ValueError) as error:
            yield f"{name} is not there: {error}"
            continue
        if there != tuple(arguments):
            yield f"{name} takes {', '.join(there) or 'nothing'}, and not {', '.join(arguments) or 'nothing'}"
    kinds = [(f"{_HTTP1}:HttpToolsProtocol", _HTTP1_ATTRIBUTES), (f"{_HTTP1}:RequestResponseCycle", _CYCLE_ATTRIBUTES)]
    if http2:
        kinds += [
            (f"{_HTTP2}:ZttpH2Protocol", _HTTP2_ATTRIBUTES),
            (f"{_HTTP2}:RequestResponseCycle", _HTTP2_CYCLE_ATTRIBUTES),
        ]
    for name, attributes in kinds:
        try:
            missing = attributes - _assigned(_found(name))
        except (ImportError, AttributeError) as error:
            yield f"{name} is not there: {error}"
            continue
        if missing:
            yield f"{name} has no {', '.join(sorted(missing))}"


def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _assigned(kind: type) -> set[str]:
    """Return the attributes of a class's objects."""
    return set(kind.__init__.__code__.co_names) | set(kind.__dict__)  # type: ignore[misc]
