"""How much memory this process may use."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from mosec_asgi.host import control_group

# A limit of a control group above this stands for none.
NO_LIMIT = 1 << 50


def memory_limit(groups: Path = control_group.GROUPS, root: Path = control_group.ROOT) -> int:
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
    for folder, unified in control_group.folders("memory", groups, root):
        text = control_group.content(folder / ("memory.max" if unified else "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < NO_LIMIT:
            yield int(text)
