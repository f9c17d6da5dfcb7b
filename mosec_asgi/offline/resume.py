"""What is found of a run by one that goes on with it.

Each record is written by one call to the system, in the order in which they are made. So whatever ends the program,
SIGKILL too, leaves whole records and at most one that is cut short at the end of a file. That one is cut off, and its
line is done again; every other line that has a record, in the output or among the errors, is not. Nothing else counts:
not where the input was read, nor what was in hand.

Nothing is forced to the disk. Where the system itself ends, as by a loss of power, the last seconds of either file may
be gone, or hold zeros. Lines whose records are gone are done again; what is no record is refused, with its place.

`<output>.run.json` says of which input the records are, and what must be the same for one that goes on. It is locked as
long as a run writes, and gets a second line when all is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from mosec_asgi.offline.done import Done
from mosec_asgi.offline.faults import Halted, WrongUse
from mosec_asgi.offline.outputs import Places

VERSION = 1
# What must be the same, and what it is called.
_NAMES = {
    "version": "version of mosec-asgi",
    "input": "input file (its size, or the hash of its first and last 64 KiB)",
    "format": "--format",
    "route": "--route",
    "column": "--column",
    "ordered": "--unordered",
    "errors": "--errors",
}


class Run:
    """The state of a run, in a file that it has locked.

    Attributes:
        done: the lines that have a record.
        failed: how many of these are errors.
        finished: there is nothing left to do.
    """

    def __init__(self, file: FileIO, places: Places) -> None:
        """Bind to a file that is open and locked; nothing is read."""
        self._file = file
        self._places = places
        self.done = Done()
        self.failed = 0
        self.finished = False

    def begin(self, state: Mapping[str, Any], *, overwrite: bool) -> None:
        """Begin anew.

        Args:
            state: what another run must share to go on with this one.
            overwrite: remove what is there.

        Raises:
            WrongUse: something is there.
        """
        # The state goes last: what is left without one is refused, and never taken for another run's.
        for path in self._places.results():
            if path.exists() and not overwrite:
                raise WrongUse(f"{path} exists: --resume goes on with what a run has left, --overwrite begins anew")
        for path in self._places.results():
            path.unlink(missing_ok=True)
        self._write(json.dumps({"version": VERSION, **state}).encode() + b"\n", 0)

    def go_on(self, state: Mapping[str, Any], number: Callable[[bytes], int | None], most: int) -> None:
        """Find what has been done; begin where nothing has.

        Args:
            state: what must be the same.
            number: returns the line of a record, or None where it is none.
            most: no line has a higher number.

        Raises:
            WrongUse: what is there is of another run.
            Halted: it is damaged.
        """
        self._file.seek(0)
        first, *rest = self._file.read().split(b"\n")
        if not first:
            # Nothing was begun here, or ended before it had.
            for path in self._places.results():
                if path.exists():
                    raise WrongUse(
                        f"{path} exists, and {self._places.state}, which would say of which run it is, does not: "
                        "--overwrite begins anew"
                    )
            self.begin(state, overwrite=False)
            return
        _check_same(_parsed(first, self._places.state), {"version": VERSION, **state}, self._places)
        if rest and rest[0]:
            end = _parsed(rest[0], self._places.state)
            self.failed, self.finished = end["failed"], True
            return
        for path in (self._places.records, self._places.errors):
            before = len(self.done)
            recover(path, number, most, self.done)
            self.failed = len(self.done) - before

    def end(self, failed: int) -> None:
        """Note that all lines are done.

        Args:
            failed: how many of them are errors.
        """
        self._write(json.dumps({"finished": True, "failed": failed}).encode(), self._file.seek(0, os.SEEK_END))

    def _write(self, text: bytes, place: int) -> None:
        """Write a line from a place on, or nothing.

        Raises:
            Halted: the disk is full, or cannot be written.
        """
        try:
            self._file.truncate(place)
            if self._file.write(text) == len(text):
                return
            problem: str | None = os.strerror(errno.ENOSPC)
        except OSError as error:
            problem = error.strerror
        with contextlib.suppress(OSError):
            self._file.truncate(place)
        raise Halted(f"{self._places.state} cannot be written: {problem}")


@contextlib.contextmanager
def locked(places: Places) -> Iterator[Run]:
    """Have a run's files for oneself, for the time of a block.

    By a lock that no worker inherits, so that it ends with this process, however that ends.

    Raises:
        WrongUse: another run has them, or they cannot be made.
    """
    path = places.state
    made = not path.exists()
    try:
        # Not for appending: that leaves no way to read.
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666), "r+b")
    except OSError as error:
        raise WrongUse(f"{path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WrongUse(f"another run writes to {places.output}; wait for its end") from None
        try:
            yield Run(file, places)
        except WrongUse:
            # Nothing was done, and nothing is left of it.
            if made:
                path.unlink()
            raise


def recover(path: Path, number: Callable[[bytes], int | None], most: int, done: Done) -> None:
    """Add the lines whose records are in a file, and cut off a record that is not whole.

    Args:
        path: of a file that may not be there.
        number: returns the line of a record, or None where it is none.
        most: no line has a higher number.
        done: gets the lines.

    Raises:
        Halted: something that is not at the end is no record, or a line has two.
    """
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = 0
        for place, record in enumerate(file, 1):
            if not record.endswith(b"\n"):
                file.truncate(end)
                return
            line = number(record)
            if line is None or line > most:
                raise Halted(_damaged(path, place, "is no record of this run"))
            if not done.add(line):
                raise Halted(_damaged(path, place, f"is a second record of line {line}"))
            end += len(record)


def _damaged(path: Path, place: int, what: str) -> str:
    return (
        f"{path}, line {place}: this {what}. The file was changed, or lost a part with the power; nothing was done. "
        f"Delete the lines from there on (head -n {place - 1}), and then --resume does them again; or --overwrite"
    )


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        state = json.loads(text)
    except ValueError:
        state = None
    if not isinstance(state, dict):
        raise WrongUse(f"{path} does not say of which run it is: --overwrite begins anew")
    return state


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], places: Places) -> None:
    other = [name for key, name in _NAMES.items() if before.get(key) != now.get(key)]
    if other:
        raise WrongUse(
            f"{places.output} was begun with another {' and '.join(other)}: --resume needs the same, and --overwrite "
            "begins anew"
        )
