"""Where and with what the numbers were made."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Those that the numbers depend on.
PACKAGES = (
    "mosec-asgi",
    "mosec",
    "litserve",
    "uvicorn",
    "uvloop",
    "httptools",
    "zttp",
    "orjson",
    "starlette",
    "prometheus-client",
)
# In a run that is called quiet, other programs take no more than this of one processor. Where that is not known, the
# load average before the run is no more than this for each processor.
QUIET_OTHERS = 0.1
QUIET_LOAD = 0.25


def describe() -> dict[str, Any]:
    """Return the machine, the versions, the commit and the date, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "wrk": _output("wrk", "-v").partition(" [")[0].removeprefix("wrk "),
        "commit": _output("git", "describe", "--always", "--dirty"),
    }


def is_loaded(machine: Mapping[str, Any]) -> bool:
    """Whether other programs used the machine before the measurements, by what `describe` has returned."""
    return bool(machine["load_average_before"] > QUIET_LOAD * (machine["cores"] or 1))


def conditions(machine: Mapping[str, Any], others: Sequence[float | None], *, busy: bool) -> dict[str, Any]:
    """Return what else ran, ready for JSON.

    Args:
        machine: what `describe` has returned before.
        others: for each row how many processors other programs kept busy meanwhile, where that is known.
        busy: whether a busy program was started on purpose.
    """
    known = [number for number in others if number is not None]
    most = max(known, default=None)
    undisturbed = not is_loaded(machine) if most is None else most <= QUIET_OTHERS
    return {"busy_loop": busy, "other_programs": most, "quiet": undisturbed and not busy}


def brief(machine: Mapping[str, Any]) -> str:
    """Return the processor and what else ran there in a few words."""
    words = f"{machine['cpu']}, {machine['cores']} cores, {machine['python']}"
    if "quiet" not in machine:
        return words
    if machine["quiet"]:
        return f"{words}; quiet"
    busy = "beside a busy loop" if machine["busy_loop"] else "NOT QUIET"
    most = machine["other_programs"]
    disturbed = most is not None and most > QUIET_OTHERS
    return f"{words}; {busy}" + (f"; other programs kept up to {most:.2f} processors busy" if disturbed else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """Return what a command prints, without its exit code: wrk's is 1 with its version."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return finished.stdout.strip()
