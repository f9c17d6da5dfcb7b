"""The processes of a service, and the processor time that the system has counted for each of them (Linux, /proc)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROC = Path("/proc")
# Elsewhere nothing of this is known.
KNOWN = (PROC / "self" / "stat").exists()
CLOCK_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

Role = Literal["server", "worker", "binary", "tracker"]


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/<pid>/stat says of a process; times are in seconds of processor time, of all its threads.

    Attributes:
        parent: the process that started it.
        user: in its own code.
        system: in the kernel.
        waited: of its children that have ended and that it has waited for, and of theirs.
    """

    parent: int
    user: float
    system: float
    waited: float

    @property
    def own(self) -> float:
        """Its own time, children apart."""
        return self.user + self.system


def parse_stat(text: str, ticks: int = CLOCK_TICKS) -> Stat:
    """Read a line of /proc/<pid>/stat, in which times are counted in `ticks` a second."""
    # The name, in parentheses, may hold anything, spaces and parentheses too.
    fields = text.rpartition(")")[2].split()
    user, system, *waited = (int(field) / ticks for field in fields[11:15])
    return Stat(int(fields[1]), user, system, sum(waited))


def read_stat(pid: int) -> Stat:
    """Return what the system says of a process.

    Raises:
        OSError: there is none.
    """
    return parse_stat((PROC / str(pid) / "stat").read_text())


def family(parents: Mapping[int, int], leader: int) -> list[int]:
    """Return a process and all that descend from it, each after its parent.

    Args:
        parents: of each process its parent.
        leader: the process at the top, whether or not it has a parent there.
    """
    found = [leader]
    # Grows while it is read.
    for parent in found:
        found += [pid for pid, owner in parents.items() if owner == parent and pid != leader]
    return found


def members(leader: int) -> dict[int, Stat]:
    """Return a process and all that descend from it."""
    stats = dict(_all())
    parents = {pid: stat.parent for pid, stat in stats.items()}
    return {pid: stats[pid] for pid in family(parents, leader) if pid in stats}


def _all() -> Iterator[tuple[int, Stat]]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            # One that has ended since is none.
            with contextlib.suppress(OSError):
                yield int(entry.name), read_stat(int(entry.name))


def role_of(pid: int, leader: int) -> Role:
    """Return what a process of a service is for: see `role`.

    Raises:
        OSError: it has ended.
    """
    command = (PROC / str(pid) / "cmdline").read_bytes()
    same_program = os.readlink(PROC / str(pid) / "exe") == os.readlink(PROC / str(leader) / "exe")
    return role(command, leads=pid == leader, same_program=same_program)


def role(command: bytes, *, leads: bool, same_program: bool) -> Role:
    """Return what a process of a service is for.

    Args:
        command: its command line.
        leads: whether it is the process that was started, of which all others descend.
        same_program: whether it runs the same executable as that one, Python: mosec's HTTP side does not.
    """
    if leads:
        return "server"
    if not same_program:
        return "binary"
    return "tracker" if b"resource_tracker" in command else "worker"
