"""How much memory this process may use."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

# A limit of a control group above this stands for none.
NO_LIMIT = 1 << 50
_ROOT = Path("/sys/fs/cgroup")


def memory_limit(groups: Path = Path("/proc/self/cgroup"), root: Path = _ROOT) -> int:
    """Return the bytes that this process may use: the machine's, its limits', and those of its control groups.

    Args:
        groups: names the process's control groups.
        root: where they lie.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            found.append(soft)
    return min([*found, *_group_limits(groups, root)])


def _group_limits(groups: Path, root: Path) -> Iterator[int]:
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        # In a container the path may be the host's, and the container's own group lies at the root.
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                text = ""
            if text.isdigit() and int(text) < NO_LIMIT:
                yield int(text)
            folder = folder.parent
