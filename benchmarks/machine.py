"""Where and with what the numbers were made."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
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
