"""Type checkers read the package as its users have it: they accept what is right, and find what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, skip_module_without

skip_module_without("mypy", "basedpyright", "fastapi", "numpy")

CASES = ROOT / "tests" / "typing_cases"
EXAMPLES = ROOT / "examples"
# Reading them takes a minute, or they say of themselves what no checker can follow.
THEIRS = (
    "accelerate", "diffusers", "jax", "onnxruntime", "PIL", "sentence_transformers", "sklearn", "torch", "transformers",
)  # fmt: skip
# Where examples have modules of their own.
MODULES = [str(EXAMPLES / "generate"), *map(str, sorted(EXAMPLES.glob("*/modules")))]
_IMPORTS_THEIRS = re.compile(rf"^ *(?:from|import) (?:{'|'.join(THEIRS)})\b", re.MULTILINE)

Found = dict[Path, dict[int, str]]


def by_mypy(folder: Path) -> Found:
    """Return what mypy says of the examples and the cases: by file and line."""
    settings = folder / "mypy.ini"
    settings.write_text(
        f"[mypy]\nstrict = True\npython_version = {sys.version_info[0]}.{sys.version_info[1]}\n"
        f"mypy_path = {':'.join([*MODULES, str(ROOT)])}\nexplicit_package_bases = True\nfollow_imports = silent\n"
        "disable_error_code = import-untyped, import-not-found, misc\n"
        + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in THEIRS)
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(folder / "mypy")]
    done = subprocess.run([*command, *map(str, files())], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Found = {}
    for name, line, text in re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        found.setdefault(ROOT / name, {})[int(line)] = text
    return found


def by_pyright(folder: Path) -> Found:
    """Return what pyright says of them, in the mode that it has of itself."""
    settings = folder / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "include": [str(path) for path in files() if not _IMPORTS_THEIRS.search(path.read_text())],
                "extraPaths": [str(ROOT), *MODULES],
                "typeCheckingMode": "standard",
                "reportMissingImports": False,
                "reportMissingModuleSource": False,
                "pythonVersion": f"{sys.version_info[0]}.{sys.version_info[1]}",
            }
        )
    )
    command = [str(Path(sys.executable).with_name("basedpyright")), "-p", str(settings), "--outputjson"]
    done = subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True, text=True, timeout=300)
    found: Found = {}
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        if each["severity"] == "error":
            found.setdefault(Path(each["file"]), {})[each["range"]["start"]["line"] + 1] = each["message"]
    return found


def files() -> list[Path]:
    """Return what is checked."""
    return [*sorted(CASES.glob("*.py")), *sorted(EXAMPLES.glob("*/server.py"))]


@pytest.fixture(scope="module", params=[by_mypy, by_pyright], ids=["mypy", "pyright"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Run a checker once over all files."""
    result: Found = request.param(tmp_path_factory.mktemp("checked"))
    return result


def test_what_users_write_is_right(found: Found) -> None:
    assert found.get(CASES / "right.py", {}) == {}


def test_each_mistake_is_found_and_nothing_else(found: Found) -> None:
    lines = (CASES / "wrong.py").read_text().splitlines()
    assert sorted(found[CASES / "wrong.py"]) == [n for n, line in enumerate(lines, 1) if line.endswith("# wrong")]


def test_the_examples_are_right(found: Found) -> None:
    assert {path: said for path, said in found.items() if EXAMPLES in path.parents} == {}
