"""Hooks of mkdocs: the reference is made from the code, pages that stand elsewhere are included, links lead somewhere.

A file in docs/ is read on the site and in the repository. Its links may lead out of docs/: on the site these lead to
the repository, or, of pictures and of included pages, to copies. A link to nothing ends the build.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]

import docs_api  # noqa: E402

from mosec_asgi import config, errors  # noqa: E402
from mosec_asgi.batching.engine import StageStatistics, Statistics  # noqa: E402
from mosec_asgi.observing.exposition import Exposition  # noqa: E402
from mosec_asgi.observing.metrics import ServiceMetrics, StageMetrics  # noqa: E402

# Pages that stand elsewhere, by their names on the site.
INCLUDED = {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}
# Pages that are made from the code.
MADE = ("reference.md", "api.md")
# What is passed to the functions of `errors` that make a failure, to show its text.
SAMPLES: dict[str, tuple[Any, ...]] = {
    "too_large": (10 * 1024 * 1024,),
    "head_too_large": (64 * 1024,),
    "too_many_headers": (1000,),
    "url_too_long": (16 * 1024,),
    "unknown_encoding": ("br", "this service reads gzip"),
    "broken_body": ("gzip", "it ends too early"),
    "at_capacity": (1,),
    "too_late": (1,),
    "overloaded": (1,),
    "over_target": (1,),
    "gave_way": (1,),
    "not_begun": ("Model_1", 0.12, 0.05, "the setting `timeout`"),
    "describe": (errors.ValidationError("'text' must be a string"),),
}
_LINK = re.compile(r"(?<!`)(\]\()([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add what is made or stands elsewhere."""
    for name, path in INCLUDED.items():
        files.append(File.generated(config, name, content=rewritten(path.read_text(), ROOT, files, config)))
    files.append(File.generated(config, "reference.md", content=reference()))
    files.append(File.generated(config, "api.md", content=docs_api.api()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page of docs/."""
    made = page.file.src_uri in (*INCLUDED, *MADE)
    return markdown if made else rewritten(markdown, ROOT / "docs", files, config)


def rewritten(text: str, folder: Path, files: Any, config: Any) -> str:
    """Return a page whose links are right on the site.

    Args:
        text: of the page.
        folder: in which it stands in the repository.
        files: of the site; pictures that are not among them are added.
        config: of mkdocs.
    """

    def link(found: re.Match[str]) -> str:
        return f"{found[1]}{target(found[2])}{found[3] or ''})"

    def target(written: str) -> str:
        path = (folder / written).resolve()
        by_path = {included: name for name, included in INCLUDED.items()}
        if path in by_path:
            return by_path[path]
        if folder == ROOT / "docs" and written in (*INCLUDED, *MADE):
            return written
        if not path.exists():
            raise PluginError(f"a link leads to {written}, which is not there")
        if path.is_relative_to(ROOT / "docs"):
            return str(path.relative_to(ROOT / "docs"))
        name = str(path.relative_to(ROOT))
        if path.suffix in (".png", ".svg"):
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(path)))
            return name
        return f"{config.repo_url}/blob/main/{name}".replace("//blob", "/blob")

    return _LINK.sub(link, text)


def reference() -> str:
    """Return the page of all settings, flags, metrics and errors."""
    parts = [
        "# Reference\n\nMade from the code by `make docs`.\n",
        "## Settings\n\nA keyword of `Server`, a variable of the environment, a flag of `server.run()` and "
        "`mosec-asgi serve`; the later wins.\n\n"
        "| keyword, flag, variable | default | |\n|---|---|---|\n" + "".join(settings()),
        "## Metrics\n\nIn the namespace of the setting `namespace`; a histogram has `_bucket`, `_sum` and `_count`, a "
        "counter `_total`. Metrics that workers make with prometheus_client stand beside them.\n\n"
        "| metric | type | labels | |\n|---|---|---|---|\n" + "".join(metrics()),
        "## Errors\n\nWhat the service itself answers. A worker's own errors are `<msg>: <details>`.\n\n"
        "| status | text | name |\n|---|---|---|\n" + "".join(failures()),
        "### Exceptions\n\nWhat a worker raises to answer a request, and what `infer` raises.\n\n"
        "| exception | status | |\n|---|---|---|\n" + "".join(exceptions()),
    ]  # fmt: skip
    return "\n".join(parts)


def settings() -> list[str]:
    """Return the rows of the settings."""
    rows = []
    for name, setting in config.FIELDS.items():
        names = [
            name,
            config.FLAGS.get(name),
            None if name in config.KEYWORD_ONLY else config.ENV_PREFIX + name.upper(),
        ]
        default = "" if setting.default in ("", None) else f"`{setting.default}`"
        written = "<br>".join(f"`{one}`" for one in names if one is not None)
        rows.append(f"| {written} | {default} | {cell(setting.metadata['help'])} |\n")
    return rows


def metrics() -> list[str]:
    """Return the rows of the metrics: those of a service that has a stage of each kind."""
    stage = StageMetrics("Model_1", batched=True)
    service = ServiceMetrics("mosec_service", [stage])
    service.answered("/inference", 200)
    stage.worker(1)
    stage.refusals["capacity"] = 1
    now = Statistics(
        admitted=0,
        closing=False,
        stages=(StageStatistics("Model_1", 0, 0, 0, ready=1, workers=1, restarts=0, down=False, expected_wait=0.0),),
    )
    rows = []
    for family in Exposition(service, lambda: now).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(sorted({f"`{label}`" for sample in family.samples for label in sample.labels} - {"`le`"}))
        rows.append(f"| `{name}` | {family.type} | {labels} | {cell(family.documentation)} |\n")
    return rows


def failures() -> list[str]:
    """Return the rows of what the service itself answers."""
    found = {name: value for name, value in vars(errors).items() if isinstance(value, errors.Failure)}
    for name, function in inspect.getmembers(errors, inspect.isfunction):
        if inspect.signature(function).return_annotation == "Failure":
            if name not in SAMPLES:
                raise PluginError(
                    f"errors.{name} makes a failure that the reference lacks: add what it takes to SAMPLES"
                )
            found[name] = function(*SAMPLES[name])
    ordered = sorted(found.items(), key=lambda item: (item[1].code, item[0]))
    return [f"| {failure.code} | {cell(failure.text)} | `{name}` |\n" for name, failure in ordered]


def exceptions() -> list[str]:
    """Return the rows of the exceptions."""
    rows = []
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, BaseException):
            text = cell((kind.__doc__ or "").partition("\n")[0])
            rows.append(f"| `{name}` | {int(kind.code) if hasattr(kind, 'code') else ''} | {text} |\n")
    return rows


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
