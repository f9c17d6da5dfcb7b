"""What users may import, and that all of it says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mosec_asgi

ROOT = Path(mosec_asgi.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_the_public_names() -> None:
    assert mosec_asgi.__all__ == [
        "ClientError",
        "ContinuousWorker",
        "DecodingError",
        "EncodingError",
        "Event",
        "MosecError",
        "Runtime",
        "SSEWorker",
        "Server",
        "ServerError",
        "ValidationError",
        "Worker",
        "__version__",
        "get_logger",
    ]


@pytest.mark.parametrize("name", mosec_asgi.__all__)
def test_each_public_name_is_there_and_has_a_docstring(name: str) -> None:
    value = getattr(mosec_asgi, name)
    if name == "__version__":
        assert all(part.isdigit() for part in value.split(".")[:2])
        return
    assert value.__doc__
    assert value.__doc__ != object.__doc__


def test_a_star_import_gives_the_public_names_and_no_more() -> None:
    taken: dict[str, object] = {}
    exec("from mosec_asgi import *", taken)
    assert set(taken) - {"__builtins__"} == set(mosec_asgi.__all__)


def public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Yield the public classes and functions of a module, and the public methods of the former."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, Function) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_all_that_is_public_has_a_docstring_and_every_function_a_return_type(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has none"
    silent = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert not silent, "these have none"
    untyped = [node.name for node in ast.walk(tree) if isinstance(node, Function) and node.returns is None]
    assert not untyped, "these do not say what they return"


def test_the_types_are_shipped() -> None:
    assert (ROOT / "py.typed").exists()
