"""Edits of a folder's files: by watchfiles, where that is installed, else by looking at them twice a second."""

from __future__ import annotations

import asyncio
import fnmatch
import importlib.util
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

POLL_SECONDS = 0.5
# Files that are looked at by polling; more would take longer than the time between two looks.
MOST_FILES = 20_000
_NOT_THE_USERS = frozenset({"__pycache__", "node_modules", "site-packages"})

# By path: when it was written last, in nanoseconds, and its bytes.
Snapshot = dict[str, tuple[int, int]]


async def edits(folder: Path, patterns: Sequence[str], *, polling: bool = False) -> AsyncIterator[set[str]]:
    """Yield the files that have been edited, made or removed since the last time, for ever.

    Args:
        folder: the folder, with all below it but hidden folders, virtual environments and the like.
        patterns: of the names of files.
        polling: look at the files, even where watchfiles is installed.
    """
    if polling or importlib.util.find_spec("watchfiles") is None:
        async for changed in _polled(folder, patterns):
            yield changed
        return
    from watchfiles import awatch

    def wanted(_: object, path: str) -> bool:
        return is_wanted(Path(path), folder, patterns)

    async for found in awatch(folder, watch_filter=wanted):
        yield {path for _, path in found}


def is_wanted(path: Path, folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a file is one that is watched."""
    try:
        parts = path.relative_to(folder).parts[:-1]
    except ValueError:
        return False
    if not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
        return False
    folders = [folder.joinpath(*parts[: place + 1]) for place in range(len(parts))]
    return all(map(_is_the_users, folders))


def differences(before: Snapshot, after: Snapshot) -> set[str]:
    """Return the files that are not as they were."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def snapshot(folder: Path, patterns: Sequence[str]) -> Snapshot:
    """Return how the files are now."""
    found: Snapshot = {}
    for path in _files(folder, patterns):
        try:
            status = os.stat(path)
        except OSError:
            # Removed meanwhile.
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
        if len(found) >= MOST_FILES:
            break
    return found


async def _polled(folder: Path, patterns: Sequence[str]) -> AsyncIterator[set[str]]:
    before = await asyncio.to_thread(snapshot, folder, patterns)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        after = await asyncio.to_thread(snapshot, folder, patterns)
        if changed := differences(before, after):
            yield changed
        before = after


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[str]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _is_the_users(Path(where, name))]
        for name in names:
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                yield os.path.join(where, name)


def _is_the_users(folder: Path) -> bool:
    """Whether a folder holds what a user edits: no hidden one, no cache, no virtual environment."""
    return not (folder.name.startswith(".") or folder.name in _NOT_THE_USERS or (folder / "pyvenv.cfg").exists())
