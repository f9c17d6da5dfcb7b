"""How fast a stage answers while it has all that it can do. Pure: time comes in as `now`.

Only time in which tasks wait for room counts. What a stage does when less is asked of it says nothing about what it
could do: neither a quiet hour nor a trickle of requests makes it look slow.
"""

from __future__ import annotations

from mosec_asgi.batching.average import MovingAverage

# A spell of work this long is a measurement; shorter ones are added up.
SPELL_SECONDS = 0.5
SMOOTHING = 0.5


class Rate:
    """Answers per second, while tasks wait."""

    __slots__ = ("_answers", "_per_second", "_since", "_worked")

    def __init__(self) -> None:
        self._since: float | None = None
        self._worked = 0.0
        self._answers = 0
        self._per_second = MovingAverage(SMOOTHING)

    @property
    def per_second(self) -> float:
        """The measured rate; 0 while nothing is known."""
        if self._per_second.value is not None:
            return self._per_second.value
        return self._answers / self._worked if self._worked else 0.0

    def wait(self, now: float, *, waiting: bool) -> None:
        """Note whether tasks wait from now on for others to be answered."""
        if self._since is not None:
            self._worked += now - self._since
        self._since = now if waiting else None

    def answered(self, answers: int, now: float) -> None:
        """Note answers."""
        if self._since is None:
            return
        self._answers += answers
        self._worked += now - self._since
        self._since = now
        if self._worked >= SPELL_SECONDS:
            self._per_second.add(self._answers / self._worked)
            self._worked, self._answers = 0.0, 0

    def seconds_for(self, tasks: int) -> float:
        """Return how long `tasks` take at this rate; 0 while nothing is known."""
        return tasks / self.per_second if self.per_second else 0.0
