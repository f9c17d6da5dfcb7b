"""Checks of what a program defines, across its stages: of those of a route, and of all routes."""

from __future__ import annotations

import ast
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mosec_asgi import log, paths
from mosec_asgi.errors import DefinitionError
from mosec_asgi.runtime import Runtime
from mosec_asgi.streaming import is_generator, streams

_GUARDS = ("__name__ == '__main__'", "'__main__' == __name__")

logger = log.internal_logger(__name__)


def check_pipeline(route: str, pipeline: Sequence[Runtime]) -> None:
    """Check that the stages of a route fit together.

    Raises:
        DefinitionError: they do not; the text says what to change.
    """
    for runtime in pipeline[1:]:
        if runtime.methods is not None:
            raise DefinitionError(
                f"methods of {runtime.worker.__name__}: the first stage of {route} says them for the whole pipeline. A "
                "route has one pipeline for all of its methods; one for other methods needs a path of its own"
            )
    for runtime in pipeline[:-1]:
        if is_generator(runtime.worker):
            raise DefinitionError(
                f"{runtime.worker.__name__} streams, so it must be the last stage of {route}; append it last, "
                "or give what follows it a route of its own"
            )


def check_routes(routes: Mapping[str, Sequence[Runtime]]) -> None:
    """Check that each stage has one place on all routes of a server.

    Raises:
        DefinitionError: one that streams is the last on one route and not on another.
    """
    for path, pipeline in routes.items():
        last = pipeline[-1]
        elsewhere = next((other for other, stages in routes.items() if last in stages[:-1]), None)
        if streams(last.worker) and elsewhere is not None:
            raise DefinitionError(
                f"{last.worker.__name__} is the last stage of {path}, where it streams, and not of {elsewhere}; make "
                "two Runtime objects of it, one for each"
            )


def check_labels(routes: Mapping[str, Sequence[Runtime]]) -> None:
    """Check that a stage can tell those behind it what they want to know of its results.

    Raises:
        DefinitionError: it cannot; the text says what to change.
    """
    following: dict[Runtime, Runtime] = {}
    for path, pipeline in routes.items():
        for before, after in itertools.pairwise(pipeline):
            other = following.setdefault(before, after)
            if other.labels != after.labels:
                raise DefinitionError(
                    f"{before.worker.__name__} is followed by {after.worker.__name__} on {path} and by "
                    f"{other.worker.__name__} on another route, and they do not ask for the same cost or key; make two "
                    f"Runtime objects of {before.worker.__name__}, one for each"
                )
        for after in pipeline[1:]:
            labels = after.labels
            if labels is None:
                continue
            if labels.counts and not hasattr(after.worker, "cost"):
                missing = "cost(item)"
            elif labels.groups and not hasattr(after.worker, "batch_key"):
                missing = "batch_key(item)"
            else:
                continue
            raise DefinitionError(
                f"{after.worker.__name__} is not the first stage of {path}, so it is given no body of a request; "
                f"define `@staticmethod def {missing}` in it"
            )


def check_parameters(routes: Mapping[str, Sequence[Runtime]]) -> None:
    """Check that the routes with parameters in their paths have a worker that can read them.

    Raises:
        DefinitionError: one has not; the text says what to change.
    """
    for path, pipeline in routes.items():
        names = paths.parameters(path)
        if names and not any(runtime.worker.takes_request for runtime in pipeline):
            raise DefinitionError(
                f"the route {path} has the parameter {', '.join(names)}, and no worker that reads it: set "
                "`takes_request = True` in a worker's class and read it there by `self.request().path_params`, or name "
                "each path"
            )


def check_timeouts(routes: Mapping[str, Sequence[Runtime]], service: float) -> None:
    """Warn of stages whose timeout cannot pass, because that of the service does before.

    Args:
        routes: the stages by route.
        service: seconds that a request may take.
    """
    for runtime in dict.fromkeys(runtime for pipeline in routes.values() for runtime in pipeline):
        if runtime.timeout > service:
            logger.warning(
                "timeout=%g (seconds) of the stage %s has no effect: the service answers 408 after %g s; raise its "
                "setting `timeout` (milliseconds, --timeout or MOSEC_TIMEOUT) to more than %d",
                runtime.timeout,
                runtime.name,
                service,
                round(runtime.timeout * 1000),
            )


def check_importable(routes: Mapping[str, Sequence[Runtime]]) -> None:
    """Check that spawned processes can import the workers that the main module defines.

    Raises:
        DefinitionError: they cannot, because it is no file that can be imported; the text says what to do.
    """
    main = sys.modules.get("__main__")
    why = _not_importable(main)
    guarded = set() if why else _guarded(main)
    for runtime in [runtime for pipeline in routes.values() for runtime in pipeline]:
        spawned = runtime.executor == "ray" or (runtime.executor == "process" and runtime.start_method == "spawn")
        if why and spawned and runtime.worker.__module__ == "__main__":
            raise DefinitionError(
                f"worker processes cannot import {runtime.worker.__qualname__}: it is defined in {why}. Move it into a "
                "module of its own and import it from there, or use start_method='fork', or executor='thread'"
            )
        if spawned and runtime.worker.__module__ == "__main__" and runtime.worker.__qualname__ in guarded:
            raise DefinitionError(
                f"worker processes cannot import {runtime.worker.__qualname__}: it is defined below `if __name__ == "
                '"__main__":`, which they do not run. Define it at the top level of a module, above that line, or use '
                "start_method='fork', or executor='thread'"
            )


def _guarded(main: Any) -> set[str]:
    """Return the classes that a main module defines only where it is the program itself."""
    try:
        with open(main.__file__, "rb") as file:
            statements = ast.parse(file.read()).body
    except (AttributeError, TypeError, OSError, SyntaxError, ValueError):
        # Nothing to read: compiled, for example.
        return set()
    inside: list[ast.stmt] = []
    outside: list[ast.stmt] = []
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in _GUARDS:
            inside += statement.body
            outside += statement.orelse
        else:
            outside.append(statement)
    ours, others = (
        {node.name for part in parts for node in ast.walk(part) if isinstance(node, ast.ClassDef)}
        for parts in (inside, outside)
    )
    return ours - others


def _not_importable(main: Any) -> str:
    """Say what a main module is, where `multiprocessing` cannot import it in a spawned process; empty where it can."""
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        # Neither a package's `__main__` nor that of a folder or zip file is imported there.
        what = "a package's __main__, run by `python -m`," if "." in name else "the __main__ of a folder or a zip file"
        return f"{what} which they do not import" if name.rpartition(".")[2] == "__main__" else ""
    file = getattr(main, "__file__", None)
    if file is None:
        return "a notebook, an interactive session, `python -c` or standard input, which they cannot read"
    if not os.path.exists(file) or os.path.splitext(os.path.basename(file))[0] == "ipython":
        return f"{file}, which they do not find"
    return ""
