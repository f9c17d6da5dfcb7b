"""How much is logged of what clients can cause, as often as they like: some of it, and how much was left out.

What is logged is of a kind: lines of one text, or faults of one type at one place. Of each kind there are `MOST` lines
in a stretch of `SECONDS`, and the rest is counted; where a stretch had too many, there are `MOST_AFTER` in the next, as
long as that goes on. Of the faults of a kind, `MOST_WHOLE` in `WHOLE_SECONDS` have their tracebacks, and the other
lines go without. Each kind has its own ration, so none hides another.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Any, NamedTuple

# Lines of one kind in a stretch of time; and in one that follows a stretch in which there were too many.
MOST = 100
MOST_AFTER = 10
SECONDS = 10.0
# Tracebacks of one kind of faults, and in which time.
MOST_WHOLE = 3
WHOLE_SECONDS = 60.0
# Requests that one line may name; one that names more counts as several.
NAMES = 10
# Kinds that are told apart. With more of them, new ones share a ration until others have been quiet.
MOST_KINDS = 200


class Shown(enum.Enum):
    """What is logged of one that has come."""

    WHOLE = enum.auto()
    LINE = enum.auto()
    NOTHING = enum.auto()


class Summary(NamedTuple):
    """What was left out of a kind.

    Attributes:
        note: what was given with the last of them.
        requests: how many they were, and of faults, how many have failed by them.
        seconds: since the stretch began in which they came.
    """

    note: Any
    requests: int
    seconds: float


class Verdict(NamedTuple):
    """What to do about one that has come.

    Attributes:
        before: to be said first.
        shown: of this one.
        until: the end of the stretch.
    """

    before: Summary | None
    shown: Shown
    until: float


class Rationing:
    """Decides what is logged, and counts what is not."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind] = {}
        self._others = _Kind()

    def ask(self, kind: Hashable, now: float, note: Any, *, requests: int = 1, whole: bool = False) -> Verdict:
        """Return what to do about a line or a fault.

        Args:
            kind: of it.
            now: seconds.
            note: what a summary is to know of it, if it is left out as the last one.
            requests: how many of them it is about.
            whole: it has a traceback.
        """
        found = self._kinds.get(kind) or self._new(kind, now)
        before = None
        if now >= found.until:
            before = found.taken(now)
            found.begin(now)
        if found.left <= 0:
            found.over = True
            found.count += requests
            found.note = note
            return Verdict(before, Shown.NOTHING, found.until)
        found.left -= 1 + (requests - 1) // NAMES
        return Verdict(before, Shown.WHOLE if whole and found.may_be_whole(now) else Shown.LINE, found.until)

    def due(self, now: float) -> list[Summary]:
        """Return what is to be said of stretches that are over."""
        return self._taken(now, now)

    def all(self, now: float) -> list[Summary]:
        """Return what is to be said, also of stretches that go on."""
        return self._taken(now, float("inf"))

    def next_due(self) -> float | None:
        """Return when there is something to be said next."""
        return min((kind.until for kind in (*self._kinds.values(), self._others) if kind.count), default=None)

    def _taken(self, now: float, until: float) -> list[Summary]:
        over = [kind for kind in (*self._kinds.values(), self._others) if kind.until <= until]
        return [summary for kind in over if (summary := kind.taken(now)) is not None]

    def _new(self, kind: Hashable, now: float) -> _Kind:
        if len(self._kinds) >= MOST_KINDS:
            self._kinds = {name: each for name, each in self._kinds.items() if not each.is_quiet(now)}
            if len(self._kinds) >= MOST_KINDS:
                return self._others
        self._kinds[kind] = found = _Kind()
        return found


class _Kind:
    """What has come of one kind.

    Attributes:
        began: when the stretch began.
        until: its end.
        left: how many lines may still be logged in it.
        whole_until: the end of the time for tracebacks.
        whole_left: how many tracebacks may still be logged in it.
        count: requests that were left out, and not told of.
        note: of the last of them.
        over: the stretch had too many.
    """

    __slots__ = ("began", "count", "left", "note", "over", "until", "whole_left", "whole_until")

    def __init__(self) -> None:
        self.began = self.until = self.whole_until = float("-inf")
        self.left = MOST
        self.whole_left = MOST_WHOLE
        self.count = 0
        self.note: Any = None
        self.over = False

    def begin(self, now: float) -> None:
        """Begin a stretch, with few lines where one that had too many has just ended."""
        follows = self.over and now < self.until + SECONDS
        self.began, self.until, self.over = now, now + SECONDS, False
        self.left = MOST_AFTER if follows else MOST

    def may_be_whole(self, now: float) -> bool:
        """Whether one more may have its traceback, which is counted."""
        if now >= self.whole_until:
            self.whole_until, self.whole_left = now + WHOLE_SECONDS, MOST_WHOLE
        self.whole_left -= 1
        return self.whole_left >= 0

    def is_quiet(self, now: float) -> bool:
        """Whether there is nothing to remember."""
        return now >= self.until and now >= self.whole_until and not self.count

    def taken(self, now: float) -> Summary | None:
        """Return what was left out, which is then told."""
        if not self.count:
            return None
        summary = Summary(self.note, self.count, now - self.began)
        self.count, self.note = 0, None
        return summary
