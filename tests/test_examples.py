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
