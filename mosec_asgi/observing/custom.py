"""What a user's workers count and measure with prometheus_client, shown in the service's own /metrics.

prometheus_client's multiprocess mode does the counting: where `PROMETHEUS_MULTIPROC_DIR` is set before it is loaded,
each process keeps its numbers in files of that directory, mapped into its memory, and whoever wants to show them adds
the files up. So a worker's `Counter.inc` costs no message, and survives the worker. The service makes a directory of
its own, gives it to its workers by their environment, adds the files up when somebody asks for /metrics, and removes
it at its end.

A process that has died leaves its files, and each new one would add some. So what the dead have counted is folded into
one file for each kind, and theirs are removed: sums (counters, histograms, summaries, gauges of the mode `sum`) go on
from there and never fall, `min`, `max` and `mostrecent` keep their meaning, the `live*` gauges of the dead go. Only a
gauge of the mode `all`, prometheus_client's default, shows each process by itself, the dead as well; of those, the
youngest `MOST_DEAD` stay. So the directory holds a few files for each process that lives, and a bounded rest.

Where the user has set `PROMETHEUS_MULTIPROC_DIR`, that directory is used, and nothing in it is folded or removed but
the live gauges of dead workers: others may write there.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosec_asgi import log

if TYPE_CHECKING:
    from prometheus_client import Metric

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "mosec_asgi-metrics-"
# Files of dead processes that are kept because they cannot be folded.
MOST_DEAD = 16
# The process to which the folded files belong by their names; no real one has this number.
FOLDED = "0"

# A value, and when it was set (0 where nobody has said).
_Value = tuple[float, float]
_Fold = Callable[[_Value, _Value], _Value]


def _library() -> tuple[Any, Any]:
    """Return prometheus_client's modules `multiprocess` and `mmap_dict`, which have no types of their own.

    They load with the first who needs them: the directory must be there before the workers start, and they need not.
    """
    from prometheus_client import mmap_dict, multiprocess

    return multiprocess, mmap_dict


def _add(one: _Value, other: _Value) -> _Value:
    return one[0] + other[0], 0.0


def _later(one: _Value, other: _Value) -> _Value:
    return other if other[1] > one[1] else one


# By the beginning of a file's name: what becomes of two processes' values of the same series.
_FOLDS: dict[str, _Fold] = {
    "counter": _add,
    "histogram": _add,
    "summary": _add,
    "gauge_sum": _add,
    "gauge_min": min,
    "gauge_max": max,
    "gauge_mostrecent": _later,
}

logger = log.internal_logger(__name__)


class CustomMetrics:
    """The directory of a service's custom metrics, from its making to its end; a collector of prometheus_client."""

    def __init__(self, users: str | None, parents: tuple[str, ...] = ("/dev/shm", "")) -> None:
        """Prepare; nothing is made.

        Args:
            users: the directory that the user has set up; None for one of the service's own.
            parents: where to make that one, the first that is possible; an empty name stands for the system's
                directory of temporary files. Memory is the better place: files on a disk would be written back to it.
        """
        self._parents = parents
        self._path = users or ""
        self._owned = False
        self._lock = -1
        self._removal: multiprocessing.util.Finalize | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of a worker says."""
        return {VARIABLE: self._path} if self._path else {}

    @property
    def private(self) -> str:
        """The directory, where it is the service's own and goes with it; else empty."""
        return self._path if self._owned else ""

    def open(self) -> None:
        """Make the directory, and remove those of servers that were killed; without one, custom metrics are not shown.

        A directory's owner holds a lock on it, so that one without is nobody's.
        """
        if self._path:
            return
        tried = []
        for parent in self._parents:
            try:
                # Where there is no directory for temporary files at all, asking for it raises.
                parent = parent or tempfile.gettempdir()
                tried.append(parent)
                _sweep(parent)
                self._path, self._lock = _make_locked(parent)
            except OSError as error:
                logger.debug("no directory for custom metrics in %s: %s", parent or "TMPDIR", error)
                continue
            self._owned = True
            # For a server that nobody shuts down; after its workers have been ended (priority 100).
            self._removal = multiprocessing.util.Finalize(None, self.close, exitpriority=50)
            return
        logger.warning(
            "what workers count with prometheus_client will not be shown in /metrics: no directory can be made in %s. "
            "Set PROMETHEUS_MULTIPROC_DIR to one that can be written to",
            " or ".join(tried) or "any directory for temporary files",
        )

    def close(self) -> None:
        """Remove the directory, if it is the service's own. Idempotent."""
        if self._removal is not None:
            self._removal.cancel()
            self._removal = None
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(self._lock)
            self._path = ""

    def ended(self, pid: int) -> None:
        """Keep the books of a worker that has died: what it has counted stays, what it was goes."""
        if not self._path:
            return
        try:
            if self._owned:
                self._fold(pid)
            else:
                _library()[0].mark_process_dead(pid, self._path)
        except Exception as error:
            logger.warning("the custom metrics of process %d were not folded: %r", pid, error, exc_info=error)

    # -- asked by the registry ---------------------------------------------------------------------------------------

    def describe(self) -> list[Metric]:
        """Return no names: they are not known before they are there."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all workers, added up; none if they are not to be read."""
        try:
            if self._owned:
                # Processes that workers have started die unnoticed.
                self._fold(None)
            files = [str(file) for file in self._files()]
            families = list(_library()[0].MultiProcessCollector.merge(files)) if files else []
        except Exception as error:
            # The service's own metrics must not be lost for it.
            logger.warning("the custom metrics in %s cannot be read: %r", self._path, error, exc_info=error)
            families = []
        yield from families

    # -- files -------------------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """Return the files that hold something; one that is being made is empty for a moment."""
        return [file for file in Path(self._path).glob("*.db") if file.stat().st_size] if self._path else []

    def _fold(self, gone: int | None) -> None:
        """Fold the files of all processes that do not live, of `gone` whatever lives under its number by now."""
        kept = []
        for file in sorted(self._files()):
            kind, _, number = file.stem.rpartition("_")
            if number == FOLDED or not number.isdigit() or (number != str(gone) and _lives(int(number))):
                continue
            if kind.startswith("gauge_live"):
                file.unlink()
            elif kind in _FOLDS:
                self._fold_one(file, kind)
                file.unlink()
            else:
                kept.append(file)
        for file in sorted(kept, key=lambda file: file.stat().st_mtime_ns)[:-MOST_DEAD]:
            file.unlink()

    def _fold_one(self, file: Path, kind: str) -> None:
        mmaped = _library()[1].MmapedDict
        folded = mmaped(os.path.join(self._path, f"{kind}_{FOLDED}.db"))
        try:
            held = _values(folded.read_all_values())
            for key, value in _values(row[:3] for row in mmaped.read_all_values_from_file(str(file))).items():
                folded.write_value(key, *(_FOLDS[kind](held[key], value) if key in held else value))
        finally:
            folded.close()


def _values(rows: Iterator[tuple[str, float, float]]) -> Mapping[str, _Value]:
    return {key: (value, timestamp) for key, value, timestamp in rows}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Somebody else's: the number has been given anew, or the user has changed.
        return True
    return True


def _make_locked(parent: str) -> tuple[str, int]:
    """Return a new directory and the descriptor that holds its lock."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another server may have swept it away before it was locked.
        if os.path.isdir(path):
            return path, descriptor
        os.close(descriptor)


def _sweep(parent: str) -> None:
    """Remove the directories of servers that have not come to remove them: nobody holds their locks."""
    for path in Path(parent).glob(PREFIX + "*"):
        # Another user's; or another server has just removed it.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
