"""How many threads the numerical libraries of a worker start: the processes of a stage share the CPUs.

OpenMP (PyTorch, ONNX Runtime of some builds), MKL and OpenBLAS (numpy) start a thread for each CPU of the machine, in
each process, and in a container for each CPU of the host. Four such processes on four CPUs are in each other's way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path

from mosec_asgi.host import control_group

# The first counts for the others, too, where they are not set.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def usable_cpus() -> int:
    """Return on how many CPUs this process may run: as many threads its libraries start by themselves."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_limit(groups: Path = control_group.GROUPS, root: Path = control_group.ROOT) -> int:
    """Return how many CPUs' worth of time this process and its children may use, rounded up: at most `usable_cpus`.

    Args:
        groups: names the process's control groups.
        root: where they lie.
    """
    limits = [usable_cpus()]
    for folder, unified in control_group.folders("cpu", groups, root):
        if unified:
            quota, _, period = control_group.content(folder / "cpu.max").partition(" ")
        else:
            quota, period = (control_group.content(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        # "max", and -1, stand for no limit.
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(max(1, math.ceil(int(quota) / int(period))))
    return min(limits)


def shares(workers: int, cpus: int, usable: int, set_by_user: Collection[str]) -> dict[str, str]:
    """Return the variables that have the processes of a stage share the CPUs; none where they need not be told.

    Args:
        workers: of the stage.
        cpus: that they share.
        usable: the threads that a library starts by itself.
        set_by_user: variables that are set already. Where the first of ours is, it was meant for all.
    """
    share = max(1, cpus // workers)
    if share >= usable or VARIABLES[0] in set_by_user:
        return {}
    return {name: str(share) for name in VARIABLES if name not in set_by_user}
