"""The page of the public names: each class and function with its signature and its docstring, as Markdown."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

# Modules whose `__all__` is public.
PUBLIC = ("mosec_asgi", "mosec_asgi.mixin", "mosec_asgi.protocols")
# Of these, methods that the package's own programs call.
INTERNAL = frozenset(("serve", "settings_with", "direct_routes", "why_not_direct", "form_content"))
# Bases that say nothing to a user.
UNSAID = frozenset(("object", "ABC", "Typed", "NeedsLibrary"))
# Letters of a signature above which it is written on several lines.
LONG = 100
# Sections of a docstring in Google's style, and what is shown above them.
SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
}
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):$")
_ENTRY = re.compile(r"^(\*{0,2}\w[\w.]*(?:, \w+)*): (.*)$")


def api() -> str:
    """Return the page."""
    parts = ["# Classes and functions\n\nThe public names, by their docstrings. Made from the code by `make docs`.\n"]
    for module in PUBLIC:
        owner = importlib.import_module(module)
        parts.append(f"## From `{module}`\n")
        for name in owner.__all__:
            if not name.startswith("_"):
                parts += described(name, getattr(owner, name))
    return "\n".join(parts)


def described(name: str, value: Any) -> Iterator[str]:
    """Yield what there is to say of a class, with its methods, or of a function."""
    yield f"### {name}\n"
    if not inspect.isclass(value):
        if callable(value):
            yield signature(name, value)
        yield text_of(inspect.getdoc(value) or "")
        return
    if dataclasses.is_dataclass(value) or (has_own(value, "__init__") and not issubclass(value, BaseException)):
        yield signature(name, value)
    else:
        bases = ", ".join(base.__name__ for base in value.__bases__ if base.__name__ not in UNSAID)
        yield f"```python\nclass {name}{f'({bases})' if bases else ''}\n```\n"
    yield text_of(inspect.cleandoc(value.__doc__ or ""))
    if has_own(value, "__init__") and (of_init := inspect.getdoc(value.__init__)):
        yield text_of(of_init)
    for member, found in vars(value).items():
        function = getattr(found, "__func__", getattr(found, "fget", found))
        if member.startswith("_") or member in INTERNAL or not inspect.isfunction(inspect.unwrap(function)):
            continue
        yield f"#### {name}.{member}\n"
        if not isinstance(found, property):
            yield signature(member, getattr(value, member))
        yield text_of(inspect.getdoc(found) or "")


def has_own(value: type, method: str) -> bool:
    """Whether a class defines a method, with words of its own."""
    return bool(getattr(vars(value).get(method), "__doc__", None))


def signature(name: str, value: Any) -> str:
    """Return a signature as code; an argument a line where it would be long."""
    told = inspect.signature(inspect.unwrap(value) if inspect.isroutine(value) else value)
    kept = [each for each in told.parameters.values() if each.name not in ("self", "cls")]
    # Annotations are text, and would stand in quotes.
    arguments = [re.sub(r": '([^']*)'", r": \1", str(each)) for each in kept]
    if (place := next((place for place, each in enumerate(kept) if each.kind is each.KEYWORD_ONLY), None)) is not None:
        arguments.insert(place, "*")
    word = "class" if inspect.isclass(value) else "async def" if inspect.iscoroutinefunction(value) else "def"
    end = "" if word == "class" or told.return_annotation is told.empty else f" -> {told.return_annotation}"
    line = f"{word} {name}({', '.join(arguments)}){end}"
    if len(line) > LONG:
        line = "\n".join([f"{word} {name}(", *(f"    {each}," for each in arguments), f"){end}"])
    return f"```python\n{line}\n```\n"


def text_of(docstring: str) -> str:
    """Return a docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        if found := _SECTION.match(line):
            section = found[1]
            lines += [f"**{SECTIONS[section]}**", ""]
        elif not section or (line and not line.startswith(" ")):
            section = ""
            lines.append(line)
        elif (entry := _ENTRY.match(line[4:])) and section not in ("Returns", "Yields"):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(f"{'' if section in ('Returns', 'Yields') else '  '}{line.strip()}")
    return "\n".join(lines) + "\n"
