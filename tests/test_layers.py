"""The layers of CONTRIBUTING.md: imports point down, pure modules stay pure, an import is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mosec_asgi

ROOT = Path(mosec_asgi.__file__).parent
PACKAGE = ROOT.name

LAYERS = {
    "cli": 8, "__main__": 8, "testing": 8,
    "server": 7, "offline": 7, "tuning": 7,
    "defined": 6, "definition": 6, "service": 6, "steering": 6, "admin": 6, "lifetime": 6, "entrance": 6,
    "checks": 6, "host": 6, "calls": 6, "following": 6,
    "front": 6, "web_service": 6,
    "protocols": 6,
    "web": 5, "remote": 5,
    "batching": 4,
    "pool": 3, "inside": 3,
    "ipc": 2,
    "observing": 1, "worker": 1, "streaming": 1, "events": 1, "runtime": 1, "mixin": 1, "schema": 1, "annotations": 1,
    "ray_options": 1, "route_checks": 1,
    "formats": 1, "stops": 1, "hints": 1,
    "messages": 0, "request": 0, "reply": 0, "paths": 0, "labels": 0, "call_order": 0,
    "config": 0, "keywords": 0, "log": 0, "log_output": 0, "ration": 0, "errors": 0, "protocol": 0, "lazy_timer": 0,
    "rationing": 0, "fault_kind": 0, "within": 0, "version": 0,
}  # fmt: skip
PURE = {
    "rationing", "fault_kind",
    "messages", "errors", "request", "reply", "paths", "stops", "annotations", "labels", "call_order",
    "batching.scheduler", "batching.queue", "batching.loads", "batching.average", "batching.arrivals",
    "batching.policy", "batching.policy.window", "batching.policy.batch", "batching.policy.quarantine",
    "batching.policy.rules", "batching.policy.ordered", "batching.policy.steering",
    "batching.policy.steered", "batching.batch_time", "batching.leeway", "batching.full_batches",
    "batching.ordered_queue", "batching.tenants",
    "batching.engine", "batching.task", "batching.flow",
    "batching.admission", "batching.stage_admission", "batching.service_time", "batching.offered", "batching.busy_poll",
    "observing.observer", "observing.metrics", "observing.distribution", "observing.statistics",
    "observing.changes", "observing.history",
    "web.protocols.documented",
    "web.protocols.open_inference", "web.protocols.open_inference.datatypes", "web.protocols.open_inference.tensors",
    "web.protocols.weight", "web.protocols.open_inference.description", "web.protocols.open_inference.inference",
    "web.budget", "calls.window", "offline.done", "offline.progress", "offline.faults", "cli.top.watch",
    "tuning.fit", "tuning.model", "tuning.room", "tuning.simulation", "tuning.search", "tuning.text",
    "pool.lifecycle", "pool.watchdog", "pool.recycling", "inside.isolation",
    "pool.ray.handshake", "pool.ray.orders", "pool.ray.room",
    "ipc.frames", "ipc.arena", "ipc.reference", "ipc.ledger", "remote.frames", "remote.counts",
}  # fmt: skip
IMPURE = {"asyncio", "socket", "time", "threading", "multiprocessing", "signal", "subprocess", "os", "select"}
HEAVY = {
    "starlette", "uvicorn", "pydantic", "prometheus_client", "msgpack", "msgspec", "numbin", "numpy", "redis",
    "asyncio", "ssl", "argparse", "tempfile", "click", "rich", "watchfiles", "opentelemetry",
    "ray",
}  # fmt: skip

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the full name of the module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    folder = path.relative_to(ROOT.parent).parent
    parts = folder.parts[: len(folder.parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imports(path: Path) -> set[str]:
    """Return the full names of all that a module imports, anywhere in it: modules, and what is taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """Return the package's own modules among imported names, without the package's name; the package itself is ''."""
    inside = {name.removeprefix(PACKAGE).lstrip(".") for name in names if name.split(".")[0] == PACKAGE}
    return {name for name in inside if name in MODULES or not name}


