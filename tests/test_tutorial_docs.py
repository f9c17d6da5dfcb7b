"""docs/tutorial.md is true: its programs and commands run, in order, and print what stands there.

That the wheel can be made, installed and served from is for tests/test_cli_new.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, environment_of_programs, running

from mosec_asgi.cli import main

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}
COMMANDS = re.findall(r"^    ((?:mosec-asgi|curl|python|pip|mkdir|python3) .*)$", PAGE, re.MULTILINE)
# What a line of curl is said to print.
ASKED = re.findall(r"^    (curl .*)\n    (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_program_and_command_is_among_those_that_are_run() -> None:
    assert PAGE.count("```python") == len(PROGRAMS) == 2
    asked = [command for command, _ in ASKED]
    installing = [command for command in COMMANDS if command.startswith(("pip", "mkdir", "python3"))]
    tried = {"mosec-asgi check service:server", SERVE, "python -m pytest -q"}
    assert set(COMMANDS) - set(asked) - set(installing) == tried
    assert (len(asked), len(installing)) == (3, 4)


SERVE = "mosec-asgi serve service:server --port 8000 --dashboard"


def test_check_finds_nothing_that_may_be_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    assert main(["check", "service:server"]) == 0
    sys.modules.pop("service", None)


def test_serve_answers_what_curl_asks_as_shown(folder: Path, log: Path) -> None:
    words = [sys.executable, "-m", "mosec_asgi", *shlex.split(SERVE)[1:]]
    words[words.index("8000")] = "{port}"
    with running(words, log, cwd=folder) as program:
        program.wait_ready()
        for command, shown in ASKED:
            line = command.replace("http://127.0.0.1:8000", program.url)
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True)
            assert shown in done.stdout.splitlines()
        for page in ("/openapi/swagger/", "/dashboard/"):
            assert program.client.get(page).status_code == 200


def test_the_tests_pass(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment_of_programs()
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_linter_has_nothing_to_say_of_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists() and shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    [text] = re.findall(r"```dockerfile\n(.*?)```", PAGE, re.DOTALL)
    command = [str(linter if linter.exists() else "hadolint"), "--ignore", "DL3008", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
