"""What all tests share: a file for what a program prints, and no settings from the environment of whoever runs them."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

# Before garbage is frozen: it looks for what refers to an object, and what is frozen is not found.
import hypothesis  # noqa: F401
import pytest

# The files that take longest, ten seconds of processor time or more, the longest first.
LONG = (
    "test_ray",
    "test_examples_openapi",
    "test_examples_embedding",
    "test_examples_generate",
    "test_asgi_servers",
    "test_ray_serve_docs",
    "test_overload",
    "test_examples_rerank",
    "test_serving",
    "test_examples_segment_anything",
    "test_simulation",
    "test_examples_stable_diffusion",
    "test_image",
    "test_openai",
    "test_typing",
    "test_examples_onnx_classifier",
    "test_cli_tune",
    "test_tuning_search",
    "test_map",
    "test_web_processes",
    "test_examples_lora",
    "test_examples_transcribe",
    "test_recipes_docs",
    "test_examples_sentiment",
    "test_examples_ocr",
    "test_infer",
    "test_faults",
    "test_streams",
    "test_launcher",
    "test_shutdown",
    "test_rolling_update",
    "test_swagger",
    "test_cli",
    "test_mosec_compat",
    "test_app",
    "test_examples_filetype",
)
# Those that `make test-long` runs: each takes half a minute or more on two cores.
APART = (
    "test_ray",
    "test_ray_serve_docs",
    "test_examples_embedding",
    "test_examples_generate",
    "test_examples_lora",
    "test_examples_ocr",
    "test_examples_openapi",
    "test_examples_rerank",
    "test_examples_segment_anything",
    "test_examples_sentiment",
    "test_examples_stable_diffusion",
    "test_image",
    "test_typing",
)
# So many tests of a file are quick ones.
MANY = 100


# Before pytest itself chooses by marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files into an order in which several processes, each given the next file when it is free, end together.

    First files of many quick tests, which soon show whether anything is wrong at large. Then the longest files: one
    that came last would run alone. Then the others, which fill the gaps at the end.
    """
    for item in items:
        if item.path.stem in APART:
            item.add_marker("long")
    counts = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        if item.path.stem in LONG:
            return 1, LONG.index(item.path.stem)
        count = counts[item.path]
        return 0 if count >= MANY else 2, -count

    items.sort(key=lambda item: (*place(item), item.path))


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MOSEC_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def _garbage_collections_are_short() -> None:
    """Keep all that was imported and collected before a module's tests out of their garbage collections.

    Tests that look for what is left behind collect garbage, some of them in a loop. With the objects of all test
    modules and of all that these import, each collection would take a tenth of a second or more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a program under test prints to."""
    return tmp_path / "output.log"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Catch all that the package logs, from debug on."""
    caplog.set_level(logging.DEBUG, logger="mosec_asgi")
    return caplog


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write what is no Unicode in the captured log lines as escapes: a report has to pass to another process."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