def layer(module: str) -> int:
    return LAYERS[module.split(".")[0]]


def test_every_module_is_in_a_layer() -> None:
    assert {module.split(".")[0] for module in MODULES} - {"__init__"} <= LAYERS.keys()
    assert MODULES.keys() >= PURE


def test_the_layout_comment_shows_the_layer_of_every_module() -> None:
    shown: dict[str, int] = {}
    for names, number in re.findall(r"^    (\S.*?) +F(\d)(?:  |$)", mosec_asgi.__doc__ or "", re.MULTILINE):
        shown |= {name.strip().removesuffix("/").removesuffix(".py"): int(number) for name in names.split(",")}
    for module in MODULES:
        name = module.split(".")[0]
        assert name == "__init__" or shown.get(name) == LAYERS[name], name


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__"])
def test_imports_point_down(module: str) -> None:
    upward = {target for target in own(imports(MODULES[module])) if target and layer(target) > layer(module)}
    assert not upward, f"{module} is in the layer F{layer(module)}"


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ("__init__", "cli", "__main__")])
def test_no_module_imports_the_package_itself(module: str) -> None:
    """What it exports comes from several layers."""
    taken = imports(MODULES[module])
    exported = {f"{PACKAGE}.{name}" for name in mosec_asgi.__all__} - {f"{PACKAGE}.{name}" for name in MODULES}
    assert not taken & exported


# Packages that must not import each other, though their layers would let them: batching uses messages, and not the
# bytes that they become on their way; what runs in a worker does not depend on what the worker runs on.
STRANGERS = [("batching", "ipc"), ("inside", "pool"), ("inside", "batching"), ("pool", "batching"), ("ipc", "inside")]


@pytest.mark.parametrize(("package", "stranger"), STRANGERS)
def test_a_package_imports_nothing_of_one_that_it_must_not_know(package: str, stranger: str) -> None:
    known = {
        (module, target)
        for module, path in MODULES.items()
        if module.split(".")[0] == package
        for target in own(imports(path))
        if target.split(".")[0] == stranger
    }
    assert not known


def test_whoever_holds_a_link_need_not_know_of_processes() -> None:
    """Beside the process executor itself, only what puts a service together knows it, and an actor, which is one."""
    knowing = {
        module.split(".")[0]
        for module, path in MODULES.items()
        if not module.startswith(("pool.process", "pool.ray"))
        for target in own(imports(path))
        if target.startswith("pool.process")
    }
    assert not knowing & {"batching", "pool", "inside", "ipc", "observing", "web"}


def test_no_two_modules_import_each_other() -> None:
    direct = {module: own(imports(path)) - {""} for module, path in MODULES.items() if module != "__init__"}
    reachable = {module: set(targets) for module, targets in direct.items()}
    for _ in direct:
        for targets in reachable.values():
            targets |= {further for target in set(targets) for further in direct.get(target, ())}
    circles = {module for module, targets in reachable.items() if module in targets}
    assert not circles


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_touches_neither_the_world_nor_the_clock(module: str) -> None:
    names = imports(MODULES[module])
    assert not {name.split(".")[0] for name in names} & IMPURE
    assert own(names) - {""} <= PURE, "what a pure module imports must be pure as well"


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    # `pool.process.launcher` sets the variables of its workers there, and reads only what to put back; an actor sets
    # its own. The URL of redis reaches the workers in no other way: `set_redis_url` is called on a class, before there
    # is a server. gRPC's core can be told to write nothing in no other way, either.
    assert readers <= {"config", "web.grpc", "pool.process.launcher", "pool.ray.actor", "mixin.redis_worker"}


@pytest.mark.parametrize(
    "module",
    ["mosec_asgi", "mosec_asgi.worker", "mosec_asgi.pool.process.child", "mosec_asgi.mixin", "mosec_asgi.protocols"],
)
def test_an_import_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert PACKAGE in loaded.stdout.split()
    assert not HEAVY & set(loaded.stdout.split())
