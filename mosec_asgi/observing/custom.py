"""What a user's workers count and measure with prometheus_client, shown in the service's own /metrics.

prometheus_client's multiprocess mode does the counting: where `PROMETHEUS_MULTIPROC_DIR` is set before it is loaded,
each process keeps its numbers in files of that directory, mapped into its memory, and the files are added up to show
them. So a worker's `Counter.inc` costs no message, and its count survives the worker. The service makes a directory of
its own, names it in its workers' environment, adds the files up for each request to /metrics, and removes the directory
at its end.

Dead processes leave their files, so the number of files would grow. Therefore the numbers of dead processes are folded
into one file for each kind, and their own files are removed: sums (counters, histograms, summaries, gauges of the mode
`sum`) go on from there and never fall, `min`, `max` and `mostrecent` keep their meaning, and `live*` gauges of dead
processes are dropped. Only gauges of the mode `all`, prometheus_client's default, show each process separately, dead
ones too; of those files the newest `MOST_DEAD` are kept. So the directory holds a few files for each live process, and
a bounded number of others.

If the user has set `PROMETHEUS_MULTIPROC_DIR`, that directory is used. Other programs may write there, so nothing in it
is folded, and only the live gauges of dead workers are removed.

Workers on other machines count in directories of their own and send what is in the files (`pool.ray.counts`). It is
written here as the files of processes that have no number on this machine, and all else is the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosec_asgi import log
from mosec_asgi.observing.counted import check

if TYPE_CHECKING:
    from prometheus_client import Metric

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "mosec_asgi-metrics-"
# Files of dead processes that are kept because they cannot be folded.
MOST_DEAD = 16
# The number of the process to which the folded files belong by their names; no real process has it.
FOLDED = "0"
# The beginnings of the names of files that prometheus_client makes.
KIND = re.compile(r"counter|histogram|summary|gauge_(live)?(all|min|max|sum|mostrecent)")
# Bytes of a file that is taken from another machine.
MOST_COUNTED = 1024 * 1024
# Processes on other machines have numbers above those of this one: 2**22 is the most that Linux gives. The service's
# own number is in them, as several services may have one directory.
_FOREIGN = 10_000_000

# A value, and when it was set (0 where that is not known).
_Value = tuple[float, float]
_Fold = Callable[[_Value, _Value], _Value]


def _library() -> tuple[Any, Any]:
    """Return prometheus_client's modules `multiprocess` and `mmap_dict`, which have no types of their own.

    They are loaded at first use: the directory is made before the workers start, which does not need these modules.
    """
    from prometheus_client import mmap_dict, multiprocess

    return multiprocess, mmap_dict


def _add(one: _Value, other: _Value) -> _Value:
    return one[0] + other[0], 0.0


def _later(one: _Value, other: _Value) -> _Value:
    return other if other[1] > one[1] else one


# By the beginning of a file's name: how the values of two processes for the same series are combined.
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
    """Makes, reads and removes the directory of a service's custom metrics; a collector of prometheus_client."""

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
        # The numbers of processes on other machines that live, and by kind the keys of what was taken from them.
        self._foreign: dict[str, dict[str, Set[bytes]]] = {}
        # Those of which something was not taken, which has been said.
        self._refused: set[str] = set()
        self._removal: multiprocessing.util.Finalize | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The variables to set in the environment of a worker."""
        return {VARIABLE: self._path} if self._path else {}

    @property
    def private(self) -> str:
        """The directory, if it is the service's own and is removed with it; else empty."""
        return self._path if self._owned else ""

    def open(self) -> None:
        """Make the directory, and remove those of servers that were killed; without one, custom metrics are not shown.

        The owner of a directory holds a lock on it, so a directory without a lock has no owner any more.
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
            # For a server that ends without a shutdown; runs after its workers have been ended (priority 100).
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
        """Take a dead worker's metrics over: its counts stay, its live gauges go."""
        if not self._path:
            return
        try:
            if self._owned:
                self._fold(pid)
            else:
                _library()[0].mark_process_dead(pid, self._path)
        except Exception as error:
            logger.warning(
                "the custom metrics of process %d, which has ended, were not added to the sums: %r",
                pid,
                error,
                exc_info=error,
            )

    def counted(self, number: int, kind: str, values: bytes) -> None:
        """Take over what a process on another machine has counted, in the place of what it had counted before.

        Args:
            number: of the process, which is this service's to give.
            kind: of the metrics, which is the beginning of a file's name.
            values: what the file holds.
        """
        if not self._path:
            return
        name = _foreign(number)
        try:
            if not KIND.fullmatch(kind) or len(values) > MOST_COUNTED:
                raise ValueError(f"{len(values)} bytes of the kind {kind[:40]!r}")
            taken = self._foreign.get(name, {})
            taken[kind] = check(kind, values, taken.get(kind, frozenset()))
            self._foreign[name] = taken
            self._replace(f"{kind}_{name}", values)
        except Exception as error:
            # It comes again, each second.
            if name not in self._refused:
                self._refused.add(name)
                logger.warning(
                    "custom metrics of Ray actor %d were not taken, and no more is said of this actor's: %s",
                    number,
                    error,
                    # Of what it has sent, the text says all.
                    exc_info=None if isinstance(error, ValueError) else error,
                )

    def foreign_ended(self, number: int) -> None:
        """Take the metrics of a process on another machine over that has ended."""
        name = _foreign(number)
        self._refused.discard(name)
        if name in self._foreign:
            del self._foreign[name]
            self.ended(int(name))

    # -- asked by the registry ---------------------------------------------------------------------------------------

    def describe(self) -> list[Metric]:
        """Return no names: the users' metrics are not known in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all workers, added up; none if the files cannot be read."""
        try:
            if self._owned:
                # The service does not notice when a process that a worker has started dies.
                self._fold(None)
            files = [str(file) for file in self._files()]
            families = list(_library()[0].MultiProcessCollector.merge(files)) if files else []
        except Exception as error:
            # The service's own metrics must still be shown.
            logger.warning("the custom metrics in %s cannot be read: %r", self._path, error, exc_info=error)
            families = []
        yield from families

    # -- files -------------------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """Return the files that hold something; one that is being made is empty for a moment."""
        return [file for file in Path(self._path).glob("*.db") if file.stat().st_size] if self._path else []

    def _replace(self, name: str, values: bytes) -> None:
        """Write a file: whoever reads meanwhile finds the old one or the new one."""
        new = os.path.join(self._path, f"{name}.new")
        try:
            Path(new).write_bytes(values)
            os.replace(new, os.path.join(self._path, f"{name}.db"))
        except OSError:
            # What there was room for takes it from others.
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def _fold(self, gone: int | None) -> None:
        """Fold the files of all dead processes, and those of `gone` even if another process has its number by now."""
        kept = []
        for file in sorted(self._files()):
            kind, _, number = file.stem.rpartition("_")
            if number == FOLDED or not number.isdigit() or (number != str(gone) and self._lives(number)):
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

    def _lives(self, number: str) -> bool:
        return number in self._foreign or (len(number) < len(str(_FOREIGN)) and _lives(int(number)))

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


def _foreign(number: int) -> str:
    """Return the number in the names of files of a process on another machine."""
    return str(os.getpid() * _FOREIGN + number)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It belongs to another user: the number was given to another process, or this process has changed its user.
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
    """Remove the directories of servers that were killed: nobody holds their locks."""
    for path in Path(parent).glob(PREFIX + "*"):
        # It belongs to another user, or another server has just removed it.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
