"""What happens in a history, and the first contract that is broken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from mosec_asgi.testing.simulation.contracts.contract import Contract, Violation

# The last events that are kept.
REMEMBERED = 60


class Journal:
    """Remembers the last events of a history, counts them, and records a violation.

    A violation is recorded as well as raised, so that no `except` in the service can hide it.

    Attributes:
        violation: the first, if there is one.
        muted: a violation was found, and what follows does not count.
        counts: how often what happened, by name, for the summary.
        quiet: no event since this was set.
    """

    def __init__(self, clock: Callable[[], float], *, verbose: bool = False) -> None:
        """Begin with no events.

        Args:
            clock: seconds.
            verbose: print each event as it happens.
        """
        self.violation: Violation | None = None
        self.muted = False
        self.counts: dict[str, int] = {}
        self.quiet = False
        self._clock = clock
        self._verbose = verbose
        self._events: deque[tuple[float, str, tuple[Any, ...]]] = deque(maxlen=REMEMBERED)

    @property
    def now(self) -> float:
        """The time, in seconds."""
        return self._clock()

    def note(self, text: str, *arguments: Any) -> None:
        """Remember an event."""
        self.quiet = False
        self._events.append((self._clock(), text, arguments))
        if self._verbose:
            print(self._line(self._events[-1]))

    def count(self, what: str) -> None:
        """Count an event for the summary."""
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def history(self) -> list[str]:
        """The last events, as text."""
        return [self._line(event) for event in self._events]

    @staticmethod
    def _line(event: tuple[float, str, tuple[Any, ...]]) -> str:
        now, text, arguments = event
        return f"{now:12.6f}  {text % arguments}"

    def fail(self, contract: Contract, text: str) -> Violation:
        """Record a violation, of which only the first counts, and return what is to be raised."""
        if self.violation is None:
            self.violation = Violation(contract, text)
            self.note("VIOLATION of %s: %s", contract.value, text)
        return self.violation

    def require(self, holds: bool, contract: Contract, text: str, *arguments: Any) -> None:
        """Raise a violation unless `holds`."""
        if not holds and not self.muted:
            raise self.fail(contract, text % arguments)
