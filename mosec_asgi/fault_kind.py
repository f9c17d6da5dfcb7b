"""When two faults are the same: their exceptions are of one type and were raised at one place of the user's code."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import NamedTuple

# Exceptions of a chain that are looked at: a fault, what it was raised from, and so on.
MOST_CAUSES = 5
# Characters of a name.
MOST_NAME = 200

_OURS = f"{__file__.rpartition('/')[0]}/"
_STANDARD_LIBRARY = f"{logging.__file__.rpartition('/logging/')[0]}/"
_PACKAGES = ("/site-packages/", "/dist-packages/")


class Place(NamedTuple):
    """A line of code.

    Attributes:
        file: its path.
        line: its number.
        function: that it is in.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Return it as in a log line."""
        return f"{self.file}:{self.line}, in {self.function}" if self.line else "no line of code"


NOWHERE = Place("", 0, "")


class FaultKind(NamedTuple):
    """What faults of one kind have in common.

    Attributes:
        causes: the type and the place of the fault, and those of what it was raised from.
    """

    causes: tuple[tuple[str, Place], ...]

    @property
    def place(self) -> Place:
        """Return where the fault was raised."""
        return self.causes[0][1]


def kind_of(error: BaseException) -> FaultKind:
    """Return the kind of a fault."""
    causes: list[tuple[str, Place]] = []
    current: BaseException | None = error
    try:
        while current is not None and len(causes) < MOST_CAUSES:
            causes.append((type(current).__qualname__[:MOST_NAME], _place_of(current.__traceback__)))
            current = _cause(current)
    except Exception:
        # A class of the user's may have attributes of its own there, with faults of their own.
        causes.append((type(error).__name__, NOWHERE))
    return FaultKind(tuple(causes))


def _cause(error: BaseException) -> BaseException | None:
    inner = getattr(error, "exceptions", None)
    if isinstance(inner, tuple) and inner and isinstance(inner[0], BaseException):
        # A group says little of itself.
        return inner[0]
    return error.__cause__ if error.__suppress_context__ or error.__cause__ else error.__context__


def _place_of(traceback: TracebackType | None) -> Place:
    """Return the innermost line of the user's; where there is none, of a library's; where there is none, the last."""
    found, rank = NOWHERE, -1
    names: dict[str, int] = {}
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = code.co_filename
        which = names.get(file)
        if which is None:
            which = names[file] = _rank(file)
        if which >= rank:
            rank = which
            found = Place(file[-MOST_NAME:], traceback.tb_lineno or 1, code.co_name[:MOST_NAME])
        traceback = traceback.tb_next
    return found


def _rank(file: str) -> int:
    """Return 2 for code of the user's, 1 for a library's, 0 for ours."""
    if file.startswith(_OURS):
        return 0
    if file.startswith((_STANDARD_LIBRARY, "<frozen ")) or any(each in file for each in _PACKAGES):
        return 1
    return 2
