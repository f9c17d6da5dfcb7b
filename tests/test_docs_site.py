"""The site of docs/: it is built without a warning, has every page, and its reference is that of the code."""

from __future__ import annotations

import html
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, skip_module_without

import mosec_asgi.mixin
import mosec_asgi.protocols
from mosec_asgi import config, errors

skip_module_without("mkdocs", "material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it. With --quiet warnings would not count."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page.read_text()))


def test_each_page_of_docs_is_in_the_navigation() -> None:
    found = re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text())
    made = {"reference.md", "api.md", "changelog.md", "contributing.md"}
    assert set(found) - made == {path.name for path in (ROOT / "docs").glob("*.md")}
    assert "\nstrict: true\n" in (ROOT / "mkdocs.yml").read_text()


def test_the_reference_has_each_setting_flag_variable_metric_and_error(site: Path) -> None:
    page = text_of(site / "reference" / "index.html")
    for name in config.FIELDS:
        assert name in page
    for flag in config.FLAGS.values():
        assert flag in page
    for metric in ("throughput_total", "batch_size", "queue_wait_second", "refused_total", "workers_ready"):
        assert f"mosec_service_{metric}" in page
    assert errors.CLOSING.text in page
    assert errors.at_capacity(1).text in page
    assert "WrongShape" in page


def test_each_public_name_is_there_with_its_docstring_and_its_arguments(site: Path) -> None:
    page = " ".join(text_of(site / "api" / "index.html").split())
    for module in (mosec_asgi, mosec_asgi.mixin, mosec_asgi.protocols):
        for name in module.__all__:
            sentence = (getattr(module, name).__doc__ or "").partition(".")[0].replace("`", "")
            assert name.startswith("_") or " ".join(sentence.split()) in page, name
    for method in ("append_worker", "infer", "stream", "scale", "is_cancelled", "send_stream_event"):
        assert f".{method}" in page
    for argument in inspect.signature(mosec_asgi.Server.append_worker).parameters:
        assert argument == "self" or f"{argument}: " in page, argument
    assert "settings_with" not in page
    assert "Args:" not in page


def test_pages_that_stand_elsewhere_are_included_with_their_pictures(site: Path) -> None:
    assert "CONTRIBUTING" not in text_of(site / "index.html")
    first = (ROOT / "CONTRIBUTING.md").read_text().splitlines()[0].lstrip("# ")
    assert first in text_of(site / "contributing" / "index.html")
    assert (site / "request.svg").exists()
    assert "inside.svg" in (site / "contributing" / "index.html").read_text()


def test_the_moving_picture_is_what_its_script_draws() -> None:
    assert subprocess.run([sys.executable, ROOT / ".ci/picture", "--check"], timeout=60).returncode == 0


def test_a_link_leads_somewhere(site: Path) -> None:
    for page in site.rglob("index.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            if not link.startswith("/"):
                assert (page.parent / link.partition("?")[0]).resolve().exists(), f"{page}: {link}"
