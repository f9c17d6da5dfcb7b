"""Checks of what a program defines, across its stages."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from fakes import AsyncEvents, Echo, Events, Pushes, Steps

from mosec_asgi.errors import DefinitionError
from mosec_asgi.route_checks import check_importable, check_pipeline, check_routes, check_timeouts
from mosec_asgi.runtime import Runtime
from mosec_asgi.worker import Worker


@pytest.mark.parametrize("worker", [Events, AsyncEvents, Steps])
def test_a_generator_is_the_last_stage_of_its_route(worker: type[Worker]) -> None:
    first, last = Runtime(Echo), Runtime(worker)
    check_pipeline("/a", [first, first, last])
    check_pipeline("/a", [last])
    for pipeline in ([last, first], [first, last, first], [last, last]):
        with pytest.raises(
            DefinitionError, match=f"{worker.__name__} streams, so it must be the last stage of /a; append it last"
        ):
            check_pipeline("/a", pipeline)


def test_a_timeout_that_the_services_ends_first_is_noticed_once(logged: pytest.LogCaptureFixture) -> None:
    stage = Runtime(Echo, timeout=10)
    check_timeouts({"/a": [stage], "/b": [stage], "/c": [Runtime(Echo, timeout=2)]}, 3.0)
    (record,) = logged.records
    assert "has no effect: the service answers 408 after 3 s" in record.getMessage()
    assert "(milliseconds, --timeout or MOSEC_TIMEOUT) to more than 10000" in record.getMessage()


def test_a_stage_that_is_the_last_of_one_route_and_not_of_another_is_refused_where_it_streams() -> None:
    first, shared = Runtime(Echo), Runtime(Pushes)
    with pytest.raises(
        DefinitionError, match="Pushes is the last stage of /a, where it streams, and not of /b; make two"
    ):
        check_routes({"/a": [shared], "/b": [shared, first]})
    check_routes({"/a": [first], "/b": [first, shared]})


@pytest.mark.parametrize(
    ("main", "text"),
    [
        ({"__spec__": types.SimpleNamespace(name="pkg.__main__")}, "a package's __main__"),
        ({"__spec__": types.SimpleNamespace(name="__main__")}, "the __main__ of a folder or a zip file"),
        ({"__spec__": None}, "a notebook, an interactive session, `python -c` or standard input"),
        ({"__spec__": None, "__file__": "/nowhere/x.py"}, "/nowhere/x.py, which they do not find"),
        ({"__spec__": types.SimpleNamespace(name="pkg.module")}, None),
        ({"__spec__": None, "__file__": __file__}, None),
    ],
)
def test_workers_of_a_main_module_that_cannot_be_imported_are_refused(
    main: dict[str, Any], text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("__main__")
    vars(module).update(main)
    monkeypatch.setitem(sys.modules, "__main__", module)
    worker = type("Own", (Echo,), {"__module__": "__main__"})
    check_importable({"/a": [Runtime(Echo), Runtime(worker, start_method="fork")]})
    if text is None:
        check_importable({"/a": [Runtime(worker)]})
    else:
        with pytest.raises(DefinitionError, match=f"is defined in {text}.*Move it into a module of its own"):
            check_importable({"/a": [Runtime(worker)]})


def test_a_class_that_only_the_program_itself_defines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "class Above: pass\n"
        "if __name__ == '__main__':\n    class Made: pass\n    class Above: pass\n"
        "else:\n    class Other: pass\n"
    )
    module = types.ModuleType("__main__")
    vars(module).update({"__spec__": None, "__file__": str(program)})
    monkeypatch.setitem(sys.modules, "__main__", module)
    made, above = (type(name, (Echo,), {"__module__": "__main__", "__qualname__": name}) for name in ("Made", "Above"))
    check_importable({"/a": [Runtime(above), Runtime(made, start_method="fork"), Runtime(made, executor="thread")]})
    with pytest.raises(DefinitionError, match='cannot import Made: it is defined below `if __name__ == "__main__"'):
        check_importable({"/a": [Runtime(above), Runtime(made)]})
    program.write_bytes(b"\0")
    check_importable({"/a": [Runtime(made)]})
