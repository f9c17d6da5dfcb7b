"""What the workers of a pipeline use of the machine, as the kernel counts it for their processes (Linux)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")


@dataclass(frozen=True, slots=True)
class Use:
    """What a process has used.

    Attributes:
        cpu_seconds: processor time of its threads.
        max_rss_bytes: the most memory that it has had.
    """

    cpu_seconds: float
    max_rss_bytes: int


def use_of(pid: int | None, processes: Path = PROCESSES) -> Use | None:
    """Return what a process has used; None where it has gone, or the kernel does not tell."""
    if pid is None:
        return None
    folder = processes / str(pid)
    try:
        # In nanoseconds; `stat` has hundredths of a second.
        nanoseconds = sum(int(path.read_text().split()[0]) for path in folder.glob("task/*/schedstat"))
        most = re.search(r"^VmHWM:\s+(\d+) kB", (folder / "status").read_text(), re.MULTILINE)
    except (OSError, ValueError, IndexError):
        return None
    return None if most is None else Use(nanoseconds / 1e9, int(most[1]) * 1024)


def stage_metrics(
    names: Sequence[str], before: Sequence[Use | None], after: Sequence[Use | None]
) -> list[dict[str, object]]:
    """Return what each stage has used for an example, by mosec's names; stages of which nothing is known are left out.

    Args:
        names: of the stages.
        before: what their workers had used before the example.
        after: the same after it.
    """
    return [
        {
            "stage": name,
            "cpu_time_seconds": round(then.cpu_seconds - first.cpu_seconds, 6),
            "max_rss_bytes": then.max_rss_bytes,
        }
        for name, first, then in zip(names, before, after, strict=True)
        if first is not None and then is not None
    ]
