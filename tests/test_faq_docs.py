"""docs/faq.md is true: each message in its headings is one of the package's."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from harness import ROOT

PAGE = (ROOT / "docs" / "faq.md").read_text()
MESSAGES = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)


@cache
def texts_of_the_package() -> str:
    """Return all texts of the package's code, with `…` in the place of what is formatted into them."""
    found: list[str] = []
    # What is shown as an example in the OpenAPI document is no message.
    for path in sorted({*(ROOT / "mosec_asgi").rglob("*.py")} - {ROOT / "mosec_asgi/web/contract.py"}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{[^}]*\}|%[sdg]", "…", node.value))
    return "\n".join(found)


def test_every_heading_of_the_sections_on_errors_is_a_message() -> None:
    assert len(MESSAGES) == PAGE.count("\n### ")


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_package(message: str) -> None:
    assert message.rstrip("…") in texts_of_the_package()
