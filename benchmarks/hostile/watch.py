"""What the processes of a service hold: memory and descriptors (Linux, /proc)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import processes

from hostile.judge import Held

PAGE = os.sysconf("SC_PAGE_SIZE")
# Seconds between two looks at the memory; a look at one process takes some microseconds.
LOOK = 0.05


def held(leader: int) -> Held:
    """Look at a service by its first process.

    Raises:
        OSError: a process of it has ended meanwhile.
    """
    members = list(processes.members(leader))
    descriptors = sum(len(os.listdir(Path("/proc", str(pid), "fd"))) for pid in members)
    return Held(_memory(members), descriptors, frozenset(members[1:]))


def _memory(members: list[int]) -> int:
    """Return the resident bytes of processes; what they share counts for each of them."""
    pages = (int(Path("/proc", str(pid), "statm").read_text().split()[1]) for pid in members)
    return PAGE * sum(pages)


async def peak(leader: int, until: asyncio.Event) -> int:
    """Return the resident bytes that a service holds at most until an event is set."""
    members = list(processes.members(leader))
    highest = 0
    while not until.is_set():
        try:
            highest = max(highest, _memory(members))
        except OSError:
            # A worker has been replaced, which is told of by its number.
            members = list(processes.members(leader))
        await asyncio.sleep(LOOK)
    return highest
