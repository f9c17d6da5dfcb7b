"""What `serve` says once the service is ready: where it is, what it answers, and a request that works."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from mosec_asgi.cli.output import FAINT, GOOD, STRONG, Output
from mosec_asgi.cli.sample import sample
from mosec_asgi.config import Settings
from mosec_asgi.host.listening import Listener
from mosec_asgi.version import __version__

_JSON = "application/json"
_BYTES = "application/octet-stream"
# Characters of an example that is shown.
_SHORT = 200


def show(out: Output, listener: Listener, settings: Settings, document: Mapping[str, Any]) -> None:
    """Write it.

    Args:
        out: where to.
        listener: where the service listens.
        settings: of the service.
        document: the OpenAPI document of the service.
    """
    url = listener.url
    out.line(f"mosec-asgi {__version__} serves {document['info']['title']} on {listener.name}", STRONG)
    for name, text in _places(url, settings, document):
        out.line(f"  {name:<10} {text}", GOOD if name == "route" else "")
    if (command := curl(listener, document)) is not None:
        if settings.keyed:
            command += ' -H "authorization: Bearer $KEY"'
        out.line(f"  try        {command}")
    out.line("  stop       ctrl-c", FAINT)


def _places(url: str, settings: Settings, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    models = [
        ("route", f"{' '.join(method.upper() for method in item)} {url}{path}")
        for path, item in document["paths"].items()
        if not _is_services_own(path)
    ]
    places = [*models, ("docs", f"{url}/openapi/swagger/"), ("metrics", f"{url}/metrics")]
    if settings.shows_dashboard:
        places.append(("dashboard", f"{url}/dashboard/"))
    return places


def _is_services_own(path: str) -> bool:
    """Whether a path of the document is that of the service, such as /metrics, and not a model's."""
    from mosec_asgi.web.contract import SERVICE_PATHS

    return path in SERVICE_PATHS


def curl(listener: Listener, document: Mapping[str, Any]) -> str | None:
    """Return a command that asks a model; None where no request is known that would be answered."""
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        if _is_services_own(path) or "{" in path:
            continue
        if _JSON in content and (found := sample(content[_JSON], document)) is not None:
            return _command(listener, path, _JSON, ["-d", json.dumps(found[0])])
        if _BYTES in content and (text := _printable(content[_BYTES].get("example"))) is not None:
            return f"printf {shlex.quote(text)} | {_command(listener, path, _BYTES, ['--data-binary', '@-'])}"
    return None


def _command(listener: Listener, path: str, media_type: str, body: list[str]) -> str:
    words = ["curl", f"{listener.url}{path}"]
    if listener.path:
        words[1:1] = ["--unix-socket", listener.path]
    if listener.url.startswith("https"):
        # A certificate for development is rarely one that curl knows, and never one for an address.
        words.insert(1, "--insecure")
    return shlex.join([*words, "-H", f"content-type: {media_type}", *body])


def _printable(example: object) -> str | None:
    """Return a format for `printf` that writes the example, on one line; None for what is not a short text."""
    if not isinstance(example, str) or len(example) > _SHORT:
        return None
    text = example.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n")
    # A hyphen would begin an option.
    return text if text.isascii() and text.isprintable() and not text.startswith("-") else None
