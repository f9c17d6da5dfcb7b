"""docs/testing.md is true: its programs run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mosec_asgi.testing import InlineService, ScriptedWorker

PAGE = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_python_snippet_is_a_named_program() -> None:
    assert PAGE.count("```python") == len(PROGRAMS)
    assert set(PROGRAMS) == {"service.py", "test_service.py", "storm.py"}


def test_the_tests_pass_as_they_stand_there(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:asyncio", "-q", "test_service.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert f"{PROGRAMS['test_service.py'].count('def test_')} passed" in done.stdout


def test_the_storm_passes(folder: Path) -> None:
    done = subprocess.run([sys.executable, "storm.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "200 histories" in done.stdout
    assert "answered 200" in done.stdout


@pytest.mark.parametrize("kind", [ScriptedWorker, InlineService])
def test_the_tables_name_all_that_there_is(kind: type) -> None:
    named = set(re.findall(r"`(?:service\.)?(\w+)", PAGE))
    public = {name for name in vars(kind) if not name.startswith("_")}
    if kind is ScriptedWorker:
        public |= {name for name in vars(ScriptedWorker("Stage_1", 1)) if not name.startswith("_")}
    # What the worker's lives ask it, and who it is.
    assert public - named <= {"born", "died", "begins", "repeats", "seconds", "stage", "number"}
