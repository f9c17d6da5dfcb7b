"""Routes as users write them: paths, which may have parameters, as in `/models/{name}` or `/items/{number:int}`. Pure.

The kinds of parameters are Starlette's, which finds the route of a request (`web.app`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mosec_asgi.errors import DefinitionError

# The JSON Schema of each kind.
KINDS = {
    "str": {"type": "string"},
    "path": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "uuid": {"type": "string", "format": "uuid"},
}
_PARAMETER = re.compile(r"{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-z]+))?}")


def parameters(path: str) -> dict[str, str]:
    """Return the parameters of a route: their kinds by name.

    Raises:
        DefinitionError: a parameter is not written as one; the text says how.
    """
    found: dict[str, str] = {}
    for name, kind in _PARAMETER.findall(path):
        if name in found:
            raise DefinitionError(f"the route {path!r} has the parameter {name} twice; give each a name of its own")
        if kind and kind not in KINDS:
            raise DefinitionError(
                f"the route {path!r} has a parameter of the kind {kind!r}; there are {', '.join(KINDS)}, as in "
                f"{{{name}:int}}"
            )
        found[name] = kind or "str"
    if set(_PARAMETER.sub("", path)) & set("{}"):
        raise DefinitionError(
            f"the route {path!r} holds a brace that belongs to no parameter; write a parameter as {{name}}, or as "
            "{name:int}"
        )
    return found


def without_kinds(path: str) -> str:
    """Return a route as OpenAPI writes it: `/items/{number}` for `/items/{number:int}`."""
    return _PARAMETER.sub(lambda match: f"{{{match[1]}}}", path)


def check_distinct(paths: Sequence[str]) -> None:
    """Check that no two routes with parameters are the same for every request.

    Raises:
        DefinitionError: two are.
    """
    seen: dict[str, str] = {}
    for path in paths:
        if not parameters(path):
            continue
        shape = _PARAMETER.sub(lambda match: f"{{{match[2] or 'str'}}}", path)
        if (other := seen.setdefault(shape, path)) != path:
            raise DefinitionError(f"the routes {other} and {path} take the same requests; leave one of them out")
