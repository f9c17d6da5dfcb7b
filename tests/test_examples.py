"""What holds for all examples: their clients without a server, and the table of them."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from harness import ROOT, free_port

EXAMPLES = ROOT / "examples"
CLIENTS = sorted(path.parent.name for path in EXAMPLES.glob("*/client.py"))
SERVERS = sorted(EXAMPLES.glob("*/server.py"))
# Lines of code.
PAGE = 70
HEAVY = {"diffusers", "jax", "rapidocr_onnxruntime", "sentence_transformers", "sklearn", "torch", "transformers"}


def png() -> bytes:
    """Return an image of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = b"\0\0\0\1\0\0\0\1\x08\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")


def usage(example: str, folder: Path) -> list[str]:
    """Return the arguments of the first command in a client's docstring; the files that it names are made."""
    text = ast.get_docstring(ast.parse((EXAMPLES / example / "client.py").read_text())) or ""
    [line] = re.findall(rf"python examples/{example}/client\.py (.*)", text)[:1]
    arguments = shlex.split(line, comments=True)
    for argument in arguments:
        if re.fullmatch(r"[\w/-]+\.(png|jpg|md|txt|wav)", argument):
            file = folder / argument
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png())
    return arguments


@pytest.mark.parametrize("example", CLIENTS)
def test_without_a_server_a_client_says_so_in_one_line(example: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, str(EXAMPLES / example / "client.py"), *usage(example, tmp_path), "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    if missing := re.search(r"ModuleNotFoundError: No module named '(\w+)", done.stderr):
        pytest.skip(f"{missing[1]} is not installed; {example}/README.md says how")
    told = done.stderr.splitlines()
    assert (done.returncode, len(told), done.stdout) == (1, 1, ""), done.stderr
    assert url in told[0]
    assert "server" in told[0]


def test_the_table_has_a_row_for_each_example() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert [(name, folder) for name, folder in rows if name != folder] == []
    assert sorted(name for name, _ in rows) == sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


def test_what_is_served_is_a_page() -> None:
    """The model's code has modules of its own, so that each server.py can be read at one look."""
    assert {path.parent.name: length for path in SERVERS if (length := lines_of_code(path.read_text())) > PAGE} == {}


def lines_of_code(source: str) -> int:
    """Return how many lines have code, without comments and docstrings."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and place not in prose for place, line in lines)


def test_only_workers_import_what_is_heavy() -> None:
    """The process that speaks HTTP imports the same module: torch there is seconds, and hundreds of megabytes."""
    program = f"""
import importlib, sys
for name in {[path.parent.name for path in SERVERS]}:
    try:
        importlib.import_module(f"examples.{{name}}.server")
    except ModuleNotFoundError:
        continue  # not installed; its own test says so
    heavy = {HEAVY} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
