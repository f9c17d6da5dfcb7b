"""The control groups of this process: where a container's limits stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def folders(controller: str, groups: Path = GROUPS, root: Path = ROOT) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the groups that limit this process, from its own up; and whether they are of version 2.

    Args:
        controller: of the limits, such as "memory".
        groups: names the process's control groups.
        root: where they lie.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        # In a container the path may be the host's, and the container's own group lies at the root.
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            yield folder, not controllers
            folder = folder.parent


def content(file: Path) -> str:
    """Return what stands in a file of a group; empty where there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
